"""Separates the samples behind a ReLU layer's gradient by the zeros of their derivatives.

Formula: find q with U q sparse: q <- argmin q^T U^T diag(1 / ((U q)^2 + e^2)) U q, e falling; then q = null vector of the rows
where U q = 0. Starts: inverse of an estimate A of the unmixing matrix, null vectors of the rows that A says are off, and
random rows. A sample is accepted if one half-space in the B unknowns of its image explains which units are on.
Source: SPEAR (Dimitrov et al., arXiv 2403.03945) for the zeros; fedleak's own for the search, which starts from ICA.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

_TINY_ROW = 1e-6
_PARALLEL = 1e-9
_SAME = 1e-9
_NEAR = 1e-6
_EXPLAINED = 0.985


@dataclass(frozen=True)
class Rows:
    """The units that are on for some sample, scaled to unit rows.

    Attributes
    ----------
    left : Tensor
        (N, B) unit rows of U.
    distinct : Tensor
        (N', B) the same without parallel ones: units that are on for one sample alone give the same row each.
    response : Tensor
        (N, B) pre-activations of the right singular vectors, bias included.
    """

    left: Tensor
    distinct: Tensor
    response: Tensor

    @classmethod
    def of(cls, left: Tensor, response: Tensor) -> Rows:
        """Scale the rows of ``left`` (M, B) and leave those out that are off for all samples."""
        norm = left.norm(dim=1)
        alive = norm > _TINY_ROW * norm.max()
        unit = left[alive] / norm[alive, None]
        parallel = ((unit @ unit.mT).abs().triu(1) > 1 - _PARALLEL).any(dim=0)
        return cls(unit, unit[~parallel], response[alive] / response[alive].square().mean().sqrt())


def sparsify(rows: Tensor, starts: Tensor, begin: float = 0.3, end: float = 1e-4, iterations: int = 25) -> Tensor:
    """Return unit directions (S, B) near ``starts`` (S, B) for which ``rows @ direction`` has many zeros."""
    outer = (rows[:, :, None] * rows[:, None, :]).flatten(1)
    identity = torch.eye(rows.shape[1]).to(rows)
    found: Tensor = starts / starts.norm(dim=1, keepdim=True)
    for step in range(iterations):
        width = begin * (end / begin) ** (step / max(iterations - 1, 1))
        values = found @ rows.mT
        weights = 1 / (values.square() + (width * values.square().mean(1, keepdim=True).sqrt()) ** 2)
        matrix = (weights @ outer).reshape(-1, *identity.shape)
        matrix = matrix + 1e-13 * matrix.diagonal(dim1=1, dim2=2).mean(1)[:, None, None] * identity
        factor = torch.linalg.cholesky_ex(matrix)[0]
        for _ in range(2):
            solved = torch.cholesky_solve(found[:, :, None], factor)[:, :, 0]
            size = solved.norm(dim=1, keepdim=True)
            good = size.isfinite() & (size > 0)
            found = torch.where(good, solved / torch.where(good, size, torch.ones_like(size)), found)
    return found


def refit(rows: Tensor, direction: Tensor, tolerance: float) -> tuple[Tensor, int] | None:
    """Return the null vector of the rows where ``direction`` (B,) vanishes, and how many these are; ``None`` if too few."""
    for factor in (1000, 100, 10, 1):
        zero = (rows @ direction).abs() < factor * tolerance
        if int(zero.sum()) < len(direction) + 2:
            return None
        _, size, right = torch.linalg.svd(rows[zero], full_matrices=False)
        # A second null vector: the zeros do not fix the direction.
        if len(direction) > 1 and float(size[-2]) < 1e-3 * float(size[0]):
            return None
        direction = right[-1]
    return direction, int(((rows @ direction).abs() < tolerance).sum())


def explained(rows: Rows, directions: Tensor, tolerance: float) -> Tensor:
    """Return for each direction (S, B) the share of units whose being on or off one image in the row space explains.

    It is the accuracy of a linear classifier in B unknowns, by Newton's method on the logistic loss.
    """
    signs = ((directions @ rows.left.mT).abs() > 3 * tolerance).to(rows.left) * 2 - 1
    response = rows.response
    outer = (response[:, :, None] * response[:, None, :]).flatten(1)
    identity = torch.eye(response.shape[1]).to(response)
    found = torch.zeros_like(directions)
    for step in range(30):
        # From a heavy ridge to a light one: Newton's method without it overshoots where the classes separate.
        ridge = 0.7**step
        off = torch.sigmoid(-(found @ response.mT) * signs)
        hessian = ((off * (1 - off)) @ outer).reshape(-1, *identity.shape) + ridge * identity
        found = found + torch.linalg.solve(hessian, (off * signs) @ response - ridge * found)
    return ((found @ response.mT) * signs > 0).to(signs).mean(1)


def separate(
    rows: Rows,
    estimate: Tensor,
    size: Tensor,
    remix: Callable[[Tensor], Tensor],
    *,
    generator: torch.Generator,
    noise: float,
    rounds: int,
    samples: int,
    out_of_time: Callable[[], bool],
) -> tuple[Tensor, int]:
    """Return derivatives' directions Q (B, B), a column a sample, and how many of the first of them are exact.

    Parameters
    ----------
    rows : Rows
        Of B columns.
    estimate : Tensor
        (B, B) first guess A of the matrix whose rows turn right singular vectors into images.
    size : Tensor
        (B,) singular values.
    remix : callable
        Takes rows of A (F, B) that span the images not yet found, and returns better ones.
    noise : float
        Relative noise of the gradient.
    rounds, samples : int
        Passes at most, and random starts in each.
    """
    # With two samples all units that are on for one of them give the same row: only their number counts.
    rows = rows if len(size) > 2 else Rows(rows.left, rows.left, rows.response)
    count, tolerance = len(size), max(1e-6, 3 * noise)
    exact: list[Tensor] = []
    rest = estimate
    for number in range(rounds):
        guess = size[:, None] * torch.linalg.pinv(estimate)
        starts = [guess.mT, _off_rows(rows, estimate)]
        if number:
            starts += _random(rows, guess.mT, rest, samples, generator)
        exact = _accept(rows, exact, sparsify(rows.distinct, torch.cat(starts)), tolerance)
        if len(exact) >= count or out_of_time():
            break
        if exact:
            mine, rest = _arrange(estimate, torch.stack(exact, dim=1) / size[:, None])
            estimate = torch.cat([mine, remix(rest)])
    if not exact:
        return size[:, None] * torch.linalg.pinv(estimate), 0
    known = torch.stack(exact[:count], dim=1)
    if known.shape[1] == count:
        return known, count
    full = size[:, None] * torch.linalg.pinv(torch.cat(_arrange(estimate, known / size[:, None])))
    return torch.cat([known, full[:, known.shape[1] :]], dim=1), known.shape[1]


def _accept(rows: Rows, exact: list[Tensor], found: Tensor, tolerance: float) -> list[Tensor]:
    """Return ``exact`` with those of ``found`` (S, B) that are new, sparse and explained, the sparsest first."""
    candidates: list[tuple[int, Tensor]] = []
    zeros = ((found @ rows.distinct.mT).abs() < 100 * tolerance).sum(1)
    order = zeros.argsort(descending=True, stable=True)
    found = found[order[zeros[order] >= found.shape[1] + 2]]
    # Most starts end where others did: each end is looked at once, or the samples found hide those that are not.
    seen = list(exact)
    while len(found) and len(candidates) < 4 * found.shape[1]:
        if seen:
            found = found[((found @ torch.stack(seen).mT).abs() < 1 - _NEAR).all(1)]
        if not len(found):
            break
        fitted = refit(rows.distinct, found[0], tolerance)
        seen = [found[0]] if fitted is None else [found[0], fitted[0]]
        if fitted is not None and not any(abs(float(fitted[0] @ other)) > 1 - _SAME for other in exact):
            candidates.append((fitted[1], fitted[0]))
    if not candidates:
        return exact
    shares = explained(rows, torch.stack([direction for _, direction in candidates]), tolerance)
    ranked = sorted(zip(candidates, shares.tolist(), strict=True), key=lambda pair: -pair[0][0])
    for (_, direction), share in ranked:
        if share >= _EXPLAINED and len(exact) < len(direction) and _independent(exact, direction):
            exact = [*exact, direction]
    return exact


def _independent(exact: list[Tensor], direction: Tensor) -> bool:
    if not exact:
        return True
    basis = torch.linalg.qr(torch.stack(exact, dim=1))[0]
    return float((direction - basis @ (basis.mT @ direction)).norm()) > 1e-3


def _off_rows(rows: Rows, estimate: Tensor) -> Tensor:
    """Return the directions that vanish best on the units that each row of ``estimate`` says are off."""
    off = (estimate @ rows.response.mT <= 0).to(rows.left)
    outer = (rows.left[:, :, None] * rows.left[:, None, :]).flatten(1)
    vectors: Tensor = torch.linalg.eigh((off @ outer).reshape(-1, estimate.shape[1], estimate.shape[1]))[1]
    return vectors[:, :, 0]


def _random(rows: Rows, guess: Tensor, rest: Tensor, samples: int, generator: torch.Generator) -> list[Tensor]:
    """Return null vectors of random B - 1 rows, the guess disturbed, and what random mixtures of ``rest`` say is off."""

    def draw(count: int, size: int) -> Tensor:
        return torch.randn(count, size, generator=generator, dtype=torch.float64).to(guess)

    size, distinct = guess.shape[1], rows.distinct
    nearby = guess.repeat(max(1, samples // len(guess)), 1)
    nearby = nearby / nearby.norm(dim=1, keepdim=True)
    starts = [nearby + 0.3 * draw(*nearby.shape) / size**0.5]
    # Few samples left to find: their images span a small space, in which random images are near to one of them.
    basis = torch.linalg.qr(rest.mT)[0].mT
    starts.append(_off_rows(rows, draw(samples, len(basis)) @ basis))
    if size <= len(distinct):
        chosen = torch.rand(samples, len(distinct), generator=generator).argsort(1)[:, : size - 1].to(distinct.device)
        starts.append(torch.linalg.qr(distinct[chosen].mT, mode="complete")[0][:, :, -1])
    return starts


def _arrange(estimate: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
    """Return the rows of ``estimate`` that belong to the ``known`` columns (B, F), made dual to these, and the other rows.

    The others, made orthogonal to the known columns, are mixtures of the other images alone.
    """
    overlap = (estimate @ known).abs() / estimate.norm(dim=1, keepdim=True)
    left, taken = list(range(len(estimate))), []
    for column in range(known.shape[1]):
        taken.append(max(left, key=lambda row: float(overlap[row, column])))
        left.remove(taken[-1])
    inverse = torch.linalg.pinv(known)
    mine, rest = estimate[taken], estimate[left]
    product = mine @ known
    return mine + (torch.diag(product.diagonal()) - product) @ inverse, rest - rest @ known @ inverse
