"""Sets of labelled images that lie in arrays: in memory, or in files that are mapped and read as they are asked for."""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Callable, Sequence
from functools import cached_property
from itertools import accumulate
from math import isqrt
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedleak.data.base import ImageSet
from fedleak.data.pixels import Pixels, fit, form, to_channels, unit
from fedleak.errors import ScenarioError

MOST_CLASSES: Final = 1_000_000
_SHARE_OF_MEMORY: Final = 0.5
_CHANNELS: Final = (1, 3, 4)


class ArrayImages(ImageSet):
    """Images out of one or several arrays; levels of uint8, uint16, or floats in [0, 1].

    Parameters
    ----------
    arrays : sequence
        Whatever has a length and gives an array for an index, one after the other. One image is (H, W), (H, W, C), (C, H, W), or
        flat: H * W, or C * H * W with the channels first; flat ones are squares.
    labels : ndarray
        (N,) int64 class indices.
    name : str
        What the file is called, for messages.
    image_size : int, optional
        The short side is resized to so many pixels (Lanczos) and the centre square is kept.
    channels : int, optional
        1 or 3; by default as the arrays are. An alpha channel is dropped.
    """

    def __init__(
        self,
        arrays: Sequence[Any],
        labels: NDArray[np.int64],
        name: str,
        image_size: int | None = None,
        channels: int | None = None,
    ) -> None:
        self.labels = labels
        self.image_size = image_size
        self._arrays = tuple(arrays)
        self._ends = list(accumulate(len(array) for array in self._arrays))
        self._name = name
        self._channels = channels

    def describe(self, index: int) -> str:
        """Return the name of the file, and the image's place in it (from 0)."""
        return f"{self._name}, image {index}"

    @cached_property
    def shape(self) -> tuple[int, int, int]:
        """Shape of every image, (C, H, W)."""
        channels, height, width = self._pixels(0).shape
        return channels, height, width

    @property
    def form(self) -> str:
        """What the arrays hold and what becomes of it, as far as the first image tells."""
        raw = np.asarray(self._arrays[0][0])
        channels = len(channels_first(raw))
        if raw.dtype.kind == "f":
            return f"{'grey' if channels < 3 else 'colour'} of floats in [0, 1]"
        return form(channels < 3, raw.dtype.itemsize == 2, channels in (2, 4), self.shape[0])

    def load(self, indices: Sequence[int]) -> Tensor:
        """Return the images at ``indices`` as float32 (n, C, H, W) in [0, 1].

        Raises
        ------
        ScenarioError
            If levels are neither 8- nor 16-bit integers nor floats in [0, 1], or the size is not that of the first image; the
            message names the image.
        """
        if not len(indices):
            return torch.empty(0, *self.shape)
        return torch.from_numpy(np.stack([self._checked(int(index)) for index in indices]))

    def _checked(self, index: int) -> NDArray[np.float32]:
        pixels = self._pixels(index)
        if pixels.shape != self.shape:
            remedy = (
                "data.image_size to bring all images to one size" if len(pixels) == self.shape[0] else "data.channels = 1 or 3"
            )
            raise ScenarioError(
                f"{self.describe(index)}: {pixels.shape} (channels, height, width), where the first is {self.shape}; "
                f"give {remedy}"
            )
        return unit(pixels)

    def _pixels(self, index: int) -> Pixels:
        number = bisect_right(self._ends, index)
        before = self._ends[number - 1] if number else 0
        raw = np.asarray(self._arrays[number][index - before])
        try:
            pixels = channels_first(levels(raw))
        except ValueError as error:
            raise ScenarioError(f"{self.describe(index)}: {error}") from error
        alpha = len(pixels) in (2, 4)
        pixels = pixels[:-1] if alpha else pixels
        return fit(to_channels(pixels, self._channels or len(pixels)), self.image_size)


class Mapped(Sequence[Any]):
    """An array whose items are changed as they are asked for, one by one."""

    def __init__(self, array: Any, change: Callable[[Any], Any]) -> None:
        self._array, self._change = array, change

    def __len__(self) -> int:
        return len(self._array)

    def __getitem__(self, index: Any) -> Any:
        return self._change(self._array[index])


