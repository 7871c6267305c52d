from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from fedleak.attacks.base import attacks
from fedleak.attacks.counters.base import counters
from fedleak.attacks.counters.dropout_masks import read_masks
from fedleak.attacks.victims.base import Victim
from fedleak.errors import ScenarioError


def gradient(images: int, p: float, seed: int, signed: bool = False) -> tuple[Tensor, Tensor]:
    """Return the gradient of a classifier behind dropout, and the masks in the order of the labels."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.rand(images, 300, generator=generator) + 0.05
    if signed:
        features *= torch.where(torch.rand(features.shape, generator=generator) < 0.5, -1.0, 1.0)
    masks = (torch.rand(features.shape, generator=generator) >= p).float()
    weight = (0.1 * torch.randn(10, 300, generator=generator)).requires_grad_()
    labels = torch.randperm(10, generator=generator)[:images]
    loss = torch.nn.functional.cross_entropy((features * masks / (1 - p)) @ weight.T, labels)
    return torch.autograd.grad(loss, weight)[0], masks[labels.argsort()]


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize(("images", "p"), [(1, 0.1), (1, 0.5), (2, 0.3), (4, 0.5), (6, 0.7)])
def test_masks_are_read_exactly(images: int, p: float, signed: bool) -> None:
    for seed in range(3):
        weight, masks = gradient(images, p, seed, signed)
        found = read_masks(weight, images, p)
        assert found is not None
        assert torch.equal(found, masks)


@pytest.mark.parametrize(("images", "p"), [(1, 0.0), (4, 0.0), (4, 0.02)])
def test_masks_that_are_not_there_or_too_rare_are_not_read(images: int, p: float) -> None:
    assert read_masks(gradient(images, p, 1)[0], images, max(p, 0.2)) is None


def test_noise_makes_masks_unreadable() -> None:
    weight, _ = gradient(4, 0.5, 1)
    noisy = weight + 0.01 * weight.std() * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))
    assert read_masks(noisy, 4, 0.5) is None
    assert read_masks(noisy[:, :1].expand(-1, 300), 1, 0.5) is None


def test_at_the_clients_masks_the_truth_is_matched_exactly(seen: Callable[..., Any], pixels: Callable[[int], Tensor]) -> None:
    model, observation = seen("dropout", p=0.4)
    victim = Victim(model, observation, torch.device("cpu"))
    victim.against([counters.get("dropout")({"p": 0.4}, observation)])
    assert victim.start(torch.Generator()) == []
    guessed = victim.gradient(observation.input.normalize(pixels(1)), torch.eye(5)[:1])
    for value, observed in zip(guessed, victim.observed, strict=True):
        torch.testing.assert_close(value, observed)


def test_masks_of_convolutions_are_guessed_and_drawn_towards_their_mean(seen: Callable[..., Any]) -> None:
    model, observation = seen("dropout", p=0.4, where="everywhere")
    counter = counters.get("dropout")({"p": 0.4, "where": "everywhere"}, observation)
    victim = Victim(model, observation, torch.device("cpu"))
    victim.against([counter])
    drawn = victim.start(torch.Generator().manual_seed(1))
    assert [tuple(value.shape) for value in drawn] == [(1, 12, 4, 4), (1, 12, 2, 2), (1, 12, 2, 2)]
    assert [float(value.detach().sigmoid().mean()) for value in drawn] == pytest.approx([0.6] * 3, abs=0.02)
    assert float(counter.penalty([torch.zeros(9)])) == pytest.approx(1e-4 * 0.1)


@pytest.mark.parametrize(
    ("way", "images"),
    [("read", 1), *(pytest.param(way, n, marks=pytest.mark.slow) for way, n in [("optimise", 1), ("read", 2), ("optimise", 2)])],
)
def test_knowing_dropout_rebuilds_what_the_base_does_not(
    way: str, images: int, seen: Callable[..., Any], error: Callable[..., float]
) -> None:
    model, observation = seen("dropout", images=images, p=0.5)
    assert error("natural", model, observation, iterations=15) > 0.03
    assert error("adaptive", model, observation, iterations=25, base="natural", ways={"dropout": way}) < 0.01


@pytest.mark.slow
def test_dropout_everywhere_is_optimised(seen: Callable[..., Any], error: Callable[..., float]) -> None:
    model, observation = seen("dropout", p=0.2, where="everywhere")
    assert error("adaptive", model, observation, base="natural", iterations=60) < 0.3 * error("natural", model, observation)


def test_a_layer_that_is_left_out_is_not_matched(seen: Callable[..., Any]) -> None:
    model, observation = seen("dropout", p=0.5)
    counter = counters.get("dropout")({"p": 0.5}, observation, "leave-out")
    victim = Victim(model, observation, torch.device("cpu"))
    victim.against([counter])
    left = {name for name, value in zip(victim.parameters, victim.observed, strict=True) if not bool(value.any())}
    assert left == {"fc.weight", "fc.bias"}


def test_zeros_of_another_defense_are_not_taken_for_dropout(seen: Callable[..., Any]) -> None:
    model, observation = seen("dropout", p=0.5)
    both = replace(observation, defenses=({"name": "dropout", "p": 0.5}, {"name": "soteria"}))
    counter = counters.get("dropout")({"p": 0.5}, both)
    victim = Victim(model, both, torch.device("cpu"))
    victim.against([counter])
    assert len(victim.start(torch.Generator())) == 1


@pytest.mark.parametrize("ways", [{"dropout": "guess"}, {"random-masking": "read"}, {"nonsense": "read"}])
def test_a_way_that_there_is_not_is_refused(ways: dict[str, str]) -> None:
    with pytest.raises(ScenarioError, match="|".join(ways)):
        attacks.get("adaptive")(base="natural", ways=ways)
