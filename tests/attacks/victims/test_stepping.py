from typing import Any

import pytest
import torch

from fedleak.attacks.victims.stepping import KNOWN, State, Stepping, clipped, first_step
from fedleak.errors import AttackError
from fedleak.local.optimisers import make_optimiser
from fedleak.observation import LocalTraining

RATES = (0.1, 0.02, 0.05, 0.03)
CASES: list[dict[str, Any]] = [
    {"name": "sgd"},
    {"name": "SGD", "momentum": 0.9, "nesterov": True, "weight_decay": 0.1},
    {"name": "sgd", "momentum": 0.9, "dampening": 0.4, "maximize": True},
    {"name": "adam", "weight_decay": 0.1},
    {"name": "adam", "amsgrad": True, "betas": [0.7, 0.8], "eps": 1e-3},
    {"name": "adamw"},
    {"name": "AdamW", "weight_decay": 0.3, "maximize": True},
    {"name": "adamax", "weight_decay": 0.1},
    {"name": "rmsprop", "momentum": 0.8, "alpha": 0.9},
    {"name": "rmsprop"},
    {"name": "adagrad", "lr_decay": 0.1, "weight_decay": 0.1},
    {"name": "adagrad", "initial_accumulator_value": 0.5},
]


def local(spec: dict[str, Any], most: float | None = None) -> LocalTraining:
    return LocalTraining(4, 1, len(RATES), learning_rate=RATES[0], rates=RATES, optimizer=spec, gradient_clipping=most)


@pytest.mark.parametrize("most", [None, 0.5])
@pytest.mark.parametrize("spec", CASES, ids=lambda spec: "-".join(map(str, spec.values())))
def test_the_steps_are_torchs(spec: dict[str, Any], most: float | None) -> None:
    generator = torch.Generator().manual_seed(3)
    start = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in ((3, 2), (4,))]
    leaves = [value.clone().requires_grad_() for value in start]
    optimiser = make_optimiser(spec, leaves, RATES[0])
    at, state, stepping = start, State(), Stepping(local(spec, most))
    for rate in RATES:
        gradient = [torch.randn(value.shape, generator=generator, dtype=torch.float64) for value in start]
        optimiser.param_groups[0]["lr"] = rate
        for leaf, value in zip(leaves, gradient, strict=True):
            leaf.grad = value.clone()
        if most is not None:
            torch.nn.utils.clip_grad_norm_(leaves, most)
        optimiser.step()
        at, state = stepping.step(at, gradient, state)
        for mine, theirs in zip(at, leaves, strict=True):
            torch.testing.assert_close(mine, theirs.detach(), rtol=1e-9, atol=1e-11)


def test_every_name_is_tried_above() -> None:
    assert {spec["name"].lower() for spec in CASES} == set(KNOWN)


def test_slopes_are_finite_where_a_gradient_is_zero() -> None:
    for spec in CASES:
        gradient = torch.zeros(3, requires_grad=True)
        at, state, stepping = [torch.ones(3)], State(), Stepping(local(spec, 1.0))
        for _ in RATES[:2]:
            at, state = stepping.step(at, [gradient], state)
        (slope,) = torch.autograd.grad(at[0].sum(), gradient)
        assert bool(slope.isfinite().all())


def test_what_is_not_known_is_refused() -> None:
    with pytest.raises(AttackError, match="no attack follows the steps of 'lion' yet"):
        Stepping(local({"name": "lion"}))
    with pytest.raises(AttackError, match="'rmsprop' with centered"):
        Stepping(local({"name": "rmsprop", "centered": True}))


@pytest.mark.parametrize("spec", [{"name": "adam"}, {"name": "adamax"}, {"name": "rmsprop", "alpha": 0.9}, {"name": "adagrad"}])
def test_the_first_step_is_of_the_form_said(spec: dict[str, Any]) -> None:
    gradient = torch.tensor([1e-9, -1e-8, 3e-7, 2.0], dtype=torch.float64)
    [moved], _ = Stepping(local(spec)).step([torch.zeros(4, dtype=torch.float64)], [gradient], State())
    found = first_step(local(spec))
    assert found is not None
    a, eps = found
    torch.testing.assert_close(-moved / RATES[0], gradient / (a * gradient.abs() + eps))
    assert first_step(local({"name": "sgd", "momentum": 0.9})) is None


def test_clipping_leaves_what_is_small() -> None:
    small = [torch.tensor([0.3]), torch.tensor([0.4])]
    assert all(torch.equal(a, b) for a, b in zip(clipped(small, 1.0), small, strict=True))
    assert clipped(small, None) == small