def levels(raw: NDArray[Any]) -> NDArray[Any]:
    """Return one image's levels as uint8, uint16 or float32.

    Raises
    ------
    ValueError
        If they are of another type, or floats outside [0, 1].
    """
    if raw.dtype == np.uint8:
        return raw
    if raw.dtype.kind == "u" and raw.dtype.itemsize == 2:
        return raw.astype(np.uint16)  # from whichever byte order
    if raw.dtype.kind == "b":
        return raw.astype(np.uint8) * np.uint8(255)
    if raw.dtype.kind == "f":
        if raw.size and not (raw.min() >= 0 and raw.max() <= 1):  # NaN fails both
            raise ValueError(
                f"levels from {raw.min():g} to {raw.max():g}; floats are taken to lie in [0, 1]: divide by their full range, or "
                "save them as uint8 or uint16"
            )
        return raw.astype(np.float32)
    raise ValueError(f"levels are {raw.dtype}; expected uint8 (0 to 255), uint16 (0 to 65,535), or floats in [0, 1]")


def channels_first(raw: NDArray[Any]) -> NDArray[Any]:
    """Return one image as (C, H, W).

    Raises
    ------
    ValueError
        If it is neither (H, W), (H, W, C) nor (C, H, W) with 1, 3 or 4 channels, nor a flat square.
    """
    if raw.ndim == 2:
        return raw[None]
    if raw.ndim == 3 and raw.shape[2] in _CHANNELS:
        return raw.transpose(2, 0, 1)
    if raw.ndim == 3 and raw.shape[0] in _CHANNELS:
        return raw
    if raw.ndim == 1:
        for channels in (1, 3):
            side = isqrt(raw.size // channels)
            if side and channels * side * side == raw.size:
                return raw.reshape(channels, side, side)
    raise ValueError(
        f"of shape {raw.shape}; expected (height, width), with 1, 3 or 4 channels before or behind, or a flat square"
    )


def narrowed(raw: NDArray[Any]) -> NDArray[Any]:
    """Return integers of wider types as uint8, or uint16 if one is above 255; all others as they are.

    Files of text and lists have no 8-bit type: that levels end at 255 or at 65,535 is told by the largest of all.

    Raises
    ------
    ValueError
        If one is negative or above 65,535.
    """
    if raw.dtype.kind not in "iu" or raw.dtype.itemsize == 1 and raw.dtype.kind == "u":
        return raw
    if not raw.size:
        return raw.astype(np.uint8)
    low, high = int(raw.min()), int(raw.max())
    if low < 0 or high > 65_535:
        raise ValueError(f"levels from {low} to {high}; expected 0 to 255, or 0 to 65,535")
    return raw if raw.dtype == np.uint16 else raw.astype(np.uint8 if high <= 255 else np.uint16)


def class_labels(raw: Any, images: int, where: str) -> NDArray[np.int64]:
    """Return labels (N,) or (N, 1) as int64 class indices (N,).

    Parameters
    ----------
    raw : array-like
        As the file has them.
    images : int
        How many images there are.
    where : str
        What the labels are called, for messages.

    Raises
    ------
    ScenarioError
        If they are several an image, no whole numbers from 0 to :data:`MOST_CLASSES`, or not as many as images.
    """
    if not images:
        raise ScenarioError(f"{where}: no images; expected at least one")
    array = np.asarray(raw)
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 1:
        raise ScenarioError(
            f"{where}: labels of shape {array.shape}; expected one class an image, (N,) or (N, 1): of one-hot rows save the "
            "argmax; several classes an image are not read"
        )
    if array.dtype.kind not in "iub":
        raise ScenarioError(f"{where}: labels are {array.dtype}; expected whole numbers from 0, one for each class")
    if len(array) != images:
        raise ScenarioError(f"{where}: {len(array)} labels for {images} images; expected as many")
    outside = (array < 0) | (array >= MOST_CLASSES)
    if outside.any():
        worst = int(outside.argmax())
        raise ScenarioError(
            f"{where}: label {array[worst]} of image {worst}; expected 0 to {MOST_CLASSES - 1:,}; leave out those without a class"
        )
    return array.astype(np.int64)


def numbered(*splits: ImageSet | None) -> tuple[str, ...]:
    """Return the numbers of all classes up to the highest label as their names."""
    highest = max(int(images.labels.max()) for images in splits if images is not None)
    return tuple(str(index) for index in range(highest + 1))


def check_room(nbytes: int, where: str, remedy: str) -> None:
    """Refuse an array that would take more than half of the machine's memory, before it is read.

    Raises
    ------
    ScenarioError
        With its size and the ``remedy``.
    """
    try:
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # a system that does not tell
        return
    if nbytes > _SHARE_OF_MEMORY * memory:
        raise ScenarioError(f"{where}: {nbytes / 2**30:.1f} GiB unpacked, on a machine of {memory / 2**30:.1f} GiB; {remedy}")
