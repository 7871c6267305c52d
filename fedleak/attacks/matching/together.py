"""Descents of the same form in one tensor program: each start keeps its own step, best point, patience and end.

The loss is evaluated at one point of every start at once. One start by itself is stepped by its optimiser, whichever that is;
of many, the steps are those that PyTorch's Adam or L-BFGS would take with each. Starts that have ended are left out as soon as
a quarter has.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Sequence

import torch
from torch import Tensor

from fedleak.attacks.base import Budget
from fedleak.attacks.matching.descent import Descent, MatchingConfig, Start, end_reason, slows_down_above
from fedleak.attacks.matching.lbfgs import History, line_search

Loss = Callable[[list[Tensor], list[Tensor]], Tensor]
"""From variables (N, ...) and data (N, ...), each with one row for each start, to losses (N,)."""


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


def descend(
    loss_of: Loss, starts: Sequence[Start], data: Sequence[Tensor], config: MatchingConfig, clock: Budget, *, scale: float = 1.0
) -> list[Descent]:
    """Minimise the losses of all starts within the budget; keep each start's best point evaluated, by that loss.

    Parameters
    ----------
    loss_of : callable
        Returns the losses (N,) of variables and data.
    starts : sequence of Start
        With variables of equal shapes; of more than one, the optimisers are of one kind that is :func:`known`.
    data : sequence of Tensor
        (N, ...) each: what else the losses depend on, one row for each start.
    config : MatchingConfig
        Tolerance, patience and progress.
    clock : Budget
        Ends all starts.
    scale : float
        The optimiser is given the losses times this; losses are reported without it.

    Returns
    -------
    list of Descent
        In the order of ``starts``.
    """
    program = _Program(loss_of, starts, data, config, clock, scale)
    with torch.no_grad():
        if len(starts) == 1:
            _single(program)
        elif isinstance(program.optimisers[0], torch.optim.LBFGS):
            _quasi_newton(program)
        else:
            _adam(program)
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
        self._marker = [math.inf] * len(starts)  # the loss that the next progress is measured from
        self._since = [0] * len(starts)  # and how many iterations ago it was reached
        self._trails: list[list[float]] = [[] for _ in starts]
        self._data = list(data)
        self._shapes = [tuple(value.shape) for value in starts[0].variables]
        self.points = torch.stack([torch.cat([value.detach().flatten() for value in s.variables]) for s in starts])
        self.gradients = torch.zeros_like(self.points)
        self.losses = self.points.new_zeros(len(starts))
        self._best = self.points.clone()
        self._lowest = torch.full((len(starts),), math.inf, dtype=torch.float64, device=self.points.device)
        self._kept: dict[int, Tensor] = {}
        self.over = [False] * len(starts)
        self.rounds = 0
        self.moved = [self.variables(row) for row in range(len(starts))]
        self.optimisers = [start.optimiser(moved) for start, moved in zip(starts, self.moved, strict=True)]

    @property
    def out_of_time(self) -> bool:
        """Whether no CPU seconds are left."""
        return self._clock.exhausted

    def split(self, points: Tensor) -> list[Tensor]:
        """Return flat points (..., D) as views of the variables' shapes."""
        sizes = [math.prod(shape) for shape in self._shapes]
        parts = torch.split(points, sizes, -1)
        return [part.view((*part.shape[:-1], *shape)) for part, shape in zip(parts, self._shapes, strict=True)]

    def evaluate(self, points: Tensor, differentiate: bool = True) -> list[float]:
        """Return the losses at the rows of ``points``, keep their gradients, and remember the best points."""
        with torch.enable_grad():
            leaf = points.detach().requires_grad_()
            losses = self._loss_of(self.split(leaf), self._data)
            if differentiate:
                (self.gradients,) = torch.autograd.grad(self.scale * losses.sum(), leaf)
        self.losses = losses = losses.detach()
        better = losses < self._lowest
        self._best = torch.where(better[:, None], points, self._best)
        self._lowest = torch.where(better, losses.double(), self._lowest)
        values: list[float] = losses.tolist()
        for row, (start, value) in enumerate(zip(self.starts, values, strict=True)):
            if self.over[row]:
                continue
            course = start.course
            course.loss = min(value, course.loss) if math.isfinite(value) else course.loss
            course.initial = value if not math.isfinite(course.initial) and math.isfinite(value) else course.initial
            if differentiate and start.hooks.edit_gradient is not None:
                self._edit(start.hooks.edit_gradient, points, row)
        self.rounds += 1
        return values

    def _edit(self, edit: Callable[[list[Tensor]], None], points: Tensor, row: int) -> None:
        variables = [value.requires_grad_() for value in self.split(points[row].detach())]
        for variable, gradient in zip(variables, self.split(self.gradients[row]), strict=True):
            variable.grad = gradient
        with torch.enable_grad():
            edit(variables)
        self.gradients[row] = torch.cat([v.new_zeros(v.numel()) if v.grad is None else v.grad.flatten() for v in variables])

    def variables(self, row: int) -> list[Tensor]:
        """Return one start's variables as views of its point."""
        return [value.requires_grad_() for value in self.split(self.points[row].detach())]

    def count(self, row: int, iteration: int, loss: float) -> bool:
        """Book one iteration, or the look at the last point, whose loss began at ``loss``; return whether it was the end."""
        start, course, config = self.starts[row], self.starts[row].course, self._config
        if not math.isfinite(loss):
            return self.end(row, "non-finite")
        course.iterations += iteration < start.iterations
        self._since[row] = 0 if course.loss < (1 - config.progress) * self._marker[row] else self._since[row] + 1
        self._marker[row] = course.loss if self._since[row] == 0 else self._marker[row]
        start.budget.tick(iteration, loss)
        self._trails[row].append(course.loss)
        reason = end_reason(course.loss, self._since[row], self._clock, config)
        if reason is None and start.stuck is not None and slows_down_above(start.stuck, self._trails[row]):
            return self.end(row, "flat")
        when_flat = start.hooks.when_flat
        if reason == "flat" and when_flat is not None and when_flat(self.optimisers[row]):
            self._since[row], reason = 0, None
        if reason:
            return self.end(row, reason)
        if start.ended() or iteration == start.iterations:
            return self.end(row, "iterations")
        return False

    def after_step(self, row: int, iteration: int) -> None:
        """Do what is done after each step; it may change the point and the optimiser's parameters."""
        hook = self.starts[row].hooks.after_step
        if hook is not None:
            hook(iteration, self.variables(row), self.optimisers[row])

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
        for name in ("starts", "optimisers", "_marker", "_since", "_trails"):
            setattr(self, name, [getattr(self, name)[row] for row in rows])
        self._data = [value[at] for value in self._data]
        self.over = [False] * len(rows)
        return rows


