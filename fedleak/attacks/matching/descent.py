"""One descent: step an optimiser until the loss has converged or is flat, and keep the lowest own loss."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from pydantic import Field
from torch import Tensor

from fedleak.attacks.base import AttackConfig, Budget


class MatchingConfig(AttackConfig):
    """Parameters of the optimisation loop."""

    tolerance: float = Field(default=1e-9, ge=0, description="stop once the loss is this small: converged")
    patience: int | None = Field(default=50, ge=1, description="stop after so many iterations without progress: flat; or never")
    progress: float = Field(default=1e-3, gt=0, lt=1, description="relative fall of the best loss that counts as progress")
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


def descend(
    loss_of: Callable[[], Tensor],
    variables: Sequence[Tensor],
    optimiser: torch.optim.Optimizer,
    config: MatchingConfig,
    budget: Budget,
    *,
    scale: float = 1.0,
    edit_gradient: Callable[[], None] | None = None,
    after_step: Callable[[int], None] | None = None,
    when_flat: Callable[[], bool] | None = None,
) -> Descent:
    """Minimise ``loss_of()`` over ``variables`` within the budget; keep the best point evaluated, by that loss.

    Parameters
    ----------
    loss_of : callable
        Returns the scalar loss at the variables' present values.
    variables : sequence of Tensor
        Leaves that require gradients; moved in place.
    optimiser : Optimizer
        Over ``variables``; it is stepped with a closure.
    scale : float
        The optimiser is given the loss times this; losses are reported without it.
    edit_gradient : callable, optional
        Changes the variables' gradients before each step (such as taking signs).
    after_step : callable, optional
        Given the number of the step just taken, projects the variables or changes learning rates.
    when_flat : callable, optional
        Asked where the descent would end as flat; it goes on if this returns true, having changed something.
    """
    course = Descent()
    marker, since = math.inf, 0  # the loss that the next progress is measured from, and how long ago it was reached

    def evaluate() -> Tensor:
        loss = loss_of()
        value = float(loss.detach())
        if value < course.loss:
            course.best, course.loss = [variable.detach().clone() for variable in variables], value
            course.initial = course.initial if math.isfinite(course.initial) else value
        return loss

    def closure() -> Tensor:
        # A line search evaluates many times in one step and must not outlive the budget, but there must be an iterate.
        if course.best and budget.exhausted:
            raise _BudgetSpent
        optimiser.zero_grad(set_to_none=True)
        loss = scale * evaluate()
        gradients = torch.autograd.grad(loss, list(variables))
        for variable, gradient in zip(variables, gradients, strict=True):
            variable.grad = gradient
        if edit_gradient is not None:
            edit_gradient()
        return loss.detach()

    for iteration in range(config.iterations + 1):
        last = iteration == config.iterations
        try:
            loss = float(evaluate().detach()) if last else float(optimiser.step(closure)) / scale  # type: ignore[arg-type]
        except _BudgetSpent:
            course.stop_reason = "budget"
            break
        if not math.isfinite(loss):
            course.stop_reason = "non-finite"
            break
        course.iterations += not last
        since = 0 if course.loss < (1 - config.progress) * marker else since + 1
        marker = course.loss if since == 0 else marker
        budget.tick(iteration, loss)
        reason = end_reason(course.loss, since, budget, config)
        if reason == "flat" and when_flat is not None and when_flat():
            since, reason = 0, None
        if reason:
            course.stop_reason = reason
            break
        if not last and after_step is not None:
            after_step(iteration)
    return course


class _BudgetSpent(Exception):
    """Leaves an optimiser's step in the middle."""


def end_reason(loss: float, since: int, budget: Budget, config: MatchingConfig) -> str | None:
    """Return why a descent ends here, if it does."""
    if loss <= config.tolerance:
        return "converged"
    if config.patience is not None and since >= config.patience:
        return "flat"
    return "budget" if budget.exhausted else None
