"""The inputs of a fully connected layer behind a ReLU, sharpened by their own zeros.

Formula: [dW | c db] = sum_k d_k [h_k | c] has the row space V; each h_k lies in it, is at least 0, and has many exact zeros: it
is the null vector of V restricted to the columns where it is 0, found anew while the threshold for a zero falls; D = dW pinv(H).
Source: fedleak's own; sparsity of ReLU layers as in SPEAR (Dimitrov et al., arXiv 2403.03945).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

THRESHOLDS = (3e-3, 1e-3, 3e-4, 1e-4, 1e-4, 1e-4)
"""Values below this part of the largest one count as zero, pass after pass."""
_PROGRAM_WEIGHTS = (0.1, 0.03, 0.01, 0.003)
_UNIQUE = 1e-3
"""Second smallest singular value, columns of unit norm, from which a null vector counts as the only one."""
_VISIBLE = 1e-5
"""Columns smaller than this part of the largest one are noise: units that are off for every sample."""
_SAME = 1e-2


@dataclass(frozen=True)
class RowSpace:
    """The row space of [dW | c db].

    Attributes
    ----------
    basis : Tensor
        (B, F) coordinates of each feature.
    columns : Tensor
        (B, M) those of visible features, scaled to unit norm.
    last : Tensor
        (B,) those of the constant feature.
    constant : float
        Its value c.
    """

    basis: Tensor
    columns: Tensor
    last: Tensor
    constant: float

    @classmethod
    def of(cls, weight_gradient: Tensor, bias_gradient: Tensor, size: int, constant: float) -> RowSpace:
        """Read the leading ``size`` directions of a layer's gradient (O, F) and (O,)."""
        stacked = torch.cat([weight_gradient, constant * bias_gradient[:, None]], dim=1)
        _, values, right = torch.linalg.svd(stacked, full_matrices=False)
        basis = right[:size, :-1]
        # In units of singular values, noise is of one size in all columns.
        norms = (values[:size, None] * basis).norm(dim=0)
        visible = norms > _VISIBLE * norms.max()
        columns = basis[:, visible] / basis[:, visible].norm(dim=0)
        return cls(basis, columns, right[:size, -1], constant)

    def values(self, q: Tensor) -> Tensor:
        """Return the features (..., M) that coordinates ``q`` (..., B) stand for, in units of their columns."""
        return q @ self.columns


def refit(h: Tensor, d: Tensor, weight_gradient: Tensor, bias_gradient: Tensor) -> tuple[Tensor, Tensor]:
    """Return features and derivatives (B, F) and (B, O), sharpened where the zeros tell all of them.

    Parameters
    ----------
    h : Tensor
        (B, F) first estimates of a ReLU's outputs.
    d : Tensor
        (B, O) first estimates of the derivatives of the mean loss by the layer's outputs.
    weight_gradient, bias_gradient : Tensor
        (O, F) and (O,) of the layer.

    Returns
    -------
    tuple of Tensor
        The arguments ``h`` and ``d`` again where a sample has too few zeros, or two samples come out alike.
    """
    size = len(h)
    if size > min(weight_gradient.shape) or size == 1:
        return h, d
    constant = float(h.square().mean().sqrt()) or 1.0
    space = RowSpace.of(weight_gradient, bias_gradient, size, constant)
    stacked = torch.cat([space.basis, space.last[:, None]], dim=1)
    found: list[Tensor] = []
    for sample in h:
        q = _sharpen(space, torch.cat([sample, sample.new_tensor([constant])]) @ stacked.mT)
        if q is None or any(float((q - other).norm()) < _SAME * float(q.norm()) for other in found):
            return h, d
        found.append(q)
    features = torch.stack(found) @ space.basis
    inverse = torch.linalg.pinv(torch.cat([features, features.new_full((size, 1), constant)], dim=1))
    return features, (torch.cat([weight_gradient, constant * bias_gradient[:, None]], dim=1) @ inverse).mT


def _sharpen(space: RowSpace, q: Tensor) -> Tensor | None:
    """Return the coordinates of the sparse feature vector near ``q`` (B,); ``None`` if there is none."""
    for weight in (None, *_PROGRAM_WEIGHTS):
        if weight is not None:
            attempt = _vertex(space, space.values(q).abs(), weight)
            if attempt is None:
                return None
            q = attempt
        sharp = zero_set(space, q)
        if sharp is not None:
            return sharp
    return None


def zero_set(space: RowSpace, q: Tensor) -> Tensor | None:
    """Return the null vector of the columns where ``q`` (B,) is nearly zero; ``None`` if they do not determine one."""
    size = len(q)
    for threshold in THRESHOLDS:
        h = space.values(q)
        zero = h.abs() < threshold * h.abs().max()
        if int(zero.sum()) < size:
            continue
        _, values, right = torch.linalg.svd(space.columns[:, zero].mT, full_matrices=False)
        q = right[-1]
        if float(values[-2]) < _UNIQUE or float((q @ space.last).abs()) < 1e-12:
            return None
        q = q * (space.constant / (q @ space.last))
    h = space.values(q)
    zeros = int((h.abs() < THRESHOLDS[-1] * h.abs().max()).sum())
    enough = max(2 * size, int(0.15 * h.numel()))
    return q if zeros >= enough and float(h.min()) >= -10 * THRESHOLDS[-1] * float(h.max()) else None


def _vertex(space: RowSpace, near: Tensor, weight: float) -> Tensor | None:
    """Return the non-negative feature vector with the least sum, small entries of ``near`` (M,) counting most."""
    from scipy.optimize import linprog  # slow to import, and few attacks come here

    cost = 1 / (near + weight * near.mean()).clamp_min(1e-300)
    columns = space.columns.cpu().numpy()
    solved = linprog(
        columns @ cost.cpu().numpy(),
        A_ub=-columns.T,
        b_ub=np.zeros(columns.shape[1]),
        A_eq=space.last.cpu().numpy()[None],
        b_eq=[space.constant],
        bounds=(None, None),
        method="highs",
    )
    return None if solved.x is None else torch.as_tensor(solved.x).to(near)
