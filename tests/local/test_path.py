from typing import Any

import pytest
import torch

from fedleak.local.path import Path, path_of

CASES = [
    {},
    {"momentum": 0.9},
    {"momentum": 0.9, "dampening": 0.3},
    {"momentum": 0.9, "nesterov": True},
    {"weight_decay": 0.05},
    {"momentum": 0.8, "weight_decay": 0.05, "nesterov": True},
    {"momentum": 0.8, "weight_decay": 0.05, "dampening": 0.5, "maximize": True},
]
RATES = (0.1, 0.2, 0.05, 0.3)


@pytest.mark.parametrize("parameters", CASES)
def test_the_weights_are_the_combination_of_gradients_that_the_path_says(parameters: dict[str, Any]) -> None:
    generator = torch.Generator().manual_seed(1)
    start = torch.randn(6, generator=generator, dtype=torch.float64)
    gradients = torch.randn(len(RATES), 6, generator=generator, dtype=torch.float64)
    weights = start.clone().requires_grad_()
    optimiser = torch.optim.SGD([weights], lr=1.0, **parameters)
    for rate, gradient in zip(RATES, gradients, strict=True):
        optimiser.param_groups[0]["lr"] = rate
        weights.grad = gradient.clone()
        optimiser.step()
    path = path_of({"name": "SGD", **parameters}, RATES)
    assert path is not None
    moved = path.decay * start + torch.tensor(path.coefficients, dtype=torch.float64) @ gradients
    torch.testing.assert_close(start - weights.detach(), moved, rtol=1e-12, atol=1e-12)
    mean = torch.tensor(path.weights, dtype=torch.float64) @ gradients
    torch.testing.assert_close((start - weights.detach() - path.decay * start) / path.scale, mean, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("parameters", CASES)
def test_where_each_step_begins(parameters: dict[str, Any]) -> None:
    path = path_of({"name": "sgd", **parameters}, RATES)
    assert path is not None
    start, gradient = torch.tensor([2.0], dtype=torch.float64), torch.tensor([0.7], dtype=torch.float64)
    weights = start.clone().requires_grad_()
    optimiser = torch.optim.SGD([weights], lr=1.0, **parameters)
    for rate, reach, lost in zip(RATES, path.reach, path.lost, strict=True):
        torch.testing.assert_close(weights.detach(), (1 - lost) * start - reach * gradient)
        optimiser.param_groups[0]["lr"] = rate
        weights.grad = gradient.clone()
        optimiser.step()


def test_plain_sgd_is_what_it_always_was() -> None:
    path = path_of(None, (0.1,) * 3)
    assert path == Path((0.1,) * 3)
    assert path.plain
    assert path.scale == 0.1 * 3
    assert path.weights == (1 / 3,) * 3
    assert path.coefficients == (0.1,) * 3
    assert path.decay == 0
    assert not Path((0.1, 0.2)).plain
    assert not Path((0.1,), momentum=0.9).plain


def test_adam_is_no_combination() -> None:
    assert path_of({"name": "adam"}, (0.1,)) is None


def test_many_steps_take_no_time() -> None:
    path = Path((0.01,) * 20_000, momentum=0.9)
    assert path.coefficients[0] == pytest.approx(0.1)
    assert sum(path.weights) == pytest.approx(1.0)
