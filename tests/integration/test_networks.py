"""Networks of one's own, of every form that PyTorch has: attacked in a run, or refused in one line before its first round."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.serverapp.strategy import FedAvg
from torch import nn

import fedleak
from fedleak.errors import ScenarioError
from fedleak.experiment.check import check
from fedleak.modalities.image import InputSpec
from fedleak.runs.folder import RunFolder
from fedleak.scenario.schema import parse_scenario

OWN = '''
import torch
from torch import nn


class Rows(nn.Module):
    """Reads an image row by row, and says more than its logits."""

    def __init__(self, num_classes, kind):
        super().__init__()
        self.rows = getattr(nn, kind)(96, 12, batch_first=True)
        self.head = nn.Linear(12, num_classes)

    def forward(self, x):
        states = self.rows(x.permute(0, 2, 1, 3).flatten(2))[0]
        return {"states": states, "logits": self.head(states[:, -1])}


class Encoder(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.embed = nn.Linear(96, 16)
        self.layers = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32, 0.0, batch_first=True), 1)
        self.head = nn.Linear(16, num_classes)

    def forward(self, x):
        return (self.head(self.layers(self.embed(x.permute(0, 2, 1, 3).flatten(2))).mean(1)), None)


def lenet(channels_last=False, compiled=False):
    layers = []
    for before, stride in ((3, 2), (12, 2), (12, 1), (12, 1)):
        layers += [nn.Conv2d(before, 12, 5, stride, padding=2), nn.Sigmoid()]
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(768, 10))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.uniform_(-0.5, 0.5)
    model = model.to(memory_format=torch.channels_last) if channels_last else model
    return torch.compile(model) if compiled else model


def gated(num_classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(3072, 8), nn.Hardsigmoid(), nn.Linear(8, num_classes))
'''


@pytest.fixture(scope="module")
def own(tmp_path_factory: Any) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("own")
        (folder / "own_networks.py").write_text(OWN)
        patch.syspath_prepend(folder)
        yield "own_networks"


def asked(model: dict[str, Any], **keys: Any) -> Any:
    table = {"name": "own", "model": model, "federation": {"clients": 2, "rounds": 1}, "local": {"batch_size": 1}}
    return parse_scenario(table | {"server": {"isolation": "none"}} | keys)


@pytest.mark.parametrize(
    "model",
    [
        {"name": "Rows", "kind": "GRU"},
        {"name": "Rows", "kind": "LSTM", "output": "logits"},
        {"name": "Encoder"},
        {"name": "lenet", "compiled": True},
    ],
)
def test_the_network_is_trained_and_attacked_by_several_starts(own: str, tmp_path: Path, model: dict[str, Any]) -> None:
    attacks = [{"name": "dlg", "labels": "idlg", "iterations": 2, "restarts": 2}]
    result = fedleak.run(asked(model | {"name": f"{own}:{model['name']}"}, attacks=attacks), out=tmp_path / "run")
    rows = RunFolder.open(result.path).rows("reconstructions.jsonl")
    assert [(row["client"], row["error"], row["metrics"]["psnr"] > 0) for row in rows] == [(0, None, True), (1, None, True)]
    assert not any("_orig_mod" in name for name in RunFolder.open(result.path).manifest["model_names"])


def test_an_output_that_is_named_reaches_the_attacks_own_process(own: str, tmp_path: Path) -> None:
    attacks = [{"name": "dlg", "labels": "idlg", "iterations": 1}]
    scenario = asked({"name": f"{own}:Encoder", "output": "0"}, attacks=attacks, server={"isolation": "process"})
    rows = RunFolder.open(fedleak.run(scenario, out=tmp_path / "run").path).rows("reconstructions.jsonl")
    assert [row["error"] for row in rows] == [None, None]


def test_channels_last_is_solved_as_any_layout_is(own: str, tmp_path: Path) -> None:
    for laid in (False, True):
        scenario = asked({"name": f"{own}:lenet", "channels_last": laid}, attacks=[{"name": "closed-form"}])
        rows = RunFolder.open(fedleak.run(scenario, out=tmp_path / str(laid)).path).rows("reconstructions.jsonl")
        assert min(row["metrics"]["psnr"] for row in rows) > 80


def test_a_layer_without_a_second_derivative_is_named_before_anything_starts(own: str) -> None:
    model = {"name": f"{own}:gated"}
    message = r"^attacks\[1\]: 'dlg' differentiates the network twice, and '2' \(Hardsigmoid\) of 'own_networks:gated' has no"
    with pytest.raises(ScenarioError, match=message):
        check(asked(model, attacks=[{"name": "analytic"}, {"name": "dlg"}]))
    check(asked(model, attacks=[{"name": "analytic"}]))
    check(asked(model, attacks=[{"name": "dlg"}], server={"curious": False}))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            nn.Sequential(nn.Linear(32, 32)),
            r"fedleak\.curious: Sequential: gives shape \(2, 3, 32, 32\).*attacks read classifiers",
        ),
        (nn.Sequential(nn.Linear(14, 2)), r"fedleak\.curious: Sequential: cannot take a batch of shape \(2, 3, 32, 32\)"),
        (
            nn.Sequential(nn.Flatten(), nn.Linear(3072, 8), nn.Hardsigmoid(), nn.Linear(8, 10)),
            r"'inverting-gradients' differentiates the network twice, and '2' \(Hardsigmoid\)",
        ),
    ],
)
def test_an_app_whose_network_cannot_be_attacked_is_told_before_it_trains(model: nn.Module, message: str) -> None:
    with pytest.raises(ScenarioError, match=message) as caught:
        fedleak.curious(FedAvg(), model, InputSpec((3, 32, 32), 10), batch_size=1, learning_rate=0.1)
    assert "\n" not in str(caught.value)
    assert torch.backends.cuda.flash_sdp_enabled()
