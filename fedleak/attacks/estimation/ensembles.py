"""The images that an estimate is made from: natural ones at first, then those around the estimate before.

Formula: x = decode(encode(m) + s * z), z ~ N(0, I), in the frequencies of opponent colours; s^2 = mean of what estimates of
left-out samples missed, over each band of frequencies and colour
Source: fedleak's own
"""

from __future__ import annotations

import torch
from torch import Tensor

from fedleak.attacks.estimation.leaves import dead_leaves
from fedleak.attacks.images.coordinates import FrequencyCoordinates
from fedleak.attacks.images.synthetic import synthetic_images
from fedleak.modalities.image import InputSpec

_CONTRAST = 0.35  # standard deviation of the logarithm of contrast between photographs
_NOISE, _LEAVES = 0.4, 0.8  # parts of noise and of dead leaves; chosen on four images, where either alone was worse


def natural(slots: int, count: int, spec: InputSpec, generator: torch.Generator, like: Tensor) -> Tensor:
    """Return images (slots, count, C, H, W) in [0, 1] with the spectrum and the edges of photographs, of varied contrast."""
    total = slots * count
    contrast = (_CONTRAST * torch.randn(total, 1, 1, 1, generator=generator)).exp().to(like)
    noise = contrast * (synthetic_images(total, spec, generator, like) - 0.5)
    leaves = contrast * (dead_leaves(total, spec, generator, like) - 0.5)
    images = 0.5 + _NOISE * noise.clamp(-0.5, 0.5) + _LEAVES * leaves.clamp(-0.5, 0.5)
    return images.clamp(0, 1).view(slots, count, *spec.shape)


def around(centre: Tensor, spread: Tensor, count: int, spec: InputSpec, generator: torch.Generator) -> Tensor:
    """Return ``count`` images (B, count, C, H, W) in [0, 1] around each of ``centre`` (B, C, H, W).

    Parameters
    ----------
    spread : Tensor
        (B, C, H, W) standard deviations of the frequencies, from :func:`missed`.
    """
    frequencies = FrequencyCoordinates(spec, centre)
    noise = torch.randn((len(centre), count, *spec.shape), generator=generator).to(centre)
    variables = frequencies.encode(centre)[:, None] + spread[:, None] * noise
    return frequencies.decode(variables.flatten(0, 1)).clamp(0, 1).view(noise.shape)


def missed(residuals: Tensor, spec: InputSpec) -> Tensor:
    """Return what residuals (n, B, C, H, W) leave open (B, C, H, W): the standard deviation in each band and colour."""
    frequencies = FrequencyCoordinates(spec, residuals)
    blank = frequencies.encode(torch.zeros_like(residuals[0, :1]))
    squares = torch.stack([(frequencies.encode(slot) - blank).square().mean(0) for slot in residuals.unbind(1)])
    height, width = squares.shape[2:]
    down, across = (torch.arange(size, device=squares.device) for size in (height, width))
    band = (down[:, None].square() + across[None].square()).sqrt().round().long().flatten()
    sums = squares.new_zeros(*squares.shape[:2], int(band.max()) + 1).index_add_(2, band, squares.flatten(2))
    return (sums / band.bincount()).clamp_min(1e-6).sqrt()[..., band].view_as(squares)
