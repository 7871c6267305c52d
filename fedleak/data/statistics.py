"""Channel statistics of public images, for sources that have no published ones."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np
import torch

from fedleak.data.base import ImageSet, Source
from fedleak.data.pixels import LUMA
from fedleak.errors import ScenarioError

MEASURED = 1_000
_CHUNK = 256


def evenly_spaced(length: int, at_most: int) -> list[int]:
    """Return at most ``at_most`` distinct indices below ``length``, evenly spaced, in order."""
    return [int(index) for index in np.linspace(0, length - 1, min(length, at_most)).round()]


def channel_statistics(public: ImageSet | None) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation of each channel, in units of the [0, 1] range.

    Parameters
    ----------
    public : ImageSet or None
        The test split, of which at most 1,000 evenly spaced images are read. Never the training images: what the
        server knows of the private data must not come from them. Without a test split, 0.5 and 0.5 for all channels.
    """
    if public is None:
        return (0.5,), (0.5,)
    chosen = evenly_spaced(len(public), MEASURED)
    total = squares = torch.zeros((), dtype=torch.float64)
    pixels = 0
    for start in range(0, len(chosen), _CHUNK):
        images = public.load(chosen[start : start + _CHUNK]).double()
        total = total + images.sum(dim=(0, 2, 3))
        squares = squares + images.square().sum(dim=(0, 2, 3))
        pixels += images[:, 0].numel()
    mean = total / pixels
    # A constant channel would make the model's inputs infinite.
    std = (squares / pixels - mean.square()).clamp(min=1e-6).sqrt()
    return tuple(mean.tolist()), tuple(std.tolist())


def per_channel(values: Sequence[float], channels: int) -> tuple[float, ...]:
    """Return a source's statistic with one entry for each of 1 or 3 channels.

    One value is taken for all. Of three for one, the luma of the three (ITU-R 601): exact for means; for deviations, that of
    channels which go up and down together, as in most photographs they nearly do.
    """
    given = tuple(map(float, values))
    if len(given) == channels:
        return given
    if len(given) == 1:
        return given * channels
    if len(given) == 3 and channels == 1:
        return (sum(weight * value for weight, value in zip(LUMA, given, strict=True)),)
    raise ScenarioError(f"statistics of {len(given)} channels, but images of {channels}; expected one entry a channel")


class MeasuredSource(Source):
    """A source whose channel statistics are measured on its test split, when they are first asked for."""

    @cached_property
    def _statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        return channel_statistics(self.test)

    # Properties, because a folder of large images takes seconds to measure and most scenarios never normalise.
    @property
    def mean(self) -> tuple[float, ...]:  # type: ignore[override]
        """Mean of each channel, in units of the [0, 1] range."""
        return self._statistics[0]

    @property
    def std(self) -> tuple[float, ...]:  # type: ignore[override]
        """Standard deviation of each channel, in units of the [0, 1] range."""
        return self._statistics[1]
