"""Many descents of the same form in one tensor program: each start keeps its own step, best point, patience and end.

The loss is evaluated at one point of every start at once. Starts that have ended are left out as soon as a quarter has.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fedleak.attacks.base import Budget
from fedleak.attacks.matching.descent import Descent, MatchingConfig, end_reason
from fedleak.attacks.matching.lbfgs import History, line_search

Loss = Callable[[list[Tensor], list[Tensor]], Tensor]
"""From variables (N, ...) and data (N, ...), each with one row for each start, to losses (N,)."""


@dataclass
class Start:
    """One starting point, and what is done with it besides evaluating.

    Attributes
    ----------
    variables : list of Tensor
        Where it begins.
    optimiser : Optimizer
        Gives the parameters of its steps; it is not stepped itself.
    budget : Budget
        Told each iteration.
    iterations : int
        At most.
    edit_gradient : callable, optional
        Given the variables, changes their gradients before each step.
    after_step : callable, optional
        Given the step's number and the variables, changes them, or the optimiser's parameters.
    when_flat : callable, optional
        As in :func:`~fedleak.attacks.matching.descent.descend`.
    ended : callable, optional
        Whether another start has made this one needless.
    """

    variables: list[Tensor]
    optimiser: torch.optim.Optimizer
    budget: Budget
    iterations: int
    edit_gradient: Callable[[list[Tensor]], None] | None = None
    after_step: Callable[[int, list[Tensor]], None] | None = None
    when_flat: Callable[[], bool] | None = None
    ended: Callable[[], bool] = lambda: False
    course: Descent = field(default_factory=Descent)
    marker: float = math.inf
    since: int = 0


def known(optimiser: torch.optim.Optimizer) -> bool:
    """Whether this optimiser's steps can be taken for many starts at once."""
    if len(optimiser.param_groups) != 1:
        return False
    group = optimiser.param_groups[0]
    if type(optimiser) is torch.optim.LBFGS:
        exact = group["tolerance_grad"] == group["tolerance_change"] == 0
        return exact and group["line_search_fn"] == "strong_wolfe" and not group.get("maximize")
    plain = not (group.get("amsgrad") or group.get("maximize") or group.get("weight_decay"))
    return type(optimiser) is torch.optim.Adam and plain


def descend_together(
    loss_of: Loss, starts: Sequence[Start], data: Sequence[Tensor], config: MatchingConfig, clock: Budget, *, scale: float = 1.0
) -> list[Descent]:
    """Minimise the losses of all starts; for each it does what :func:`~fedleak.attacks.matching.descent.descend` does alone.

    Parameters
    ----------
    loss_of : callable
        Returns the losses (N,) of variables and data.
    starts : sequence of Start
        With variables of equal shapes, and optimisers of one kind that is :func:`known`.
    data : sequence of Tensor
        (N, ...) each: what else the losses depend on, one row for each start.
    config : MatchingConfig
        Tolerance, patience and progress.
    clock : Budget
        Ends all starts.
    scale : float
        The optimiser is given the losses times this.

    Returns
    -------
    list of Descent
        In the order of ``starts``.
    """
    program = _Program(loss_of, starts, data, config, clock, scale)
    with torch.no_grad():
        (_quasi_newton if isinstance(starts[0].optimiser, torch.optim.LBFGS) else _adam)(program)
    for start in starts:
        start.course.best = program.best_of(start)
    return [start.course for start in starts]


