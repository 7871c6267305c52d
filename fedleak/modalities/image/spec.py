"""Images: what a model takes of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class InputSpec:
    """What the model takes: images of one shape, and how pixels become model inputs.

    Attributes
    ----------
    shape : tuple of int
        Shape of one input, (C, H, W).
    num_classes : int
        Number of classes that the model tells apart.
    mean, std : tuple of float
        Per channel, in units of the [0, 1] pixel range: a model input is ``(pixel - mean) / std``.
    """

    shape: tuple[int, int, int]
    num_classes: int
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)

    @classmethod
    def from_facts(cls, facts: Mapping[str, Any]) -> InputSpec:
        """Read what JSON made of an input's attributes, with lists in place of tuples."""
        given: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in facts.items()}
        return cls(**given)

    def normalize(self, images: Tensor) -> Tensor:
        """Turn pixels (B, C, H, W) in [0, 1] into model inputs of the same shape."""
        return (images - self._channel(self.mean, images)) / self._channel(self.std, images)

    def denormalize(self, inputs: Tensor) -> Tensor:
        """Turn model inputs (B, C, H, W) into pixels of the same shape, not clamped."""
        return inputs * self._channel(self.std, inputs) + self._channel(self.mean, inputs)

    def _channel(self, values: tuple[float, ...], like: Tensor) -> Tensor:
        return torch.tensor(values, dtype=like.dtype, device=like.device).view(1, -1, 1, 1)
