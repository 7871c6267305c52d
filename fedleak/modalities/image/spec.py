"""Images: what a model takes of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from math import isfinite
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from fedleak.errors import ScenarioError
from fedleak.modalities.base import LABELS, Batch, Spec

IMAGES = "images"
"""The tensor of a batch that holds the images, (B, C, H, W) in [0, 1]."""


@dataclass(frozen=True)
class InputSpec(Spec):
    """What the model takes: images of one shape, and how pixels become model inputs.

    Attributes
    ----------
    shape : tuple of int
        Shape of one input, (C, H, W).
    num_classes : int
        Number of classes that the model tells apart.
    mean, std : tuple of float
        One entry a channel, in units of the [0, 1] pixel range: a model input is ``(pixel - mean) / std``. By default 0 and 1.

    Raises
    ------
    ScenarioError
        If the shape is no image's, they have not one entry a channel, or one of ``std`` is not above 0.
    """

    modality: ClassVar[str] = "image"
    content: ClassVar[str] = IMAGES
    dtype: ClassVar[str] = "float32"

    shape: tuple[int, int, int]
    num_classes: int
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        """Fill in what is not given, and refuse what would make other channels of the image."""
        shape = tuple(self.shape)
        if len(shape) != 3 or not all(isinstance(side, int) and side > 0 for side in shape):
            raise ScenarioError(f"InputSpec: shape is {shape}; expected (channels, height, width) in pixels")
        object.__setattr__(self, "shape", shape)
        channels = shape[0]
        for name, usual in (("mean", 0.0), ("std", 1.0)):
            given = tuple(map(float, getattr(self, name))) or (usual,) * channels
            if len(given) != channels:
                raise ScenarioError(
                    f"InputSpec: {name} has {len(given)} entries, the images {channels} channel(s); expected one entry a "
                    "channel, in units of the [0, 1] range"
                )
            if not all(map(isfinite, given)) or (name == "std" and min(given) <= 0):
                raise ScenarioError(
                    f"InputSpec: {name} is {given}; expected finite numbers{', above 0' if name == 'std' else ''}"
                )
            object.__setattr__(self, name, given)  # frozen for all others

    @classmethod
    def from_facts(cls, facts: Mapping[str, Any]) -> InputSpec:
        """Read what JSON made of an input's attributes, with lists in place of tuples."""
        given: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in facts.items()}
        return cls(**given)

    def clamp(self, batch: Batch) -> dict[str, Tensor]:
        """Return the batch with its pixels in [0, 1], as float32."""
        return {**batch, IMAGES: batch[IMAGES].float().clamp(0, 1)}

    def probe(self, count: int, generator: torch.Generator) -> Tensor:
        """Return normally distributed inputs (count, C, H, W)."""
        return torch.randn(count, *self.shape, generator=generator)

    def inputs(self, batch: Batch) -> Tensor:
        """Return model inputs (B, C, H, W)."""
        return self.normalize(batch[IMAGES])

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Return the mean cross-entropy of logits (B, num_classes) in nats, a scalar."""
        return functional.cross_entropy(outputs, batch[LABELS])

    def normalize(self, images: Tensor) -> Tensor:
        """Turn pixels (B, C, H, W) in [0, 1] into model inputs of the same shape."""
        return (images - self._channel(self.mean, images)) / self._channel(self.std, images)

    def denormalize(self, inputs: Tensor) -> Tensor:
        """Turn model inputs (B, C, H, W) into pixels of the same shape, not clamped."""
        return inputs * self._channel(self.std, inputs) + self._channel(self.mean, inputs)

    def _channel(self, values: tuple[float, ...], like: Tensor) -> Tensor:
        return _channels(values, like.dtype, like.device)


@lru_cache(maxsize=32)
def _channels(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return (1, C, 1, 1), not to be written to."""
    with torch.inference_mode(mode=False):  # autograd takes no tensor that was made in that mode
        return torch.tensor(values, dtype=dtype, device=device).view(1, -1, 1, 1)


SPEC = InputSpec
