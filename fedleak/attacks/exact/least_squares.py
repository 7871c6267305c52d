"""Levenberg-Marquardt on the softmax equations of a classifier's gradient, for many starts in one tensor program.

Formula: (A + lambda diag A) step = g, A = J^T J, g = J^T r, lambda smaller after a success and larger after a failure.
Source: Marquardt (1963); the equations are those of ``separation.py``. A comes from its blocks, without the Jacobian J.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

_FIRST_DAMPING, _LEAST_DAMPING, _MOST_DAMPING = 1e-2, 1e-14, 1e5
_BETTER, _WORSE = 0.2, 6.0
_WARM_UP = 6
_FLAT = 1e-9


@dataclass(frozen=True)
class Point:
    """The residuals at n candidate solutions.

    Attributes
    ----------
    q : Tensor
        (n, B, K) candidates.
    probabilities : Tensor
        (n, B, N) softmax of their logits.
    derivatives : Tensor
        (n, B, N): probabilities minus one-hot labels, times each sample's share of the mean.
    misfit : Tensor
        (n, N, K): D^T Q minus the target, not weighted.
    offset : Tensor
        (n, B): constant feature minus what it should be.
    below : Tensor or None
        (n, B, F): features below zero, where they must not be.
    cost : Tensor
        (n,) weighted sum of squares.
    """

    q: Tensor
    probabilities: Tensor
    derivatives: Tensor
    misfit: Tensor
    offset: Tensor
    below: Tensor | None
    cost: Tensor


@dataclass(frozen=True)
class SoftmaxSystem:
    """The equations D(Q)^T Q = target, Q last = constant, and V Q^T >= 0 if there is a floor.

    Attributes
    ----------
    target : Tensor
        (N, K).
    logits : Tensor
        (N, K): logits are Q times its transpose.
    last : Tensor
        (K,): the constant feature is Q times it.
    constant : float
        What the constant feature should be.
    onehot : Tensor
        (B, N).
    share : Tensor
        (B,): of each sample in the mean; sums to 1.
    columns : Tensor
        (K,) weights of the target's columns.
    floor : Tensor, optional
        (F, K): features, which must not be negative, are Q times its transpose.
    floor_weight : float
        Weight of a feature's amount below zero.
    """

    target: Tensor
    logits: Tensor
    last: Tensor
    constant: float
    onehot: Tensor
    share: Tensor
    columns: Tensor
    floor: Tensor | None = None
    floor_weight: float = 0.0

    def with_columns(self, columns: Tensor) -> SoftmaxSystem:
        """Return the same equations with other column weights."""
        return replace(self, columns=columns)

    def with_floor(self, floor: Tensor, weight: float) -> SoftmaxSystem:
        """Return the same equations with features bounded below by zero."""
        return replace(self, floor=floor, floor_weight=weight)

    def at(self, q: Tensor) -> Point:
        """Return the residuals at ``q`` (n, B, K)."""
        probabilities = torch.softmax(q @ self.logits.mT, dim=-1)
        derivatives = (probabilities - self.onehot) * self.share[:, None]
        misfit = derivatives.mT @ q - self.target
        offset = q @ self.last - self.constant
        cost = (misfit * self.columns).square().sum((1, 2)) + offset.square().sum(1)
        below = None
        if self.floor is not None:
            below = (q @ self.floor.mT).clamp_max(0)
            cost = cost + self.floor_weight**2 * below.square().sum((1, 2))
        return Point(q, probabilities, derivatives, misfit, offset, below, cost)

    def normal(self, point: Point) -> tuple[Tensor, Tensor]:
        """Return J^T J (n, B * K, B * K) and J^T r (n, B * K) for the residuals r at ``point``.

        With J_k the derivative of d_k by q_k and w the column weights, the block of samples k and l is
        (J_k^T J_l) (w q_k . w q_l) + (J_k^T d_l) (w^2 q_k)^T + (w^2 q_l) (J_l^T d_k)^T + diag(w^2) (d_k . d_l).
        """
        n, size, rank = point.q.shape
        squared = self.columns.square()
        mean = point.probabilities @ self.logits
        slopes = point.probabilities[..., None] * (self.logits - mean[:, :, None]) * self.share[:, None, None]
        flat = slopes.permute(0, 2, 1, 3).reshape(n, -1, size * rank)
        weighted = point.q * squared
        normal = (flat.mT @ flat).view(n, size, rank, size, rank)
        normal = normal * (weighted @ point.q.mT)[:, :, None, :, None]
        mixed = (flat.mT @ point.derivatives.mT).view(n, size, rank, size, 1) * weighted[:, :, None, None, :]
        normal += mixed + mixed.permute(0, 3, 4, 1, 2)
        inner = point.derivatives @ point.derivatives.mT
        normal.diagonal(dim1=2, dim2=4).add_(inner[..., None] * squared)
        own = self.last[:, None] * self.last
        gradient = torch.einsum("nkci,nkc->nki", slopes, (point.misfit @ weighted.mT).mT)
        gradient = gradient + point.derivatives @ point.misfit * squared + point.offset[..., None] * self.last
        blocks = normal.diagonal(dim1=1, dim2=3)
        blocks += own[None, :, :, None]
        if self.floor is not None and point.below is not None:
            active = self.floor * (point.below < 0)[..., None]
            blocks += self.floor_weight**2 * (active.mT @ self.floor).permute(0, 2, 3, 1)
            gradient = gradient + self.floor_weight**2 * point.below @ self.floor
        return normal.reshape(n, size * rank, size * rank), gradient.reshape(n, -1)


def minimise(system: SoftmaxSystem, start: Tensor, iterations: int) -> tuple[Tensor, Tensor]:
    """Descend from each of n starting points.

    Parameters
    ----------
    system : SoftmaxSystem
        The equations.
    start : Tensor
        (n, B, K).
    iterations : int
        At most so many for each start.

    Returns
    -------
    tuple of Tensor
        Solutions (n, B, K) and their costs (n,).
    """
    best, costs = start.clone(), torch.full_like(start[:, 0, 0], torch.inf)
    active = torch.arange(len(start), device=start.device)
    point, damping = system.at(start), torch.full_like(costs, _FIRST_DAMPING)
    for iteration in range(iterations):
        normal, gradient = system.normal(point)
        diagonal = normal.diagonal(dim1=1, dim2=2)
        shift = diagonal * damping[:, None] + 1e-17 * diagonal.amax(1, keepdim=True)
        factor, info = torch.linalg.cholesky_ex(normal + torch.diag_embed(shift))
        definite = info == 0
        factor = torch.where(definite[:, None, None], factor, torch.eye(factor.shape[-1], dtype=factor.dtype, device=factor.device))
        step = torch.cholesky_solve(gradient[..., None], factor)[..., 0].view_as(point.q)
        attempt = system.at(point.q - step)
        success = (attempt.cost < point.cost) & definite
        gain = torch.where(success, point.cost - attempt.cost, torch.inf)
        point = _choose(success, attempt, point)
        damping = torch.where(success, damping * _BETTER, damping * _WORSE).clamp_min(_LEAST_DAMPING)
        best[active], costs[active] = point.q, point.cost
        if iteration >= _WARM_UP:
            going = (gain > _FLAT * point.cost) & (damping < _MOST_DAMPING)
            if not bool(going.any()):
                break
            active, damping, point = active[going], damping[going], _select(going, point)
    return best, costs


def _choose(first: Tensor, a: Point, b: Point) -> Point:
    """Return, for each candidate, that of ``a`` where ``first`` and that of ``b`` elsewhere."""

    def where(x: Tensor, y: Tensor) -> Tensor:
        return torch.where(first.view(-1, *(1,) * (x.dim() - 1)), x, y)

    below = None if a.below is None or b.below is None else where(a.below, b.below)
    parts = (where(getattr(a, name), getattr(b, name)) for name in ("q", "probabilities", "derivatives", "misfit", "offset"))
    return Point(*parts, below, where(a.cost, b.cost))


def _select(mask: Tensor, point: Point) -> Point:
    below = None if point.below is None else point.below[mask]
    parts = (getattr(point, name)[mask] for name in ("q", "probabilities", "derivatives", "misfit", "offset"))
    return Point(*parts, below, point.cost[mask])
