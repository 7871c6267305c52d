"""Synthetic natural images: noise with the spectrum and the colours of photographs, for what an attacker can only estimate.

Source: amplitudes of 1 / frequency, Field 1987, "Relations between the statistics of natural images and the response
properties of cortical cells", J. Opt. Soc. Am. A 4(12).
"""

from __future__ import annotations

import torch
from torch import Tensor

from fedleak.attacks.images.coordinates import FrequencyCoordinates
from fedleak.modalities.image import InputSpec


def synthetic_images(count: int, input: InputSpec, generator: torch.Generator, like: Tensor, slope: float = 1.0) -> Tensor:
    """Draw images (count, C, H, W) in [0, 1] whose amplitudes fall with frequency.

    Parameters
    ----------
    count : int
        How many.
    input : InputSpec
        Gives their shape.
    generator : Generator
        On the CPU; advanced.
    like : Tensor
        Gives the device and the precision.
    slope : float
        Power of the frequency that amplitudes fall with.
    """
    variables = torch.randn((count, *input.shape), generator=generator).to(like)
    return FrequencyCoordinates(input, like, slope).decode(variables).clamp(0, 1)