def _single(program: _Program) -> None:
    """Take one start's steps by its optimiser itself, which is stepped with a closure."""
    start, optimiser, variables = program.starts[0], program.optimisers[0], program.moved[0]

    def closure() -> Tensor:
        # A line search evaluates many times in one step and must not outlive the budget, but there must be an iterate.
        if math.isfinite(start.course.loss) and program.out_of_time:
            raise _BudgetSpent
        program.evaluate(program.points)
        for variable, gradient in zip(variables, program.split(program.gradients[0]), strict=True):
            variable.grad = gradient
        return program.scale * program.losses[0]

    for iteration in range(start.iterations + 1):
        try:
            if iteration == start.iterations:
                [loss] = program.evaluate(program.points, differentiate=False)
            else:
                loss = float(optimiser.step(closure)) / program.scale  # type: ignore[arg-type]
        except _BudgetSpent:
            program.end(0, "budget")
            return
        if program.count(0, iteration, loss):
            return
        program.after_step(0, iteration)


class _BudgetSpent(Exception):
    """Leaves an optimiser's step in the middle."""


def _adam(program: _Program) -> None:
    mean, square = torch.zeros_like(program.points), torch.zeros_like(program.points)
    step = 0
    while True:
        losses = program.evaluate(program.points)
        groups = [optimiser.param_groups[0] for optimiser in program.optimisers]
        beta, gamma = groups[0]["betas"]
        rates = torch.tensor([group["lr"] for group in groups]).to(program.points)[:, None]
        mean = torch.lerp(mean, program.gradients, 1 - beta)
        square = gamma * square + (1 - gamma) * program.gradients.square()
        size = square.sqrt() / math.sqrt(1 - gamma ** (step + 1)) + groups[0]["eps"]
        moved = program.points - rates / (1 - beta ** (step + 1)) * mean / size
        program.points = moved
        for row in range(len(program.starts)):
            if not program.over[row] and not program.count(row, step, losses[row]):
                program.after_step(row, step)
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
        self.history = History(program.points[row], program.optimisers[row].param_groups[0]["history_size"])
        self._latest = [program.gradients[row]]
        self._program = program
        self._start, self._options = program.starts[row], program.optimisers[row].param_groups[0]
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
        program, start, options = self._program, self._start, self._options
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
            if start.hooks.after_step is not None:
                program.after_step(self.row, iteration)
                loss, _ = yield 0.0
                self._gradient = self._latest[0]
        program.count(self.row, start.iterations, loss / program.scale)
