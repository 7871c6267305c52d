import math
from typing import Any

import pytest
import torch

from fedleak.defenses.base import Defense, DefenseConfig, Situation, defenses
from fedleak.defenses.client_dp import ClientDP, noise_std
from fedleak.errors import ScenarioError
from fedleak.experiment.check import check
from fedleak.modalities.image import InputSpec
from fedleak.observation import Tensors
from fedleak.scenario.schema import Scenario, parse_scenario
from fedleak.seeding import Seed

AT = Situation(Seed(1).derive("client-dp"), 1, 0, InputSpec((3, 8, 8), 10))
UPDATE = {"a": torch.full((200, 200), 3.0), "b": torch.full((100,), 4.0)}


def norm(update: Tensors) -> float:
    return math.sqrt(sum(float(value.double().square().sum()) for value in update.values()))


def test_the_update_is_clipped_as_one_vector() -> None:
    clipped = ClientDP(max_norm=2.0, noise_multiplier=0).on_update(UPDATE, AT)
    assert norm(clipped) == pytest.approx(2.0)
    for name, value in UPDATE.items():
        torch.testing.assert_close(clipped[name], value * (2.0 / norm(UPDATE)))


def test_a_short_update_is_not_scaled() -> None:
    assert torch.equal(ClientDP(max_norm=1e4, noise_multiplier=0).on_update(UPDATE, AT)["a"], UPDATE["a"])


@pytest.mark.parametrize("clip", [True, False])
def test_noise_has_the_deviation_that_the_module_says(clip: bool) -> None:
    parameters = {"max_norm": 2.0, "clip": clip}
    noisy = ClientDP(noise_multiplier=1.5, **parameters).on_update(UPDATE, AT)
    noise = noisy["a"] - ClientDP(noise_multiplier=0, **parameters).on_update(UPDATE, AT)["a"]
    assert noise_std(ClientDP(noise_multiplier=1.5, **parameters).config) == 3.0
    assert abs(float(noise.mean())) < 0.06
    assert float(noise.std()) == pytest.approx(3.0, rel=0.02)


@pytest.mark.parametrize("seed", [Seed(1).derive("client-dp", "other"), Seed(2)])
def test_noise_is_drawn_anew_and_only_from_the_seed(seed: Seed) -> None:
    defense = ClientDP(max_norm=2.0, noise_multiplier=1.5)
    torch.manual_seed(1)
    first = defense.on_update(UPDATE, AT)
    torch.manual_seed(2)
    assert torch.equal(defense.on_update(UPDATE, AT)["a"], first["a"])
    other = Situation(seed, 1, 0, AT.input)
    assert not torch.equal(defense.on_update(UPDATE, other)["a"], first["a"])


def scene(specs: list[dict[str, Any]], **tables: Any) -> Scenario:
    base = {"name": "test", "data": {"image_size": 16}, "model": {"name": "mlp", "hidden": [8]}, "defenses": specs}
    return parse_scenario(base | tables)


PRIVATE = {"name": "client-dp", "max_norm": 1.0, "noise_multiplier": 1.0}


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ({"model": {"name": "convnet", "width": 2, "norm": "batch"}}, "the buffer 'norm1.running_mean' takes in the images"),
        (
            {"federation": {"protocol": "fedavg", "strategy": {"name": "QFedAvg", "client_learning_rate": 0.1}}},
            "'QFedAvg' needs each client's loss",
        ),
    ],
)
def test_other_ways_out_are_refused(tables: dict[str, Any], message: str) -> None:
    with pytest.raises(ScenarioError) as caught:
        check(scene([PRIVATE], **tables))
    assert message in str(caught.value)


def test_a_model_with_batchnorm_in_eval_mode_can_carry_it() -> None:
    check(scene([PRIVATE], model={"name": "convnet", "width": 2, "norm": "batch"}, local={"mode": "eval"}))


def test_only_what_has_not_seen_the_images_may_come_after_the_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    class Seeing(Defense):
        name = "seeing"
        Config = DefenseConfig

        def on_gradient(self, gradient: Tensors, *rest: Any) -> Tensors:
            return gradient

        def on_update(self, update: Tensors, situation: Situation) -> Tensors:
            return update

    defenses.names()
    monkeypatch.setitem(defenses._plugins, "seeing", Seeing)
    with pytest.raises(ScenarioError, match="put it before client-dp"):
        check(scene([PRIVATE, {"name": "seeing"}]))
    check(scene([{"name": "seeing"}, PRIVATE]))
    check(scene([PRIVATE, {"name": "gradient-pruning", "ratio": 0.5}]))


@pytest.mark.parametrize("parameters", [{"max_norm": -1}, {"noise_multiplier": -1}, {"max_norm": math.inf}])
def test_wrong_parameters_are_refused(parameters: dict[str, Any]) -> None:
    with pytest.raises(ScenarioError, match=r"defenses\[0\]"):
        check(scene([PRIVATE | parameters]))
