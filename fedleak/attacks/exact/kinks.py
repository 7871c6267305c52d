"""Corrects which side of a kink the smallest inputs of a ReLU lie on, by the bias gradient of the layer below.

Formula: db_o = sum_l d_ol with d = delta * slope; where it does not hold, flip those of the most doubtful inputs of channel o
whose changes of d make up the difference.
Source: none known; one wrong side turns a solution of 120 dB into one below 35 dB.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import chain, combinations

import torch
from torch import Tensor, nn

from fedleak.attacks.exact.activations import Preimage

_HOLDS = 1e-6
"""Mismatch of a bias gradient, relative to the sum of its parts, that rounding explains."""
_SMALL = 1e-4
"""Values up to this part of the largest one may be on the wrong side."""
_CANDIDATES = 24


def repair_kinks(module: nn.Module, back: Preimage, h: Tensor, delta: Tensor, bias_gradient: Tensor) -> Preimage:
    """Return ``back`` with the sides of single inputs, and of pairs in one channel, corrected.

    Parameters
    ----------
    module : Module
        ReLU or LeakyReLU; for any other there is nothing to correct.
    back : Preimage
        What :func:`preimage` returned for ``h``.
    h, delta : Tensor
        (O, ...) outputs of the activation, and derivative of the loss by them.
    bias_gradient : Tensor
        (O,) of the layer below, which is the sum over each channel of the derivative by the activation's inputs.
    """
    if not isinstance(module, nn.ReLU | nn.LeakyReLU):
        return back
    low = module.negative_slope if isinstance(module, nn.LeakyReLU) else 0.0
    outputs = len(h)
    values, slopes, upper = (tensor.reshape(outputs, -1) for tensor in (h, back.slope, delta))
    parts = upper * slopes
    mismatch = bias_gradient - parts.sum(1)
    allowed = _HOLDS * parts.abs().sum(1)
    changes = torch.where(slopes == 1, (low - 1) * upper, (1 - low) * upper)
    # A ReLU's outputs count as zero up to a threshold above it: the doubtful ones lie near that.
    off = values[slopes == 0]
    boundary = float(off.max()) if len(off) else 0.0
    flips = torch.zeros_like(slopes, dtype=torch.bool)
    for channel in torch.nonzero(mismatch.abs() > allowed)[:, 0].tolist():
        distance = (values[channel] - boundary).abs()
        order = distance.argsort()[:_CANDIDATES]
        order = order[distance[order] <= _SMALL * values.abs().max()]
        found = _matching(changes[channel, order].tolist(), float(mismatch[channel]), float(allowed[channel]))
        flips[channel, order[list(found)]] = True
    if not bool(flips.any()):
        return back
    slope = torch.where(flips, 1 + low - slopes, slopes).reshape(h.shape)
    known = slope if low == 0 else torch.ones_like(slope)
    return replace(back, slope=slope, weight=slope, z=h / torch.where(slope == 0, 1.0, slope) * known)


def _matching(changes: list[float], mismatch: float, allowed: float) -> tuple[int, ...]:
    """Return which one or two of ``changes`` add up to ``mismatch``; none if none do."""
    indices = range(len(changes))
    subsets = chain(combinations(indices, 1), combinations(indices, 2))
    best = min(subsets, key=lambda subset: abs(mismatch - sum(changes[i] for i in subset)), default=())
    return best if abs(mismatch - sum(changes[i] for i in best)) <= allowed else ()
