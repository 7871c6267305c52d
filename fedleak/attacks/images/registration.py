"""Registration: move images onto others by whole pixels, and the consensus of a group of images so registered.

Formula: shift = argmax_s <x rolled by s, reference>, by cross-correlation; consensus = mean over the group of x rolled onto
the group's mean
Source: fedleak's own, in place of the RANSAC-flow of GradInversion (arXiv 2104.07586), which needs a trained network
"""

from __future__ import annotations

import torch
from torch import Tensor


def shifts(images: Tensor, reference: Tensor, reach: int) -> Tensor:
    """Return the circular shift of each image, in whole pixels, that brings it nearest to its reference.

    Parameters
    ----------
    images, reference : Tensor
        (B, C, H, W); the distance is the sum of squared differences.
    reach : int
        Largest shift along each side, in pixels.

    Returns
    -------
    Tensor
        (B, 2) of rows and columns to roll by, each from -``reach`` to ``reach``.
    """
    height, width = images.shape[-2:]
    spectra = torch.fft.rfft2(reference) * torch.fft.rfft2(images).conj()
    correlation = torch.fft.irfft2(spectra.sum(1), s=(height, width))  # (B, H, W), of the images rolled by (row, column)
    rows, columns = (torch.arange(-min(reach, (size - 1) // 2), min(reach, (size - 1) // 2) + 1) for size in (height, width))
    # The smallest shift goes first, so that it is the one taken between equals, as for a flat image.
    pairs = torch.cartesian_prod(rows, columns)
    pairs = pairs[pairs.square().sum(1).argsort(stable=True)].to(images.device)
    values = correlation[:, pairs[:, 0] % height, pairs[:, 1] % width]
    # Equal but for rounding counts as equal.
    best = values.amax(1, keepdim=True)
    return pairs[(values >= best - 1e-6 * best.abs()).int().argmax(1)]


def rolled(images: Tensor, by: Tensor) -> Tensor:
    """Return images (B, C, H, W), each rolled by its (rows, columns) of ``by`` (B, 2)."""
    moves = by.tolist()
    return torch.stack([image.roll((row, column), (-2, -1)) for image, (row, column) in zip(images, moves, strict=True)])


def consensus(group: Tensor, reach: int) -> Tensor:
    """Return the mean (B, C, H, W) of a group (S, B, C, H, W) whose members are first registered to its plain mean.

    With ``reach`` 0 it is the plain mean.
    """
    mean = group.mean(0)
    if reach == 0:
        return mean
    return torch.stack([rolled(member, shifts(member, mean, reach)) for member in group]).mean(0)