class _Program:
    """The starts that are still at work, a row for each, and what evaluating them has found."""

    def __init__(
        self, loss_of: Loss, starts: Sequence[Start], data: Sequence[Tensor], config: MatchingConfig, clock: Budget, scale: float
    ) -> None:
        self._loss_of, self._config, self._clock, self.scale = loss_of, config, clock, scale
        self.starts = list(starts)
        self._data = list(data)
        self._shapes = [tuple(value.shape) for value in starts[0].variables]
        self.points = torch.stack([torch.cat([value.detach().flatten() for value in s.variables]) for s in starts])
        self.gradients = torch.zeros_like(self.points)
        self._best = self.points.clone()
        self._lowest = torch.full((len(starts),), math.inf, dtype=torch.float64, device=self.points.device)
        self._kept: dict[int, Tensor] = {}
        self.over = [False] * len(starts)
        self.rounds = 0

    @property
    def out_of_time(self) -> bool:
        """Whether no CPU seconds are left."""
        return self._clock.exhausted

    def split(self, points: Tensor) -> list[Tensor]:
        """Return flat points (..., D) as views of the variables' shapes."""
        sizes = [math.prod(shape) for shape in self._shapes]
        parts = torch.split(points, sizes, -1)
        return [part.view(*part.shape[:-1], *shape) for part, shape in zip(parts, self._shapes, strict=True)]

    def evaluate(self, points: Tensor) -> list[float]:
        """Return the losses at the rows of ``points``, keep their gradients, and remember the best points."""
        with torch.enable_grad():
            leaf = points.detach().requires_grad_()
            losses = self._loss_of(self.split(leaf), self._data)
            (gradients,) = torch.autograd.grad(self.scale * losses.sum(), leaf)
        losses = losses.detach()
        better = losses < self._lowest
        self._best = torch.where(better[:, None], points, self._best)
        self._lowest = torch.where(better, losses.double(), self._lowest)
        self.gradients = gradients
        values: list[float] = losses.tolist()
        for row, (start, value) in enumerate(zip(self.starts, values, strict=True)):
            if self.over[row]:
                continue
            course = start.course
            course.loss = min(value, course.loss) if math.isfinite(value) else course.loss
            course.initial = value if not math.isfinite(course.initial) and math.isfinite(value) else course.initial
            if start.edit_gradient is not None:
                start.edit_gradient(self._with_gradients(points, row))
        self.rounds += 1
        return values

    def _with_gradients(self, points: Tensor, row: int) -> list[Tensor]:
        variables = [value.requires_grad_() for value in self.split(points[row].detach())]
        for variable, gradient in zip(variables, self.split(self.gradients[row]), strict=True):
            variable.grad = gradient
        return variables

    def variables(self, row: int) -> list[Tensor]:
        """Return one start's variables as views of its point."""
        return [value.requires_grad_() for value in self.split(self.points[row].detach())]

    def count(self, row: int, iteration: int, loss: float) -> bool:
        """Book one iteration, or the look at the last point, whose loss began at ``loss``; return whether it was the end."""
        start, course, config = self.starts[row], self.starts[row].course, self._config
        if not math.isfinite(loss):
            return self.end(row, "non-finite")
        course.iterations += iteration < start.iterations
        start.since = 0 if course.loss < (1 - config.progress) * start.marker else start.since + 1
        start.marker = course.loss if start.since == 0 else start.marker
        start.budget.tick(iteration, loss)
        reason = end_reason(course.loss, start.since, self._clock, config)
        if reason == "flat" and start.when_flat is not None and start.when_flat():
            start.since, reason = 0, None
        if reason:
            return self.end(row, reason)
        if start.ended() or iteration == start.iterations:
            return self.end(row, "iterations")
        return False

    def end(self, row: int, reason: str) -> bool:
        """Take one start out; its row stays until enough are out."""
        start = self.starts[row]
        start.course.stop_reason = reason
        self._kept[id(start)] = self._best[row].clone() if math.isfinite(start.course.loss) else self._best[row, :0]
        self.over[row] = True
        return True

    def best_of(self, start: Start) -> list[Tensor]:
        """Return the variables at a start's lowest loss; none if no loss was finite."""
        best = self._kept[id(start)]
        return [value.clone() for value in self.split(best)] if len(best) else []

    def thin(self) -> list[int] | None:
        """Leave ended rows out where a quarter has ended; return those that stay if any went."""
        rows = [row for row, over in enumerate(self.over) if not over]
        if not rows or 4 * len(rows) > 3 * len(self.over):
            return None
        at = torch.tensor(rows, device=self.points.device)
        for name in ("points", "gradients", "_best", "_lowest"):
            setattr(self, name, getattr(self, name)[at])
        self._data = [value[at] for value in self._data]
        self.starts = [self.starts[row] for row in rows]
        self.over = [False] * len(rows)
        return rows


def _adam(program: _Program) -> None:
    mean, square = torch.zeros_like(program.points), torch.zeros_like(program.points)
    step = 0
    while True:
        losses = program.evaluate(program.points)
        groups = [start.optimiser.param_groups[0] for start in program.starts]
        last = [step >= start.iterations for start in program.starts]
        beta, gamma = groups[0]["betas"]
        rates = torch.tensor([group["lr"] for group in groups]).to(program.points)[:, None]
        mean = torch.lerp(mean, program.gradients, 1 - beta)
        square = gamma * square + (1 - gamma) * program.gradients.square()
        size = square.sqrt() / math.sqrt(1 - gamma ** (step + 1)) + groups[0]["eps"]
        moved = program.points - rates / (1 - beta ** (step + 1)) * mean / size
        program.points = moved
        for row, start in enumerate(program.starts):
            if program.over[row] or program.count(row, step, losses[row]) or last[row] or start.after_step is None:
                continue
            start.after_step(step, program.variables(row))
        if all(program.over):
            return
        step += 1
        if (rows := program.thin()) is not None:
            mean, square = mean[rows], square[rows]


