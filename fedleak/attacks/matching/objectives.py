"""How far a guessed batch's gradient is from the observed one: pure functions of two lists of tensors."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def squared_distance(guessed: Sequence[Tensor], observed: Sequence[Tensor]) -> Tensor:
    """Return the sum of squared differences relative to the observed sum of squares; 0 when equal, scalar.

    Deep Leakage from Gradients' objective (arXiv 1906.08935), divided by a constant so that one tolerance fits all nets.
    """
    difference = torch.stack([(a - b).square().sum() for a, b in zip(guessed, observed, strict=True)]).sum()
    return difference / _squared_norm(observed).clamp_min(torch.finfo(difference.dtype).tiny)


def cosine_distance(guessed: Sequence[Tensor], observed: Sequence[Tensor]) -> Tensor:
    """Return one minus the cosine of the angle between the two gradients, in [0, 2], scalar.

    Inverting Gradients' objective (arXiv 2003.14053): all tensors as one vector, blind to its length.
    """
    # Dot products and norms write no tensor of the gradient's size, which for large networks costs as much as a pass.
    product = torch.stack([torch.dot(a.flatten(), b.flatten()) for a, b in zip(guessed, observed, strict=True)]).sum()
    lengths = _norm(guessed) * _norm(observed)
    return 1 - product / lengths.clamp_min(torch.finfo(product.dtype).tiny)


def _norm(tensors: Sequence[Tensor]) -> Tensor:
    lengths = torch.stack([torch.linalg.vector_norm(tensor) for tensor in tensors])
    length: Tensor = torch.linalg.vector_norm(lengths)
    return length


def layer_distance(guessed: Sequence[Tensor], observed: Sequence[Tensor]) -> Tensor:
    """Return the sum over tensors of the distance of each, relative to the sum of the observed lengths; 0 when equal, scalar.

    GradInversion's objective (arXiv 2104.07586), divided by a constant so that one weight of the priors fits all nets.
    """
    difference = torch.stack([_length(a - b) for a, b in zip(guessed, observed, strict=True)]).sum()
    lengths = torch.stack([torch.linalg.vector_norm(value) for value in observed]).sum()
    return difference / lengths.clamp_min(torch.finfo(difference.dtype).tiny)


def largest(tensors: Sequence[Tensor], ratio: float) -> list[Tensor]:
    """Return for each tensor the flat indices (k,), ascending, of its largest entries by magnitude.

    Between equals those that come first are taken.

    Parameters
    ----------
    ratio : float
        Share of a tensor's entries, in (0, 1]; rounded up, so that there is at least one.
    """
    orders = [tensor.detach().abs().flatten().argsort(descending=True, stable=True) for tensor in tensors]
    return [order[: math.ceil(ratio * len(order))].sort().values for order in orders]


def select(tensors: Sequence[Tensor], chosen: Sequence[Tensor]) -> list[Tensor]:
    """Return the entries (k,) of each tensor at flat indices (k,)."""
    return [tensor.flatten()[indices] for tensor, indices in zip(tensors, chosen, strict=True)]


def _length(value: Tensor) -> Tensor:
    # The norm has no second derivative at zero, where autograd gives NaN.
    return value.square().sum().clamp_min(torch.finfo(value.dtype).tiny).sqrt()


def _squared_norm(tensors: Sequence[Tensor]) -> Tensor:
    return torch.stack([tensor.square().sum() for tensor in tensors]).sum()
