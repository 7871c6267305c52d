import pytest
import torch

from fedleak.errors import ScenarioError
from fedleak.local.rates import check_schedule, passes_of, schedule_of, step_rates


def by_torch(steps: int, **parameters: float) -> list[float]:
    optimiser = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.4)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, **parameters)  # type: ignore[arg-type]
    found = []
    for _ in range(steps):
        found.append(float(optimiser.param_groups[0]["lr"]))
        optimiser.step()
        scheduler.step()
    return found


def test_without_a_schedule_the_rate_is_constant() -> None:
    assert step_rates(0.3, None, 7, [2, 1]) == (0.3, 0.3, 0.3)


@pytest.mark.parametrize("per", ["round", "epoch", "step"])
def test_a_scheduler_steps_when_it_is_told_to(per: str) -> None:
    schedule = {"name": "cosine-annealing-lr", "T_max": 10, "eta_min": 0.01, "per": per}
    check_schedule(schedule)
    rates = by_torch(8, T_max=10, eta_min=0.01)
    expected = {
        "round": (rates[3],) * 5,
        "epoch": (rates[0], rates[0], rates[1], rates[1], rates[2]),
        "step": tuple(rates[:5]),
    }[per]
    assert step_rates(0.4, schedule, 4, [2, 2, 1]) == expected


@pytest.mark.parametrize(
    ("given", "rates"),
    [([0.1, 0.05], [0.1, 0.05, 0.05]), ({"1": 0.1, "3": 0.02}, [0.1, 0.1, 0.02]), ({1: 0.1, 2: 0.3}, [0.1, 0.3, 0.3])],
)
def test_rates_by_round(given: object, rates: list[float]) -> None:
    schedule = schedule_of(given)
    check_schedule(schedule)
    assert [step_rates(9.0, schedule, number, [2])[1] for number in (1, 2, 3)] == rates


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("reduce-lr-on-plateau", "needs a validation loss"),
        ("LambdaLR", "takes a Python function; give the rates by round"),
        ("step-rl", "unknown scheduler 'step-rl'"),
        ({"name": "StepLR", "step_siez": 2}, "has no parameter 'step_siez'; did you mean 'step_size'"),
        ({"name": "StepLR", "step_size": 2, "per": "batch"}, "expected 'round', 'epoch' or 'step'"),
        ([], "expected rates by round"),
        ([0.1, -1], "a rate above 0"),
        ({"2": 0.1}, "expected a rate from round 1 on"),
    ],
)
def test_what_is_wrong_is_said(given: object, said: str) -> None:
    with pytest.raises(ScenarioError, match=said):
        check_schedule(schedule_of(given))


def test_values_that_torch_refuses_and_momentum_that_would_move() -> None:
    with pytest.raises(ScenarioError, match="StepLR refuses it"):
        step_rates(0.1, {"name": "StepLR"}, 1, [1])
    cyclic = {"name": "cyclic-lr", "base_lr": 0.1, "max_lr": 0.2, "step_size_up": 2, "per": "step"}
    with pytest.raises(ScenarioError, match="changes the momentum too; set cycle_momentum = false"):
        step_rates(0.1, cyclic, 1, [4])
    assert step_rates(0.1, {**cyclic, "cycle_momentum": False}, 1, [4])[2] == pytest.approx(0.2)


def test_steps_fall_into_passes() -> None:
    assert passes_of(7, 3) == [3, 3, 1]
    assert passes_of(6, 3) == [3, 3]
    assert passes_of(2, 3) == [2]