def _quasi_newton(program: _Program) -> None:
    walks = [_Walk(program, row) for row in range(len(program.starts))]
    directions = torch.zeros_like(program.points)
    while True:
        steps = torch.tensor([walk.step for walk in walks], dtype=torch.float64).to(directions)
        losses = program.evaluate(program.points + steps[:, None] * directions)
        slopes = (program.gradients * directions).sum(1).tolist()
        out_of_time = program.out_of_time
        turning = []
        for row, walk in enumerate(walks):
            if program.over[row]:
                continue
            if out_of_time:
                program.end(row, "budget")
            elif walk.proceed((program.scale * losses[row], slopes[row]), program.gradients[row], directions[row]):
                turning.append(row)
        while turning:
            turning = _turn(walks, directions, turning)
        if all(program.over):
            return
        if (rows := program.thin()) is not None:
            directions, walks = directions[rows], [walks[row] for row in rows]
            for row, walk in enumerate(walks):
                walk.row = row


def _turn(walks: Sequence[_Walk], directions: Tensor, rows: Sequence[int]) -> list[int]:
    """Give new directions to the starts that have ended a line search; return those that at once need another."""
    again = []
    for row in rows:
        walk, gradient = walks[row], walks[row].gradient
        if walk.before is None:
            found = -gradient
        else:
            found = walk.history.direction(gradient, walk.taken * directions[row], gradient - walk.before)
        directions[row] = found
        slope, reach, size = torch.stack([gradient @ found, found.abs().amax(), gradient.abs().sum()]).tolist()
        if walk.proceed((slope, reach, size), gradient, directions[row]):
            again.append(row)
    return again


class _Walk:
    """One start's way by L-BFGS, which counts iterations of ``max_iter`` steps as PyTorch's does.

    Attributes
    ----------
    row : int
        In the program.
    step : float
        Along the direction, to be evaluated next.
    taken : float
        The step of the line search that ended last.
    history : History
        Of its steps.
    gradient, before : Tensor
        (D,), where it is, and where that line search began (``None`` before the first).
    """

    def __init__(self, program: _Program, row: int) -> None:
        self.row, self.step, self.taken = row, 0.0, 0.0
        self.before: Tensor | None = None
        self.history = History(program.points[row], program.starts[row].optimiser.param_groups[0]["history_size"])
        self._latest = [program.gradients[row]]
        self._program = program
        self._start = program.starts[row]
        self._way = self._walk()
        next(self._way)

    @property
    def gradient(self) -> Tensor:
        """(D,), at the point where the start is."""
        return self._gradient

    def proceed(self, facts: tuple[float, ...], gradient: Tensor, direction: Tensor) -> bool:
        """Go on with what an evaluation (loss, slope) or a turn (slope, reach, sum) found; return whether to turn next."""
        if len(facts) == 2:
            self._latest[0] = gradient.clone()
        self._direction = direction
        try:
            step = self._way.send(facts)
        except StopIteration:
            return False
        self.step = step or 0.0
        return step is None

    def _walk(self) -> Generator[float | None, tuple[float, ...], None]:
        program, start, options = self._program, self._start, self._start.optimiser.param_groups[0]
        loss, _ = yield 0.0
        self._gradient = self._latest[0]
        for iteration in range(start.iterations):
            began, rounds = loss, program.rounds - 1
            for _ in range(options["max_iter"]):
                left = options["max_eval"] - (program.rounds - rounds)
                if left <= 0 or not math.isfinite(loss):
                    break
                slope, reach, size = yield None
                if not slope < 0:
                    self.before, self.taken = self._gradient, 0.0
                    break
                step = options["lr"] * (min(1.0, 1.0 / size) if self.before is None else 1.0)
                search = line_search(step, loss, slope, self._gradient, reach, left, self._latest)
                self.taken, loss, reached = yield from search
                program.points[self.row] += self.taken * self._direction
                self.before, self._gradient = self._gradient, reached
            if program.count(self.row, iteration, began / program.scale):
                return
            if start.after_step is not None:
                start.after_step(iteration, program.variables(self.row))
                loss, _ = yield 0.0
                self._gradient = self._latest[0]
        program.count(self.row, start.iterations, loss / program.scale)
