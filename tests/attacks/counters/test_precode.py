from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from fedleak.attacks.counters.base import counters
from fedleak.attacks.victims.base import Victim
from fedleak.errors import AttackError
from fedleak.models import build_model
from fedleak.scenario.schema import Model


def test_one_images_draws_are_read_and_the_truth_is_matched_exactly(
    seen: Callable[..., Any], pixels: Callable[[int], Tensor]
) -> None:
    model, observation = seen("precode", size=16, beta=0.01)
    victim = Victim(model, observation, torch.device("cpu"))
    victim.against([counters.get("precode")({"size": 16, "beta": 0.01}, observation)])
    assert victim.start(torch.Generator()) == []
    guessed = victim.gradient(observation.input.normalize(pixels(1)), torch.eye(5)[:1])
    for value, observed in zip(guessed, victim.observed, strict=True):
        torch.testing.assert_close(value, observed, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("images", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_knowing_precode_rebuilds_what_the_base_does_not(
    images: int, seen: Callable[..., Any], error: Callable[..., float]
) -> None:
    model, observation = seen("precode", images=images, size=32)
    base = error("natural", model, observation, iterations=15)
    assert base > 0.03
    assert error("adaptive", model, observation, iterations=25, base="natural") < 0.3 * base


def test_the_bottleneck_that_is_left_out_is_not_matched(seen: Callable[..., Any]) -> None:
    model, observation = seen("precode", size=16)
    victim = Victim(model, observation, torch.device("cpu"))
    victim.against([counters.get("precode")({"size": 16}, observation, "leave-out")])
    left = {name for name, value in zip(victim.parameters, victim.observed, strict=True) if not bool(value.any())}
    assert left == {name for name in victim.parameters if name.startswith("fc.")}


def test_a_network_without_the_bottleneck_is_a_named_failure(seen: Callable[..., Any]) -> None:
    _, observation = seen("dropout", p=0.1)
    plain = build_model(Model(name="lenet"), observation.input, 1)
    victim = Victim(plain, observation, torch.device("cpu"))
    with pytest.raises(AttackError, match="no bottleneck"):
        victim.against([counters.get("precode")({"size": 16}, observation)])
