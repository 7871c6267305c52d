"""L-BFGS with a strong-Wolfe line search for many independent problems, each with its own history, step and state.

It takes the same steps as :class:`torch.optim.LBFGS` on each problem alone, up to rounding. Each round evaluates every
problem once, at its own trial point, so that none waits for another's line search. The two loops over the history are
solved as two triangular systems in the products of its vectors, which read the history twice instead of four times.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence

import torch
from torch import Tensor

_DECREASE = 1e-4  # the Wolfe conditions' constants, as in PyTorch
_CURVATURE = 0.9
_LEAST_CURVATURE = 1e-10  # of a pair of steps; PyTorch forgets pairs below it

Trial = tuple[float, float]
Search = Generator[float, Trial, tuple[float, float, Tensor]]


class History:
    """The last steps of each problem, and how the gradient changed over them.

    Parameters
    ----------
    like : Tensor
        (N, D), gives the number of problems, their size, the device and the precision.
    size : int
        Steps that are remembered.
    """

    def __init__(self, like: Tensor, size: int) -> None:
        self._size, (count, width) = size, like.shape
        capacity = 2 * size
        self._steps = like.new_zeros(count, capacity, width)
        self._changes = like.new_zeros(count, capacity, width)
        eye = torch.eye(capacity, dtype=torch.float64, device=like.device)
        self._products = eye.repeat(count, 1, 1)  # step i times change j
        self._squares = torch.zeros_like(self._products)  # change i times change j
        self._scale = like.new_ones(count, dtype=torch.float64)
        self._first, self._end = [0] * count, [0] * count  # the window of rows in use

    def keep(self, rows: Sequence[int]) -> None:
        """Forget all problems but these."""
        at = torch.tensor(rows, device=self._scale.device)
        for name in ("_steps", "_changes", "_products", "_squares", "_scale"):
            setattr(self, name, getattr(self, name)[at])
        self._first, self._end = [self._first[row] for row in rows], [self._end[row] for row in rows]

    def directions(self, rows: Sequence[int], gradients: Tensor, steps: Tensor, changes: Tensor) -> Tensor:
        """Remember the problems' latest steps and return their next directions.

        Parameters
        ----------
        rows : sequence of int
            The M problems that ask.
        gradients, steps, changes : Tensor
            (M, D) each: the present gradient, the step that led here, and the gradient's change over it.

        Returns
        -------
        Tensor
            (M, D).
        """
        curvature = (steps * changes).sum(1)
        scale = (curvature / changes.square().sum(1)).double()
        stored = [at for at, value in enumerate(curvature.tolist()) if value > _LEAST_CURVATURE]
        for at in stored:
            row = rows[at]
            end = self._slot(row)
            self._steps[row, end], self._changes[row, end] = steps[at], changes[at]
            self._scale[row] = scale[at]
            self._end[row] = end + 1
        low, high = min(self._first[row] for row in rows), max(self._end[row] for row in rows)
        whole = len(rows) == len(self._first)
        chosen = slice(None) if whole else torch.tensor(rows, device=gradients.device)
        past, turns = self._steps[chosen, low:high], self._changes[chosen, low:high]
        pair = torch.stack([-gradients, changes], -1)
        by_step, by_change = (past @ pair).double(), (turns @ pair).double()
        for index in stored:
            row = rows[index]
            window, newest = slice(self._first[row], self._end[row]), self._end[row] - 1
            inside = slice(self._first[row] - low, self._end[row] - low)
            self._products[row, window, newest] = by_step[index, inside, 1]
            self._squares[row, window, newest] = self._squares[row, newest, window] = by_change[index, inside, 1]
        products, squares = self._products[chosen, low:high, low:high], self._squares[chosen, low:high, low:high]
        scale = self._scale[chosen]
        first = torch.linalg.solve_triangular(products, by_step[..., :1], upper=True)
        rest = scale[:, None, None] * (by_change[..., :1] - squares @ first)
        diagonal = products.diagonal(dim1=-2, dim2=-1)[..., None]
        second = torch.linalg.solve_triangular(products.mT, diagonal * first - rest, upper=False)
        weighted = (first[..., 0] * scale[:, None]).to(gradients)
        found = -scale[:, None].to(gradients) * gradients
        found -= (weighted[:, None] @ turns)[:, 0]
        found += (second.mT.to(gradients) @ past)[:, 0]
        return found

    def _slot(self, row: int) -> int:
        """Return the row that takes the next pair, with the oldest one forgotten where the history is full."""
        if self._end[row] - self._first[row] == self._size:
            self._forget(row, self._first[row])
            self._first[row] += 1
        if self._end[row] == self._steps.shape[1]:
            self._shift(row)
        return self._end[row]

    def _forget(self, row: int, oldest: int) -> None:
        self._steps[row, oldest], self._changes[row, oldest] = 0, 0
        self._products[row, oldest, :], self._products[row, :, oldest], self._products[row, oldest, oldest] = 0, 0, 1
        self._squares[row, oldest, :], self._squares[row, :, oldest] = 0, 0

    def _shift(self, row: int) -> None:
        """Move a problem's window to the beginning; once in so many steps as are remembered."""
        first, end = self._first[row], self._end[row]
        used = end - first
        for matrix in (self._steps, self._changes):
            moved = matrix[row, first:end].clone()
            matrix[row] = 0
            matrix[row, :used] = moved
        for square, empty in ((self._products, 1.0), (self._squares, 0.0)):
            inner = square[row, first:end, first:end].clone()
            square[row] = empty * torch.eye(square.shape[1], dtype=square.dtype, device=square.device)
            square[row, :used, :used] = inner
        self._first[row], self._end[row] = 0, used


