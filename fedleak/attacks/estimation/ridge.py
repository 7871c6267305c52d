"""Linear MMSE in an ensemble: kernel ridge regression from a summed gradient to the images behind it.

Formula: xhat_k = m_k + sum_i a_ki (x_ki - m_k), a = (K + lambda I)^-1 Z t, K = Z Z^T, rows z_ki the whitened gradient of sample
i of image k and a constant for each k, t the observed gradient; lambda by leaving out one sample of each image at a time
Source: fedleak's own; leaving out by blocks of the inverse as in Cook and Weisberg 1982, "Residuals and Influence in Regression"

Samples of several images stand in one Gram matrix, each image's only able to move that image: what the others' gradients
add is noise to it, of the covariance that their samples have, and no chance correlation between images enters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedleak.errors import AttackError

_PROJECTIONS = 100  # of the images, which are enough to choose lambda by
LAMBDAS = tuple(10 ** (exponent / 2) for exponent in range(-5, 3))  # in units of the Gram matrix's mean eigenvalue


@dataclass(frozen=True)
class Estimate:
    """What linear regression makes of a gradient.

    Attributes
    ----------
    images : Tensor
        (B, P), one for each slot.
    residuals : Tensor
        (n, B, P): of each sample, what is left of it when it is estimated from the other ones.
    regularisation : float
        The lambda chosen, in units of the Gram matrix's mean eigenvalue.
    error : float
        Mean square of what is left of samples by that of the samples themselves: 0 is exact, 1 knows nothing.
    """

    images: Tensor
    residuals: Tensor
    regularisation: float
    error: float


def whitening(gradients: Tensor, sizes: Sequence[int], floor: float = 0.1) -> Tensor:
    """Return weights (D,): one over the standard deviation of each entry; zero for a tensor that does not vary.

    Parameters
    ----------
    gradients : Tensor
        (B, n, D): n samples for each of B images, whose gradients are summed.
    sizes : sequence of int
        Of the tensors that the D entries belong to.
    floor : float
        Added to each variance, in units of its tensor's mean variance.
    """
    weights = []
    scale = torch.split(gradients.square().mean((0, 1)), list(sizes))
    for variance, size in zip(torch.split(gradients.var(dim=1).sum(0), list(sizes)), scale, strict=True):
        mean = variance.mean()
        # What does not vary but for rounding, such as the gradient of the clamped bias, is not told from noise.
        varies = mean > 1e-10 * size.mean()
        weights.append(torch.where(varies, (variance + floor * mean).clamp_min(1e-38).rsqrt(), 0.0))
    return torch.cat(weights)


def estimate(gradients: Tensor, images: Tensor, observed: Tensor, weights: Tensor, generator: torch.Generator) -> Estimate:
    """Return the linear MMSE estimate of B images from the sum of their gradients.

    Parameters
    ----------
    gradients : Tensor
        (B, n, D), n samples for each image.
    images : Tensor
        (B, n, P), the samples.
    observed : Tensor
        (D,), the sum of the B images' gradients.
    weights : Tensor
        (D,), from :func:`whitening`.
    generator : Generator
        Of the projections by which lambda is chosen.

    Raises
    ------
    AttackError
        If no gradient varies.
    """
    slots, count, _ = gradients.shape
    centre, mean = gradients.mean(1, keepdim=True), images.mean(1, keepdim=True)
    features = ((gradients - centre) * weights).flatten(0, 1)
    target = (observed - centre.sum((0, 1))) * weights
    gram = features @ features.T
    unit = float(gram.diagonal().mean())
    if not unit > 0:
        raise AttackError("the gradients of synthetic images do not vary: they tell nothing about the image")
    gram, aim = gram / unit, features @ target / unit
    # One constant for each slot, so that leaving out a sample changes the mean, too: without it the error left out falls
    # to zero with lambda.
    slot = torch.arange(slots, device=gram.device).repeat_interleave(count)
    gram, aim = gram + (slot[:, None] == slot), aim + 1
    values, vectors = torch.linalg.eigh(gram)
    centred = images - mean
    projection = torch.randn(images.shape[-1], _PROJECTIONS, generator=generator).to(images)
    shadow = centred @ projection
    errors = [
        float(_left_out(_inverse(values, vectors, ridge), shadow).square().sum() / shadow.square().sum()) for ridge in LAMBDAS
    ]
    best = min(range(len(LAMBDAS)), key=errors.__getitem__)
    inverse = _inverse(values, vectors, LAMBDAS[best])
    coefficients = (inverse @ aim).view(slots, 1, count)
    found = (mean + coefficients @ centred)[:, 0]
    return Estimate(found, _left_out(inverse, centred), LAMBDAS[best], errors[best])


def _inverse(values: Tensor, vectors: Tensor, ridge: float) -> Tensor:
    return vectors / (values.clamp_min(0) + ridge) @ vectors.T


def _left_out(inverse: Tensor, images: Tensor) -> Tensor:
    """Return the residuals (n, B, P) of the n batches of the i-th sample of each image, estimated from all other samples.

    With S the B rows of such a batch and M the inverse, the residual is that part of M_S M_SS^-1 1 that falls to each slot,
    times its images: the block form of the leave-one-out residual (M x)_i / M_ii.
    """
    slots, count, _ = images.shape
    blocks = inverse.view(slots, count, slots, count)
    own = blocks.diagonal(dim1=1, dim2=3).permute(2, 0, 1)
    mix = torch.linalg.solve(own, own.new_ones(count, slots, 1))[..., 0]
    paths = torch.einsum("ansj,js->jan", blocks, mix)
    return torch.einsum("jan,anp->jap", paths, images)
