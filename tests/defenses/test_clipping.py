import math

import pytest
import torch

from fedleak.defenses.base import Situation
from fedleak.defenses.clipping import Clipping
from fedleak.errors import ScenarioError
from fedleak.modalities.image import InputSpec
from fedleak.observation import Tensors
from fedleak.scenario.schema import Scenario
from fedleak.seeding import Seed

AT = Situation(Seed(1), 1, 0, InputSpec((3, 8, 8), 10))
UPDATE = {"a": torch.tensor([[3.0, 0.0], [0.0, 4.0]]), "b": torch.tensor([12.0])}  # norms 5 and 12, together 13


def norm(update: Tensors) -> float:
    return math.sqrt(sum(float((tensor.double() ** 2).sum()) for tensor in update.values()))


def test_global_scope_scales_all_tensors_by_one_factor() -> None:
    clipped = Clipping(max_norm=6.5).on_update(UPDATE, AT)
    assert norm(clipped) == pytest.approx(6.5)
    for name, tensor in UPDATE.items():
        torch.testing.assert_close(clipped[name], tensor / 2)


def test_layer_scope_clips_each_tensor_on_its_own() -> None:
    clipped = Clipping(max_norm=6.0, scope="layer").on_update(UPDATE, AT)
    assert torch.equal(clipped["a"], UPDATE["a"])
    assert clipped["b"].item() == pytest.approx(6.0)


def test_value_scope_clamps_entries() -> None:
    clipped = Clipping(max_norm=3.5, scope="value").on_update({"w": torch.tensor([-9.0, 1.0, 3.6])}, AT)
    assert clipped["w"].tolist() == [-3.5, 1.0, 3.5]


@pytest.mark.parametrize("scope", ["global", "layer"])
def test_an_update_within_the_norm_is_not_scaled_up(scope: str) -> None:
    clipped = Clipping(max_norm=13.0, scope=scope).on_update(UPDATE, AT)
    assert all(torch.equal(clipped[name], tensor) for name, tensor in UPDATE.items())


def test_norm_of_large_values_does_not_overflow() -> None:
    clipped = Clipping(max_norm=1.0).on_update({"w": torch.full((4,), 1e30)}, AT)
    assert clipped["w"].tolist() == pytest.approx([0.5] * 4)


@pytest.mark.parametrize("scope", ["global", "layer", "value"])
def test_integers_do_not_count_and_an_update_without_floats_passes(scope: str) -> None:
    counted = {**UPDATE, "steps": torch.tensor([1_000_000])}
    clipped = Clipping(max_norm=13.0, scope=scope).on_update(counted, AT)
    assert all(torch.equal(clipped[name], tensor) for name, tensor in counted.items())


def test_infinite_norm_survives_the_scenarios_way_through_json() -> None:
    written = Scenario.model_validate({"name": "x", "defenses": [{"name": "clipping", "max_norm": math.inf}]}).to_json()
    parameters = Scenario.from_json(written).defenses[0].parameters
    assert Clipping(**parameters).config.max_norm == math.inf


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan])
def test_norm_must_be_positive(value: float) -> None:
    with pytest.raises(ScenarioError, match="max_norm"):
        Clipping(max_norm=value)