def line_search(
    step: float, loss: float, slope: float, gradient: Tensor, reach: float, most: int, latest: list[Tensor]
) -> Search:
    """Search one direction for a step that meets the strong Wolfe conditions, as :class:`torch.optim.LBFGS` does.

    A generator: it yields steps to try, is sent the loss and the slope there, and finds the gradient in ``latest[0]``.

    Parameters
    ----------
    step : float
        To try first.
    loss, slope : float
        Where the search begins.
    gradient : Tensor
        (D,), there.
    reach : float
        Largest entry of the direction.
    most : int
        Evaluations after the first.
    latest : list of Tensor
        Of one: the gradient (D,) at the step that was tried last.

    Returns
    -------
    tuple of float, float and Tensor
        The step, and the loss and the gradient there.
    """
    before = (0.0, loss, gradient, slope)
    tried, done = 0, False
    value, tilt = _finite((yield step))
    bracket = [before, (step, value, latest[0], tilt)]
    while tried < most:
        here = (step, value, latest[0], tilt)
        if value > loss + _DECREASE * step * slope or (tried > 1 and value >= before[1]):
            bracket = [before, here]
            break
        if abs(tilt) <= -_CURVATURE * slope:
            bracket, done = [here], True
            break
        if tilt >= 0:
            bracket = [before, here]
            break
        following = _interpolate(before, here, (step + 0.01 * (step - before[0]), step * 10))
        before, step = here, following
        value, tilt = _finite((yield step))
        tried += 1
        if tried == most:
            bracket = [(0.0, loss, gradient, slope), (step, value, latest[0], tilt)]
    low = 0 if bracket[0][1] <= bracket[-1][1] else 1
    stuck = False
    while not done and tried < most and abs(bracket[1][0] - bracket[0][0]) * reach > 0:
        step, stuck = _inside(_interpolate(bracket[0], bracket[1]), bracket[0][0], bracket[1][0], stuck)
        value, tilt = _finite((yield step))
        tried += 1
        here = (step, value, latest[0], tilt)
        if value > loss + _DECREASE * step * slope or value >= bracket[low][1]:
            bracket[1 - low] = here
            low = 0 if bracket[0][1] <= bracket[1][1] else 1
            continue
        if abs(tilt) <= -_CURVATURE * slope:
            done = True
        elif tilt * (bracket[1 - low][0] - bracket[low][0]) >= 0:
            bracket[1 - low] = bracket[low]
        bracket[low] = here
    return bracket[low][:3]


def _finite(trial: Trial) -> Trial:
    return trial if math.isfinite(trial[0]) and math.isfinite(trial[1]) else (math.inf, math.inf)


def _inside(step: float, a: float, b: float, stuck: bool) -> tuple[float, bool]:
    """Keep a step off the bracket's ends if it came near them twice; return it and whether it did once."""
    least, largest = min(a, b), max(a, b)
    margin = 0.1 * (largest - least)
    if min(largest - step, step - least) >= margin:
        return step, False
    if stuck or step >= largest or step <= least:
        return (largest - margin if abs(step - largest) < abs(step - least) else least + margin), False
    return step, True


def _interpolate(
    one: tuple[float, float, Tensor, float], other: tuple[float, float, Tensor, float], bounds: tuple[float, float] | None = None
) -> float:
    """Return the minimum of the cubic through two points, within the bounds (the points by default)."""
    low, high = bounds or (min(one[0], other[0]), max(one[0], other[0]))
    first, second = (one, other) if one[0] <= other[0] else (other, one)
    width = second[0] - first[0]
    middle = first[3] + second[3] - 3 * (first[1] - second[1]) / (first[0] - second[0]) if width else math.nan
    root = middle * middle - first[3] * second[3]
    if not math.isfinite(root) or root < 0:
        return (low + high) / 2
    root = math.sqrt(root)
    below = second[3] - first[3] + 2 * root
    found = second[0] - width * ((second[3] + root - middle) / below) if below else math.nan
    return min(max(found, low), high) if math.isfinite(found) else (low + high) / 2
