"""What no machine could hold is refused with its figure, and nothing of it is taken to find out."""

from __future__ import annotations

import resource
import time

import pytest
import torch
from torch import nn

from fedleak.errors import ScenarioError
from fedleak.experiment import bounds
from fedleak.experiment.check import check
from fedleak.modalities.image import InputSpec
from fedleak.models import build_model
from fedleak.scenario.schema import Model, parse_scenario

INPUT = InputSpec((3, 32, 32), 10, (0.0,) * 3, (1.0,) * 3)
FEDAVG = {"protocol": "fedavg"}


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({"data": {"image_size": 65_535}}, "data.image_size: one image of 65,535 x 65,535 pixels needs at least 77.3 GB, but"),
        (
            {"model": {"name": "lenet", "channels": 100_000}},
            "model: a network of 750,071,900,010 parameters needs at least 6.0 TB",
        ),
        ({"model": {"name": "lenet", "channels": 2**31}}, "model: a network of this size cannot be"),
        ({"model": {"name": "mlp", "hidden": [10**6, 10**6]}}, "model: a network of 1,003,084,000,010 parameters needs"),
        ({"model": {"name": "vit", "dim": 3_000_000}}, "model: a network of"),
        ({"model": {"name": "convnet", "width": 100_000}}, "model: a network of"),
        ({"model": {"name": "resnet20", "width": 10**6}}, "model: a network of"),
        ({"model": {"name": "vgg11", "hidden": 2**30, "head": "imagenet"}}, "model: a network of"),
        ({"model": {"name": "lenet", "chanels": 1}}, "did you mean 'channels'"),
        ({"federation": FEDAVG, "local": {"epochs": 10**6}}, "5,000,000 local steps a round; expected at most 1,000,000"),
        (
            {"federation": FEDAVG, "local": {"steps": 10**6}, "attacks": [{"name": "unrolled"}]},
            "attacks[0]: 'unrolled' on 1 image and 1,000,000 local steps needs at least",
        ),
    ],
)
def test_what_cannot_be_is_refused_with_its_figure_and_takes_neither_memory_nor_time(monkeypatch, keys, told):
    monkeypatch.setattr(bounds, "machine_memory", lambda: 16 * 10**9)
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    with pytest.raises(ScenarioError) as refused:
        check(parse_scenario({"name": "x", **keys}))
    assert told in str(refused.value)
    assert "\n" not in str(refused.value)
    assert time.monotonic() - began < 20
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 600_000  # KiB, most of it imports


@pytest.mark.parametrize(
    ("memory", "keys", "told"),
    [
        (
            360_000,
            {"local": {"batch_size": 5}},
            "local.batch_size: a local step on 5 images with 19,438 parameters needs at least",
        ),
        (
            300_000,
            {"federation": {"clients": 20}},
            "clients_per_round: holding a round's 20 updates of 19,438 parameters needs at",
        ),
        (
            240_000,
            {"federation": {"clients": 1}, "attacks": [{"name": "analytic"}]},
            "data.shard_size: grading beside a client's 20",
        ),
        (
            290_000,
            {"federation": {"clients_per_round": 1}, "attacks": [{"name": "dlg"}]},
            "attacks[0]: 'dlg' on 1 image and 1 local step needs at least",
        ),
    ],
)
def test_each_part_of_a_run_is_weighed(monkeypatch, memory, keys, told):
    monkeypatch.setattr(bounds, "machine_memory", lambda: memory)
    with pytest.raises(ScenarioError, match="but this machine has") as refused:
        check(parse_scenario({"name": "x", **keys}))
    assert told in str(refused.value)
    monkeypatch.setattr(bounds, "machine_memory", lambda: None)  # a system that does not tell refuses nothing
    assert check(parse_scenario({"name": "x", **keys}))


def saved_by(model: nn.Module, images: torch.Tensor) -> int:
    """Return the bytes that a real forward pass keeps, parameters aside."""
    own = {value.untyped_storage().data_ptr() for value in (*model.parameters(), *model.buffers())}
    kept: dict[int, torch.Tensor] = {}

    def keep(value: torch.Tensor) -> torch.Tensor:
        if (place := value.untyped_storage().data_ptr()) not in own:
            kept[place] = value
        return value

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
        output = model(images)
    found = sum(value.numel() * value.element_size() for value in kept.values())
    assert output is not None
    return found


@pytest.mark.parametrize("spec", [{"name": "lenet"}, {"name": "mlp"}, {"name": "resnet20"}, {"name": "vgg11"}])
def test_the_network_without_values_keeps_what_the_real_one_keeps(spec):
    model = build_model(Model(**spec), INPUT, 1)
    real = saved_by(model, torch.rand(3, *INPUT.shape))
    found = bounds.footprint(model, INPUT, 3)
    assert found.parameters == sum(value.numel() * value.element_size() for value in model.state_dict().values())
    assert 0.8 * real <= found.saved <= 1.2 * real, (found, real)


def test_a_network_that_needs_values_is_weighed_by_its_parameters_alone():
    class Reads(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x.flatten(1) * float(x.mean()))

    found = bounds.footprint(Reads(3072, 10), INPUT, 4)
    assert found == bounds.Footprint(4 * (3072 * 10 + 10), 0)


def test_clients_on_other_machines_are_not_weighed_here(monkeypatch):
    monkeypatch.setattr(bounds, "machine_memory", lambda: 360_000)
    asked = parse_scenario({"name": "x", "local": {"batch_size": 5}})
    with pytest.raises(ScenarioError, match="batch_size"):
        check(asked)
    link = {"engine": "deployment", "superlink": {"address": "127.0.0.1:1", "insecure": True}}
    assert check(parse_scenario({"name": "x", "local": {"batch_size": 5}, "federation": link}))
