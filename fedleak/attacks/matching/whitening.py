"""Whitening: how much each entry of a gradient varies between natural batches of the same labels.

Formula: weight_k = 1 / sqrt(var_k + floor * mean var of k's tensor), over gradients of synthetic natural images
Source: fedleak's own
"""

from __future__ import annotations

import torch
from torch import Tensor

from fedleak.attacks.images.synthetic import synthetic_images
from fedleak.attacks.victims.base import Victim
from fedleak.seeding import Seed


def whitening(victim: Victim, targets: Tensor, samples: int, floor: float, seed: Seed) -> list[Tensor]:
    """Return one over the standard deviation of each gradient entry over synthetic natural batches.

    Parameters
    ----------
    victim : Victim
        Gives the gradient.
    targets : Tensor
        Class probabilities (B, K), the same for all batches.
    samples : int
        How many batches.
    floor : float
        Added to each variance, in units of its tensor's mean variance.
    seed : Seed
        Of the batches.

    Returns
    -------
    list of Tensor
        Like the parameters; zero for a tensor whose gradient does not depend on the images.
    """
    generator = seed.generator()
    sums = [torch.zeros_like(value) for value in victim.observed]
    squares = [torch.zeros_like(value) for value in victim.observed]
    for _ in range(samples):
        images = synthetic_images(len(targets), victim.input, generator, targets)
        gradient = victim.gradient(victim.input.normalize(images), targets)
        for total, square, value in zip(sums, squares, gradient, strict=True):
            total += value.detach()
            square += value.detach().square()
    weights = []
    for total, square in zip(sums, squares, strict=True):
        variance = (square - total.square() / samples).clamp_min(0) / (samples - 1)
        variance = variance + floor * variance.mean()
        weights.append(torch.where(variance > 0, variance.rsqrt(), 0.0))
    return weights
