"""The counters of Soteria, GradDefense and Outpost."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from fedleak.attacks.counters.base import counters
from fedleak.attacks.counters.grad_defense import quiet
from fedleak.attacks.victims.base import Victim

CASES: list[Any] = [
    pytest.param("soteria", {"pruning_rate": 0.6}, marks=pytest.mark.slow),
    pytest.param("grad-defense", {"scale": 0.05}, marks=pytest.mark.slow),
    ("outpost", {"noise_base": 0.1}),
]


@pytest.mark.parametrize(("name", "parameters"), CASES, ids=lambda value: str(value) if isinstance(value, str) else "")
def test_knowing_the_defense_rebuilds_what_the_base_does_not(
    name: str, parameters: dict[str, Any], seen: Callable[..., Any], error: Callable[..., float]
) -> None:
    model, observation = seen(name, **parameters)
    base = error("natural", model, observation, iterations=20)
    assert error("adaptive", model, observation, base="natural", iterations=20) < 0.6 * base


@pytest.mark.parametrize("way", ["columns", "leave-out"])
def test_what_soteria_zeroed_is_not_matched(way: str, seen: Callable[..., Any], pixels: Callable[[int], Tensor]) -> None:
    model, observation = seen("soteria", pruning_rate=0.5)
    victim = Victim(model, observation, torch.device("cpu"))
    victim.against([counters.get("soteria")({"pruning_rate": 0.5}, observation, way)])
    guessed = victim.gradient(observation.input.normalize(pixels(1)), torch.eye(5)[:1])
    for value, observed in zip(guessed, victim.observed, strict=True):
        torch.testing.assert_close(value, observed)
    weight = victim.observed[list(victim.parameters).index("fc.weight")]
    assert int((weight == 0).all(0).sum()) == {"columns": 24, "leave-out": 48}[way]


def test_outposts_truth_is_matched_up_to_the_noise(seen: Callable[..., Any], pixels: Callable[[int], Tensor]) -> None:
    model, observation = seen("outpost", prune_base=80.0, noise_base=0.0)
    victim = Victim(model, observation, torch.device("cpu"))
    victim.against([counters.get("outpost")({"prune_base": 80.0, "noise_base": 0.0}, observation)])
    guessed = victim.gradient(observation.input.normalize(pixels(1)), torch.eye(5)[:1])
    for value, observed in zip(guessed, victim.observed, strict=True):
        torch.testing.assert_close(value, observed, rtol=1e-3, atol=1e-4)


def test_a_step_that_outpost_let_pass_is_matched_as_it_is(seen: Callable[..., Any]) -> None:
    model, observation = seen("outpost", prune_base=0.0, noise_base=0.0)
    victim = Victim(model, observation, torch.device("cpu"))
    victim.against([counters.get("outpost")({}, observation)])
    assert victim.noise() is None


def test_runs_without_noise_are_told_from_those_with() -> None:
    generator = torch.Generator().manual_seed(1)
    values = torch.cat([0.1 * torch.randn(1000, generator=generator), 0.01 * torch.randn(1000, generator=generator)])
    found = quiet(values, 0.06)
    assert not bool(found[:1000].any())
    assert bool(found[1048:].all())
