"""What a spread attack sends to its workers: the network and public images, no seed, no place of the data."""

import importlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from fedleak import __version__
from fedleak.defenses.chain import defended_model
from fedleak.errors import ScenarioError
from fedleak.modalities.image import InputSpec
from fedleak.sandbox import packing
from fedleak.sandbox.strike import attackers_seed
from fedleak.scenario.schema import Scenario
from fedleak.scenario.tensors import metadata_of

Build = Callable[..., Scenario]

SPEC = InputSpec((3, 16, 16), 2)


def packed(scenario: Scenario, surrogate: torch.Tensor | None = None, shift: float = 0.0) -> bytes:
    model = defended_model(scenario, SPEC)
    with torch.no_grad():
        next(model.parameters()).add_(shift)
    return packing.pack(scenario, model, SPEC, surrogate)


def test_the_network_and_the_public_images_are_told_apart_but_not_the_list_of_attacks(build: Build) -> None:
    first, second = build(attacks=[{"name": "dlg"}]), build(attacks=[{"name": "idlg"}])
    images = torch.zeros(1, 3, 16, 16)
    shared = packed(first, images), packed(second, images), packed(first, images, 1.0), packed(first, images + 1)
    found = [packing.tensors_digest(content) for content in shared]
    assert found[0] == found[1]
    assert len(set(found)) == 3


def test_what_is_sent_holds_neither_the_clients_seed_nor_where_their_data_is(build: Build, tmp_path: Path) -> None:
    scenario = build(seed=987654321, attacks=[{"name": "dlg"}], data={"path": tmp_path / "private"})
    said = json.dumps(metadata_of(packed(scenario)))
    assert "987654321" not in said
    assert "private" not in said
    assert str(attackers_seed(987654321).root) in said


def test_a_worker_of_another_version_refuses_in_one_line(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    shared = packed(build(attacks=[{"name": "dlg"}]))
    monkeypatch.setattr(packing, "version", lambda name: "0.0.0")
    told = rf"this worker has fedleak 0\.0\.0 and torch .*, but the attack was started with fedleak {__version__} and torch"
    with pytest.raises(ScenarioError, match=told) as raised:
        packing.Unpacked(shared)
    assert "\n" not in str(raised.value)


RANDOM = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, kept):
        super().__init__()
        self.fc = nn.Linear(768, 2)
        mask = torch.rand(768)
        if kept:
            self.register_buffer("mask", mask, persistent=False)
        else:
            self.mask = mask

    def forward(self, inputs):
        return self.fc(inputs.flatten(1) * self.mask)

def net(num_classes, kept=False):
    return Net(kept)
"""


def test_a_network_with_random_values_of_its_own_is_sent_whole_or_refused(
    build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "users_random.py").write_text(RANDOM)
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    assert packed(build(model={"name": "users_random:net", "kept": True}, seed=3))
    with pytest.raises(ScenarioError, match="register them as buffers"):
        packed(build(model={"name": "users_random:net"}, seed=3))
