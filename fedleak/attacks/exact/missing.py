"""What a closed form makes of a gradient with entries missing, where a defense that is known has set them to zero.

Formula: d_i h_j = dW_ij for the entries that survived, by alternating least squares, with h = 1 for the bias; an h_j of which
nothing survived solves W h + b = log p + constant, p = d + onehot, and a d_i of which nothing survived is that of h
Source: fedleak's own
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fedleak.attacks.exact.features import Features, leading_pair
from fedleak.defenses.gradient_pruning import GradientPruning
from fedleak.defenses.random_masking import RandomMasking
from fedleak.errors import AttackError
from fedleak.observation import Observation, Tensors

_SWEEPS = 2000
_SETTLED = 1e-14
_ONE_IMAGE = 1e-4
"""Misfit of the surviving entries, relative to their norm, above which they are not those of one image."""
_LEAST_PROBABILITY = 1e-3
"""Of the label: one minus its derivative has lost its digits below that."""


@dataclass(frozen=True)
class Survivors:
    """A gradient of which entries are missing.

    Attributes
    ----------
    gradient : dict of str to Tensor
        By parameter, at the scale that it had; zero where missing.
    known : dict of str to Tensor
        Boolean, of the same shapes: false where missing.
    """

    gradient: Tensors
    known: Tensors


def survivors(observation: Observation) -> Survivors | None:
    """Return what is left of the gradient where a known defense has set entries to zero and has changed no others.

    ``None`` where no such defense is on or none is known, and where another one is on as well.
    """
    if observation.defenses is None or len(observation.defenses) != 1:
        return None
    [defense] = observation.defenses
    parameters = {key: value for key, value in defense.items() if key != "name"}
    gradient, factor = observation.gradient(), 1.0
    if defense["name"] == RandomMasking.name:
        masking = RandomMasking(**parameters).config
        factor = 1 - masking.p if masking.rescale else 1.0
        active = masking.p > 0
    elif defense["name"] == GradientPruning.name:
        active = GradientPruning(**parameters).config.ratio > 0
    else:
        return None
    if not active:
        return None
    return Survivors({n: factor * value for n, value in gradient.items()}, {n: value != 0 for n, value in gradient.items()})


def completed_features(
    weight: Tensor, bias: Tensor | None, gradient: Tensors, known: Tensors, head: str, label: int | None
) -> Features:
    """Return the features behind what is left of a classifier's gradient.

    Parameters
    ----------
    weight : Tensor
        (N, F), float64.
    bias : Tensor or None
        (N,), float64.
    gradient, known : dict of str to Tensor
        By parameter; those of the classifier called ``head`` are read.
    label : int or None
        If known; otherwise read off the signs.

    Raises
    ------
    AttackError
        If nothing of its bias's gradient is left, more features are missing than the rest tells, or it is not that of one image.
    """
    if bias is None or not bool(known[f"{head}.bias"].any()):
        raise AttackError(
            f"nothing is left of the gradient of the bias of '{head}', which sets the scale of its features; use 'adaptive'"
        )
    stacked = torch.cat([gradient[f"{head}.weight"], gradient[f"{head}.bias"][:, None]], dim=1)
    mask = torch.cat([known[f"{head}.weight"], known[f"{head}.bias"][:, None]], dim=1).to(stacked)
    left, right = _rank_one(stacked, mask)
    misfit = float(((stacked - torch.outer(left, right)) * mask).norm() / stacked.norm())
    if misfit > _ONE_IMAGE:
        raise AttackError(
            f"what is left of the classifier's gradient has rank above 1 (the rest is {misfit:.1e} of it): more than one image "
            "or local step; the closed form reads one of each where entries are missing"
        )
    d, h = left * right[-1], right[:-1] / right[-1]
    rows, columns = mask.any(1), mask[:, :-1].any(0)
    if label is None:
        label = int(d.where(rows, torch.inf).argmin())
    if not bool(columns.all()):
        h = _missing_features(weight, bias, h, d, rows, columns, label)
    onehot = torch.zeros_like(d)
    onehot[label] = 1
    d = torch.where(rows, d, torch.softmax(weight @ h + bias, 0) - onehot)
    return Features(h, d, label, misfit)


def _rank_one(stacked: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Return left and right factors whose product fits the entries under the mask; zero where nothing is left."""
    left, size, right = leading_pair(stacked)
    left, tiny = left * size, torch.finfo(stacked.dtype).tiny
    for _ in range(_SWEEPS):
        before = right
        left = (stacked @ right) / (mask @ right.square()).clamp_min(tiny)
        right = (stacked.mT @ left) / (mask.mT @ left.square()).clamp_min(tiny)
        length = right.norm()
        right = right / length
        left = left * length
        if float((right - before).norm()) < _SETTLED:
            break
    return left, right


def _missing_features(weight: Tensor, bias: Tensor, h: Tensor, d: Tensor, rows: Tensor, columns: Tensor, label: int) -> Tensor:
    """Return ``h`` with the features filled in of which no gradient is left."""
    usable = rows.clone()
    if float(1 + d[label]) < _LEAST_PROBABILITY:
        usable[label] = False
    count = int((~columns).sum())
    if int(usable.sum()) < count + 1:
        raise AttackError(
            f"nothing is left of the gradient by {count} of the classifier's inputs, and {int(usable.sum())} of its outputs do "
            "not tell them; use 'adaptive'"
        )
    onehot = torch.zeros_like(d)
    onehot[label] = 1
    logits = (d + onehot)[usable].clamp_min(torch.finfo(d.dtype).tiny).log()
    right = logits - bias[usable] - weight[usable][:, columns] @ h[columns]
    system = torch.cat([weight[usable][:, ~columns], right.new_ones(len(right), 1)], dim=1)
    found = torch.linalg.lstsq(system, right[:, None]).solution[:-1, 0]
    return h.index_copy(0, (~columns).nonzero().squeeze(1), found)
