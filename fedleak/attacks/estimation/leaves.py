"""Dead leaves: discs and rectangles that hide one another, as objects do; synthetic images with edges, where noise has none.

Formula: shapes drawn one over the other, radii of density r^-3, places, angles and side ratios uniform, colours normal in
opponent axes
Source: Lee, Mumford and Huang 2001, "Occlusion models for natural images", International Journal of Computer Vision 41(1/2)
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fedleak.attacks.images.coordinates import CONTRAST, OPPONENT
from fedleak.modalities.image import InputSpec

_SHAPES = 60
_SMALLEST, _LARGEST = 1 / 24, 3 / 4  # radii in units of the longer side
_NARROWEST = 0.4
_COLOUR = 0.42  # standard deviation of colours over the three axes together
_GREY = 0.5


def dead_leaves(count: int, spec: InputSpec, generator: torch.Generator, like: Tensor) -> Tensor:
    """Draw images (count, C, H, W) in [0, 1].

    Parameters
    ----------
    count : int
        How many.
    spec : InputSpec
        Gives their shape.
    generator : Generator
        On the CPU; advanced.
    like : Tensor
        Gives the device and the precision.
    """
    height, width = spec.shape[1:]
    side = max(height, width)
    down = (torch.arange(height) + 0.5)[:, None].to(like)
    across = (torch.arange(width) + 0.5).to(like)
    images = _colours(count, spec, generator, like).expand(-1, -1, height, width)
    # Inverse of the cumulative distribution of radii between the smallest and the largest.
    ends = [(part * side) ** -2 for part in (_SMALLEST, _LARGEST)]
    for _ in range(_SHAPES):
        drawn = torch.rand(count, 6, 1, 1, generator=generator).to(like)
        radius = (ends[0] - drawn[:, 0] * (ends[0] - ends[1])) ** -0.5
        y = down - (drawn[:, 1] * (height + 2 * radius) - radius)
        x = across - (drawn[:, 2] * (width + 2 * radius) - radius)
        angle, ratio = math.pi * drawn[:, 3], _NARROWEST + (1 - _NARROWEST) * drawn[:, 4]
        along = x * angle.cos() + y * angle.sin()
        off = (y * angle.cos() - x * angle.sin()) / ratio
        distance = torch.where(drawn[:, 5] < 0.5, torch.maximum(along.abs(), off.abs()), torch.hypot(along, off))
        # Pixels on the border are mixed.
        covers = (radius - distance + 0.5).clamp(0, 1)[:, None]
        images = torch.lerp(images, _colours(count, spec, generator, like).expand_as(images), covers)
    return images


def _colours(count: int, spec: InputSpec, generator: torch.Generator, like: Tensor) -> Tensor:
    """Return one colour for each image (count, C, 1, 1); of other than three channels, each by itself."""
    channels = spec.shape[0]
    normal = torch.randn(count, channels, generator=generator)
    if channels == 3:
        contrast = torch.tensor(CONTRAST) / math.hypot(*CONTRAST)
        normal = normal @ (contrast[:, None] * torch.tensor(OPPONENT))
    return (_GREY + _COLOUR * normal).clamp(0, 1).to(like)[:, :, None, None]
