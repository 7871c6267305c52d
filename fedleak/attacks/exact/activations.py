"""From an activation's output back to its input and its slope there.

Formula: z = f^-1(h), slope = f'(z); for ReLU z is known only where h > t, with t read off the values below zero, which
are pure error.
Source: R-GAP (Zhu and Blaschko, arXiv 2010.07733).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

_MARGIN = 1e-13
_LEAST_WEIGHT = 1e-6


@dataclass(frozen=True)
class Preimage:
    """What an activation's output says of its input; all tensors of one shape.

    Attributes
    ----------
    z : Tensor
        The input; 0 where unknown.
    slope : Tensor
        The activation's derivative there.
    weight : Tensor
        How far ``z`` counts: an error in the output is an error divided by the slope in ``z``, so this is the
        slope; 0 where unknown.
    """

    z: Tensor
    slope: Tensor
    weight: Tensor


def _sigmoid(module: nn.Module, h: Tensor) -> tuple[Tensor, Tensor]:
    h = h.clamp(_MARGIN, 1 - _MARGIN)
    return torch.logit(h), h * (1 - h)


def _tanh(module: nn.Module, h: Tensor) -> tuple[Tensor, Tensor]:
    h = h.clamp(-1 + _MARGIN, 1 - _MARGIN)
    return torch.atanh(h), 1 - h.square()


def _leaky_relu(module: nn.Module, h: Tensor) -> tuple[Tensor, Tensor]:
    assert isinstance(module, nn.LeakyReLU)
    slope = torch.where(h > 0, torch.ones_like(h), torch.full_like(h, module.negative_slope))
    return h / slope, slope


def _elu(module: nn.Module, h: Tensor) -> tuple[Tensor, Tensor]:
    assert isinstance(module, nn.ELU)
    below = (h / module.alpha).clamp(_MARGIN - 1, 0)
    return torch.where(h > 0, h, torch.log1p(below)), torch.where(h > 0, torch.ones_like(h), module.alpha * (1 + below))


def _softplus(module: nn.Module, h: Tensor) -> tuple[Tensor, Tensor]:
    assert isinstance(module, nn.Softplus)
    scaled = (h * module.beta).clamp_min(_MARGIN)
    inverse = scaled + torch.log(-torch.expm1(-scaled))
    return inverse / module.beta, -torch.expm1(-scaled)


_SMOOTH: dict[type[nn.Module], Callable[[nn.Module, Tensor], tuple[Tensor, Tensor]]] = {
    nn.Sigmoid: _sigmoid,
    nn.Tanh: _tanh,
    nn.LeakyReLU: _leaky_relu,
    nn.ELU: _elu,
    nn.Softplus: _softplus,
}


def output_range(module: nn.Module) -> tuple[float, float]:
    """Return the bounds of an activation's output; infinite where it has none or is not known."""
    if isinstance(module, nn.Sigmoid):
        return 0.0, 1.0
    if isinstance(module, nn.Tanh):
        return -1.0, 1.0
    if isinstance(module, nn.ELU):
        return -module.alpha, float("inf")
    return (0.0 if isinstance(module, nn.ReLU | nn.Softplus) else -float("inf")), float("inf")


def invertible(module: nn.Module) -> bool:
    """Say whether :func:`preimage` knows ``module``."""
    return type(module) is nn.ReLU or (
        type(module) in _SMOOTH and getattr(module, "negative_slope", 1) > 0 and getattr(module, "alpha", 1) > 0
    )


def preimage(module: nn.Module, h: Tensor) -> Preimage:
    """Return input and slope of the activation ``module`` from its output ``h``."""
    if isinstance(module, nn.ReLU):
        # No true output lies below zero: the lowest one measures the error of all.
        threshold = torch.maximum(3 * (-h.min()).clamp_min(0), 1e-7 * h.abs().max())
        known = (h > threshold).to(h.dtype)
        return Preimage(h * known, known, known)
    z, slope = _SMOOTH[type(module)](module, h)
    return Preimage(z, slope, slope.clamp_min(_LEAST_WEIGHT))
