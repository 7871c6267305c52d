"""The rate of each local step: constant, by round, or by a scheduler of ``torch.optim.lr_scheduler``.

A schedule is a table with a ``name``. ``"by-round"`` holds ``rates``, from which round on each counts: ``{"1": 0.1, "5": 0.05}``.
Any other name is a class of PyTorch's with its parameters, and ``per`` says when it steps: after each ``"round"`` (the default;
it then goes on through the whole training), or after each local ``"step"`` or ``"epoch"`` (it then begins anew in each round, as
the optimiser does). The rates are those that PyTorch's scheduler sets on an optimiser of PyTorch's; server and clients ask here.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from fedleak.errors import ScenarioError, nearest
from fedleak.local.optimisers import check_parameters, parameters_of, plain

BY_ROUND = "by-round"
PER = ("round", "epoch", "step")
_REFUSED = {
    "reducelronplateau": "needs a validation loss, which a client does not have",
    "lambdalr": "takes a Python function",
    "multiplicativelr": "takes a Python function",
    "chainedscheduler": "takes Python objects",
    "sequentiallr": "takes Python objects",
}
_INSTEAD = "give the rates by round as a list, or as a table such as { 1 = 0.1, 5 = 0.05 }"


def schedule_of(value: Any) -> Any:
    """Return a schedule as it may be written, as a table: a name, a list of rates, or rates by the round they begin in."""
    if isinstance(value, str):
        return {"name": value}
    if isinstance(value, list | tuple):
        value = {str(number): rate for number, rate in enumerate(value, start=1)}
        return {"name": BY_ROUND, "rates": value}
    if isinstance(value, Mapping) and value and "name" not in value and all(str(key).isdigit() for key in value):
        return {"name": BY_ROUND, "rates": {str(key): rate for key, rate in value.items()}}
    return value


def check_schedule(schedule: Mapping[str, Any]) -> None:
    """Refuse an unknown name, parameters that the class does not have, and rates that are none.

    Raises
    ------
    ScenarioError
        What is wrong, what was expected, and what to do.
    """
    if schedule["name"] == BY_ROUND:
        rates = schedule.get("rates")
        if set(schedule) != {"name", "rates"} or not isinstance(rates, Mapping) or not rates:
            raise ScenarioError("expected rates by round: a list such as [0.1, 0.05], or a table such as { 1 = 0.1, 5 = 0.05 }")
        for key, rate in rates.items():
            number = isinstance(rate, int | float) and not isinstance(rate, bool)
            if not number or not 0 < rate < float("inf") or not str(key).isdigit() or int(key) < 1:
                raise ScenarioError(f"expected a round from 1 and a rate above 0, got {key} = {rate!r}")
        if "1" not in rates:
            raise ScenarioError(f"expected a rate from round 1 on, got the rounds {', '.join(rates)}")
        return
    if (per := schedule.get("per", PER[0])) not in PER:
        raise ScenarioError(f"'per' is when the scheduler steps, expected 'round', 'epoch' or 'step', got {per!r}")
    given = {key: value for key, value in schedule.items() if key != "per"}
    check_parameters(_class(schedule["name"]), given, {"optimizer", "last_epoch"}, "it is known from the training")


def step_rates(
    learning_rate: float, schedule: Mapping[str, Any] | None, server_round: int, passes: Sequence[int]
) -> tuple[float, ...]:
    """Return the rate of each local step of a round.

    Parameters
    ----------
    learning_rate : float
        Where there is no schedule, and where one begins.
    schedule : mapping or None
        As above.
    server_round : int
        From 1.
    passes : sequence of int
        Steps in each pass over the shard; the last may be cut short.

    Raises
    ------
    ScenarioError
        If PyTorch refuses a parameter of the scheduler, or the scheduler changes more than rates.
    """
    total = sum(passes)
    if schedule is None:
        return (learning_rate,) * total
    if schedule["name"] == BY_ROUND:
        begun = {int(key): float(rate) for key, rate in schedule["rates"].items() if int(key) <= server_round}
        return (begun[max(begun)],) * total
    per = schedule.get("per", PER[0])
    if per == "round":
        return (_scheduled(learning_rate, schedule, server_round)[-1],) * total
    if per == "step":
        return tuple(_scheduled(learning_rate, schedule, total))
    by_pass = _scheduled(learning_rate, schedule, len(passes))
    return tuple(rate for rate, steps in zip(by_pass, passes, strict=True) for _ in range(steps))


def passes_of(steps: int, per_pass: int) -> list[int]:
    """Return how many of a round's steps fall into each pass over the shard, of ``per_pass`` steps if it is whole."""
    whole, rest = divmod(steps, per_pass)
    return [per_pass] * whole + [rest] * bool(rest)


def _scheduled(learning_rate: float, schedule: Mapping[str, Any], count: int) -> list[float]:
    """Return the first ``count`` rates that PyTorch's scheduler sets."""
    import torch

    parameters = {key: value for key, value in parameters_of(schedule).items() if key != "per"}
    # Momentum must be there for those that could change it.
    optimiser = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=learning_rate, momentum=0.5)
    made = _class(schedule["name"])
    try:
        scheduler = made(optimiser, **parameters)
        found, others = [], set()
        for _ in range(count):
            group = optimiser.param_groups[0]
            found.append(float(group["lr"]))
            others.add(group["momentum"])
            optimiser.step()
            scheduler.step()
    except (ValueError, TypeError, RuntimeError, ZeroDivisionError) as error:
        raise ScenarioError(f"torch.optim.lr_scheduler.{made.__name__} refuses it: {' '.join(str(error).split())}") from error
    if others != {0.5}:
        raise ScenarioError(f"'{schedule['name']}' changes the momentum too; set cycle_momentum = false")
    return found


def _class(name: str) -> Any:
    if plain(name) in _REFUSED:
        raise ScenarioError(f"'{name}' {_REFUSED[plain(name)]}; {_INSTEAD}")
    found = _classes()
    if plain(name) not in found:
        names = sorted(one.__name__ for key, one in found.items() if key not in _REFUSED)
        raise ScenarioError(f"unknown scheduler '{name}', expected one of torch.optim.lr_scheduler; {nearest(name, names)}")
    return found[plain(name)]


def _classes() -> dict[str, Any]:
    from torch.optim import lr_scheduler

    found = {plain(name): value for name, value in vars(lr_scheduler).items() if inspect.isclass(value)}
    # ReduceLROnPlateau was no subclass of LRScheduler in every version.
    base = lr_scheduler.LRScheduler
    return {key: value for key, value in found.items() if value is not base and issubclass(value, base)}
