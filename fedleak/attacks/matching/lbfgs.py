"""L-BFGS with a strong-Wolfe line search for many independent problems, each with its own history, step and state.

It takes the same steps as :class:`torch.optim.LBFGS` on each problem alone, up to rounding. Each round evaluates every
problem once, at its own trial point, so that none waits for another's line search. The two loops over the history are
solved as two triangular systems in the products of its vectors, a few large operations instead of many small ones.
"""

from __future__ import annotations

import math
from collections.abc import Generator

import torch
from torch import Tensor

_DECREASE = 1e-4  # the Wolfe conditions' constants, as in PyTorch
_CURVATURE = 0.9
_LEAST_CURVATURE = 1e-10  # of a pair of steps; PyTorch forgets pairs below it

Trial = tuple[float, float]
Search = Generator[float, Trial, tuple[float, float, Tensor]]


class History:
    """The last steps of one problem, and how the gradient changed over them.

    Parameters
    ----------
    like : Tensor
        (D,), gives the size, the device and the precision.
    size : int
        Steps that are remembered.
    """

    def __init__(self, like: Tensor, size: int) -> None:
        capacity = 2 * size
        self._size, self._scale = size, 1.0
        # Zeroed memory is not touched before it is used.
        self._steps, self._changes = like.new_zeros(capacity, len(like)), like.new_zeros(capacity, len(like))
        self._products = like.new_zeros(capacity, capacity, dtype=torch.float64)  # step i times change j
        self._squares = torch.zeros_like(self._products)  # change i times change j
        self._window = slice(0, 0)

    def direction(self, gradient: Tensor, step: Tensor, change: Tensor) -> Tensor:
        """Remember the latest step and return the next direction (D,).

        Parameters
        ----------
        gradient, step, change : Tensor
            (D,) each: the present gradient, the step that led here, and the gradient's change over it.
        """
        curvature, square = float(step @ change), float(change @ change)
        if stored := curvature > _LEAST_CURVATURE:
            self._store(step, change)
            self._scale = curvature / square
        used = self._window
        if used.start == used.stop:
            return -gradient
        past, turns = self._steps[used], self._changes[used]
        pair = torch.stack([-gradient, change], -1)
        by_step, by_change = (past @ pair).double(), (turns @ pair).double()
        if stored:
            self._products[used, used.stop - 1] = by_step[:, 1]
            self._squares[used, used.stop - 1] = self._squares[used.stop - 1, used] = by_change[:, 1]
        products = self._products[used, used]
        first = torch.linalg.solve_triangular(products, by_step[:, :1], upper=True)
        rest = self._scale * (by_change[:, :1] - self._squares[used, used] @ first)
        second = torch.linalg.solve_triangular(products.mT, products.diagonal()[:, None] * first - rest, upper=False)
        found: Tensor = (second.to(gradient).mT @ past)[0]
        rest = (first.to(gradient).mT @ turns)[0]
        found -= self._scale * (gradient + rest)
        return found

    def _store(self, step: Tensor, change: Tensor) -> None:
        first, end = self._window.start, self._window.stop
        first += end - first == self._size
        if end == len(self._steps):
            # The window moves back to the beginning, once in so many steps as are remembered.
            kept = end - first
            for rows in (self._steps, self._changes):
                rows[:kept] = rows[first:end].clone()
            for square in (self._products, self._squares):
                square[:kept, :kept] = square[first:end, first:end].clone()
            first, end = 0, kept
        self._steps[end], self._changes[end] = step, change
        self._window = slice(first, end + 1)


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
