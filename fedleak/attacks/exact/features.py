"""One image's features, logit derivatives and label from the classifier's gradient.

Formula: dW = d h^T, db = d with d = softmax(W h + b) - onehot(label); [dW | db] has rank 1, and its last column sets the
scale. Without a bias the scale t solves softmax(W h / t + b) - onehot = t d.
Source: R-GAP (Zhu and Blaschko, arXiv 2010.07733); Geiping et al. (arXiv 2003.14053), proposition 3.1.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fedleak.errors import AttackError

_RANK_TOLERANCE = 1e-5
_NOISE_FACTOR = 3.0


@dataclass(frozen=True)
class Features:
    """What the classifier's gradient tells of the one image behind it.

    Attributes
    ----------
    h : Tensor
        (F,) input of the classifier.
    d : Tensor
        (N,) derivative of the loss by the logits.
    label : int
        The class whose derivative is negative.
    noise : float
        Norm of the noise in the gradient relative to the gradient's; about 1e-7 for plain float32.
    """

    h: Tensor
    d: Tensor
    label: int
    noise: float


def classifier_features(
    weight: Tensor, gradient: Tensor, bias_gradient: Tensor | None, label: int | None, *, softmax: bool = True
) -> Features:
    """Return the features behind a classifier's gradient.

    Parameters
    ----------
    weight, gradient : Tensor
        (N, F), float64.
    bias_gradient : Tensor or None
        (N,), float64.
    label : int or None
        If known; otherwise read off the signs.
    softmax : bool
        Whether the loss is a cross-entropy, whose derivatives by the logits sum to zero. For another one, the classifier needs
        a bias, and what is left beside rank 1 is the noise.

    Raises
    ------
    AttackError
        If the gradient is zero, not finite, or of higher rank than one image and its noise explain.
    """
    stacked = gradient if bias_gradient is None else torch.cat([gradient, bias_gradient[:, None]], dim=1)
    if not bool(torch.isfinite(stacked).all()) or not bool((stacked != 0).any()):
        raise AttackError("the classifier's gradient is zero or not finite: it says nothing about the image")
    left, size, right = leading_pair(stacked)
    if not softmax and bias_gradient is None:
        raise AttackError("without a bias the classifier's gradient has a scale by the cross-entropy only; use gradient matching")
    noise = _check_rank(stacked, left, size, right, softmax)
    if bias_gradient is not None:
        if float(right[-1].abs()) < 1e-12:
            raise AttackError("the classifier's bias gradient is zero, which no softmax gives; use gradient matching")
        d = left * size * right[-1]
        return Features(right[:-1] / right[-1], d, int(d.argmin()) if label is None else label, noise)
    return _without_bias(weight, left, size, right, label, noise)


def leading_pair(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the leading left singular vector, singular value and right singular vector of ``matrix``.

    By power iteration from its largest row: where the rank is 1 up to noise, a few products do.
    """
    right = matrix[matrix.square().sum(1).argmax()]
    right = right / right.norm()
    for _ in range(50):
        left = matrix @ right
        left = left / left.norm()
        before, right = right, matrix.mT @ left
        size = right.norm()
        right = right / size
        if float((right - before).norm()) < 1e-13:
            break
    return left, size, right


def _check_rank(stacked: Tensor, left: Tensor, size: Tensor, right: Tensor, softmax: bool) -> float:
    rest = float((stacked - size * torch.outer(left, right)).norm())
    # Derivatives by the logits sum to zero over the classes for any batch, so that what they sum to is noise, of the
    # same norm as all the noise in the matrix if it is white.
    noise = float(stacked.sum(dim=0).norm()) if softmax else 0.0
    if rest > _NOISE_FACTOR * noise + _RANK_TOLERANCE * float(size):
        raise AttackError(
            f"the classifier's gradient has rank above 1 (the rest is {rest / float(size):.1e} of its leading part, noise "
            f"would give {noise / float(size):.1e}): more than one image or local step; the closed form reads one of each"
        )
    return (noise if softmax else rest) / float(size)


def _without_bias(weight: Tensor, left: Tensor, size: Tensor, right: Tensor, label: int | None, noise: float) -> Features:
    if label is None:
        # d is negative for the label only; of the two signs take the one with fewer negative entries.
        if int((left < 0).sum()) > len(left) / 2 or (len(left) == 2 and float(right.sum()) < 0):
            left, right = -left, -right
        label = int(left.argmin())
    elif float(left[label]) > 0:
        left, right = -left, -right
    onehot = torch.zeros_like(left)
    onehot[label] = 1
    logits = weight @ right * size
    low, high = torch.tensor(-18.0).to(left), torch.tensor(0.5 * torch.log(torch.tensor(2.0)).item()).to(left)
    for _ in range(12):
        grid = torch.linspace(0, 1, 400, dtype=left.dtype, device=left.device) * (high - low) + low
        t = grid.exp()[:, None]
        misfit = (torch.softmax(logits / t, dim=1) - onehot - t * left).norm(dim=1) / t[:, 0]
        best = int(misfit.argmin())
        low, high = grid[max(best - 1, 0)], grid[min(best + 1, len(grid) - 1)]
    scale = ((low + high) / 2).exp()
    return Features(right * size / scale, left * scale, label, noise)
