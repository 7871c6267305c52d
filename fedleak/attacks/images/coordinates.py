"""The variables that stand for an image: plain pixels, or cosine frequencies of opponent colours.

Gradient matching is ill-conditioned: in pixels, fine detail changes the gradient of a small network so little that
L-BFGS spends most of its iterations on it. Natural images have amplitudes of about 1 / frequency, and most of their
contrast in luminance; in coordinates scaled to that, every variable is of order one and descent is many times faster.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor

from fedleak.modalities.image import InputSpec

OPPONENT = ((1 / 3**0.5,) * 3, (1 / 2**0.5, 0.0, -1 / 2**0.5), (1 / 6**0.5, -2 / 6**0.5, 1 / 6**0.5))
CONTRAST = (0.95, 0.35, 0.18)  # of luminance, red against blue, green against both, in natural images
_CORNER = 0.7  # cycles per two image sides, below which amplitudes stop growing
_AMPLITUDE = 5.0
_GREY = 0.5


class Coordinates(ABC):
    """A one-to-one map between variables (B, C, H, W) and pixels (B, C, H, W), meant for [0, 1]."""

    @abstractmethod
    def decode(self, variables: Tensor) -> Tensor:
        """Return the pixels that the variables stand for, not clamped."""

    @abstractmethod
    def encode(self, pixels: Tensor) -> Tensor:
        """Return the variables that stand for the pixels."""


class PixelCoordinates(Coordinates):
    """Model inputs as they are: pixels after the model's normalisation."""

    def __init__(self, input: InputSpec) -> None:
        self._input = input

    def decode(self, variables: Tensor) -> Tensor:
        """Undo the normalisation."""
        return self._input.denormalize(variables)

    def encode(self, pixels: Tensor) -> Tensor:
        """Normalise."""
        return self._input.normalize(pixels)


class FrequencyCoordinates(Coordinates):
    """Discrete cosine transform of opponent colours, scaled so that a natural image is about standard normal.

    Parameters
    ----------
    input : InputSpec
        Gives the shape; colours are rotated only where there are three channels.
    like : Tensor
        Gives the device and the precision.
    slope : float
        Amplitudes fall with the frequency to this power; 1 is natural images' mean.
    """

    def __init__(self, input: InputSpec, like: Tensor, slope: float = 1.0) -> None:
        channels, height, width = input.shape
        self._rows, self._columns = dct_matrix(height).to(like), dct_matrix(width).to(like)
        frequency = (torch.arange(height)[:, None].square() + torch.arange(width)[None].square()).double().sqrt()
        self._scale = (_AMPLITUDE / (frequency + _CORNER) ** slope).to(like)
        if channels == 3:
            self._colour = (torch.tensor(OPPONENT).double().T * torch.tensor(CONTRAST).double()).to(like)
        else:
            self._colour = torch.eye(channels).to(like)

    def decode(self, variables: Tensor) -> Tensor:
        """Scale, transform back, and mix the colours."""
        opponent = self._rows.T @ (self._scale * variables) @ self._columns
        return _GREY + torch.einsum("cd,bdij->bcij", self._colour, opponent)

    def encode(self, pixels: Tensor) -> Tensor:
        """Undo :meth:`decode`."""
        opponent = torch.einsum("dc,bcij->bdij", torch.linalg.inv(self._colour), pixels - _GREY)
        return self._rows @ opponent @ self._columns.T / self._scale


def dct_matrix(size: int) -> Tensor:
    """Return the orthonormal discrete cosine transform of type II as a float64 matrix (size, size)."""
    position = torch.arange(size).double()
    matrix = torch.cos(math.pi / size * (position + 0.5)[None] * position[:, None]) * math.sqrt(2 / size)
    matrix[0] /= math.sqrt(2)
    return matrix
