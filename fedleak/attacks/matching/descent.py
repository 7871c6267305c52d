"""What is said of a descent: how long it may go on, what is done besides stepping, where it begins and how it went."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from pydantic import Field
from torch import Tensor

from fedleak.attacks.base import AttackConfig, Budget

_APART = 4  # iterations between the losses that a course is extrapolated from


class MatchingConfig(AttackConfig):
    """Parameters of the optimisation loop."""

    tolerance: float = Field(default=1e-9, ge=0, description="stop once the loss is this small: converged")
    patience: int | None = Field(default=50, ge=1, description="stop after so many iterations without progress: flat; or never")
    progress: float = Field(default=1e-3, gt=0, lt=1, description="relative fall of the best loss that counts as progress")
    stuck: float | None = Field(
        default=None,
        gt=0,
        description="of local steps read as one gradient, stop where the loss slows down to end above this: flat; or never",
    )
    together: int | None = Field(default=None, ge=1, description="starts in one tensor program at most; by default what fits")
    memory_mb: int = Field(default=1024, ge=1, description="mebibytes that starts taken together may fill, as estimated")


@dataclass
class Descent:
    """One start's course.

    Attributes
    ----------
    best : list of Tensor
        The variables at the lowest loss.
    loss, initial : float
        Lowest loss, and that of the start.
    iterations : int
        Spent.
    stop_reason : str
        ``"converged"``, ``"flat"``, ``"iterations"``, ``"budget"`` or ``"non-finite"``.
    """

    best: list[Tensor] = field(default_factory=list)
    loss: float = math.inf
    initial: float = math.inf
    iterations: int = 0
    stop_reason: str = "iterations"


@dataclass(frozen=True)
class Hooks:
    """What is done with one start besides stepping; ``None`` for nothing.

    Attributes
    ----------
    edit_gradient : callable, optional
        Given the variables, changes their gradients before each step, such as to their signs.
    after_step : callable, optional
        Given the number of the step just taken, the variables and the optimiser, projects the ones or changes the parameters
        of the other.
    when_flat : callable, optional
        Given the optimiser where the descent would end as flat; it goes on if this returns true, having changed something.
    """

    edit_gradient: Callable[[list[Tensor]], None] | None = None
    after_step: Callable[[int, list[Tensor], torch.optim.Optimizer], None] | None = None
    when_flat: Callable[[torch.optim.Optimizer], bool] | None = None


@dataclass
class Start:
    """One starting point, and what is done with it besides evaluating.

    Attributes
    ----------
    variables : list of Tensor
        Where it begins; not changed.
    optimiser : callable
        Makes the optimiser over the variables that are moved.
    budget : Budget
        Told each iteration.
    iterations : int
        At most.
    hooks : Hooks
        What is done besides.
    stuck : float, optional
        End as flat where the loss slows down so that it ends above this.
    ended : callable
        Whether another start has made this one needless.
    course : Descent
        Filled in.
    """

    variables: list[Tensor]
    optimiser: Callable[[list[Tensor]], torch.optim.Optimizer]
    budget: Budget
    iterations: int
    hooks: Hooks = field(default_factory=Hooks)
    stuck: float | None = None
    ended: Callable[[], bool] = lambda: False
    course: Descent = field(default_factory=Descent)


def slows_down_above(level: float, trail: Sequence[float]) -> bool:
    """Return whether a loss falls ever more slowly, so that it can be foreseen to end above a level.

    Formula: limit = c (c / b)^(r / (1 - r)), r = log(c / b) / log(b / a) in [0, 1), the losses a, b, c equally far apart: the
    limit of a loss whose logarithm's falls shrink by the factor r each time (Aitken's)

    Parameters
    ----------
    level : float
        Which.
    trail : sequence of float
        The lowest loss after each iteration, so far.
    """
    if len(trail) <= 2 * _APART or not trail[-1] > level:
        return False
    first, middle, last = (math.log(trail[-1 - back * _APART]) for back in (2, 1, 0))
    before, now = first - middle, middle - last
    return 0 <= now < before and last - now * now / (before - now) > math.log(level)


def end_reason(loss: float, since: int, budget: Budget, config: MatchingConfig) -> str | None:
    """Return why a descent ends here, if it does.

    Parameters
    ----------
    loss : float
        The lowest so far.
    since : int
        Iterations since the last progress.
    budget : Budget
        Ends it when it is spent.
    config : MatchingConfig
        Tolerance and patience.
    """
    if loss <= config.tolerance:
        return "converged"
    if config.patience is not None and since >= config.patience:
        return "flat"
    return "budget" if budget.exhausted else None
