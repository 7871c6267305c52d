"""Sets of labelled images that Pillow decodes when they are asked for: files on disk, or encoded bytes in memory."""

from __future__ import annotations

import io
from abc import abstractmethod
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from fedleak.data.base import ImageSet
from fedleak.data.formats import START, format_of
from fedleak.data.pixels import Pixels, decode, form, has_alpha, is_deep, is_grey, unfit, unit
from fedleak.data.statistics import evenly_spaced
from fedleak.errors import ScenarioError

KEPT_BYTES = 256 * 2**20
"""Decoded pixels that one set of images keeps in memory, in bytes: all of CIFAR-10, 20,000 images of 64 x 64 pixels."""
SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff", ".webp"})
"""What files of images end in."""
_LOOKED_AT = 16  # images whose headers decide whether all are grey

# A damaged PNG chunk surfaces from Pillow as SyntaxError.
UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError)


class PillowImages(ImageSet):
    """Images in any format that Pillow reads: grey ones of one channel, colour of three (RGB); alpha is dropped.

    Parameters
    ----------
    labels : ndarray
        (N,) int64 class indices.
    image_size : int, optional
        The short side is resized to so many pixels (Lanczos) and the centre square is kept; without it, the
        images keep their size, and all must have the same.
    channels : int, optional
        1 or 3, to which all are brought. Without it, 3 if one of 16 evenly spaced images is in colour (grey ones among them
        become RGB), and 1 otherwise.
    """

    def __init__(self, labels: NDArray[np.int64], image_size: int | None = None, channels: int | None = None) -> None:
        self.labels = labels
        self.image_size = image_size
        self._channels = channels
        self._kept: Pixels | None = None
        self._place = np.full(len(labels), -1, dtype=np.int64)  # of each image among those that are kept
        self._held = 0

    @abstractmethod
    def describe(self, index: int) -> str:
        """Return what to call the image in a message."""

    def encoded(self, index: int) -> bytes:
        """Return the image at ``index`` as the bytes of its file."""
        opened = self._open(index)
        return opened.read_bytes() if isinstance(opened, Path) else opened.getvalue()

    @abstractmethod
    def _open(self, index: int) -> Path | io.BytesIO:
        """Return what Pillow is to open."""

    def load(self, indices: Sequence[int]) -> Tensor:
        """Return the images at ``indices`` as float32 (n, C, H, W) in [0, 1].

        Raises
        ------
        ScenarioError
            If an image cannot be read or has another size than the first one; the message names it.
        """
        height, width = self._size
        if not len(indices):
            return torch.empty(0, self.channels, height, width)
        places = self._place[np.asarray(indices)]
        if self._kept is not None and places.min() >= 0:
            return torch.from_numpy(unit(self._kept[places]))
        return torch.from_numpy(np.stack([unit(self._pixels(int(index))) for index in indices]))

    def verify(self, indices: Sequence[int], *, headers_only: bool = False) -> None:
        """Read the images at ``indices``, or only their headers.

        Raises
        ------
        ScenarioError
            If one cannot be read or has another size than the first one; the message names it.
        """
        for index in map(int, indices):
            if headers_only:
                self._verify_header(index)
            else:
                self._pixels(index)

    def _verify_header(self, index: int) -> None:
        try:
            with Image.open(self._open(index)) as image:
                size = (image.height, image.width)
                self._check_header(index, image)
        except UNREADABLE as error:
            raise self._unreadable(index, error) from error
        if self.image_size is None:
            self._check_size(index, size)

    def _pixels(self, index: int) -> Pixels:
        """Return an image as uint8 or uint16 (C, H, W), decoded once for as long as there is room."""
        if self._kept is not None and (place := self._place[index]) >= 0:
            kept: Pixels = self._kept[place]
            return kept
        pixels = self._decode(index)
        self._check_size(index, (pixels.shape[1], pixels.shape[2]))
        if self._kept is None:
            # One array and no object for each image, which Python's garbage collector would walk through ever again. Its memory
            # is taken as it fills.
            self._kept = np.empty((min(len(self), KEPT_BYTES // pixels.nbytes), *pixels.shape), dtype=pixels.dtype)
        if self._held < len(self._kept) and pixels.dtype == self._kept.dtype:
            self._kept[self._held] = pixels
            self._place[index] = self._held
            self._held += 1
        return pixels

    @cached_property
    def channels(self) -> int:
        """How many channels all images have: 1 or 3."""
        return self._channels or (1 if self._looks[0] else 3)

    @property
    def form(self) -> str:
        """What the files hold and what becomes of it, as far as 16 of them tell."""
        return form(*self._looks, self.channels)

    @cached_property
    def _looks(self) -> tuple[bool, bool, bool]:
        """Whether all that are looked at are grey, and whether one has 16 bits, and one an alpha channel."""
        found = []
        for index in evenly_spaced(len(self), _LOOKED_AT):
            try:
                with Image.open(self._open(index)) as image:
                    found.append((is_grey(image), is_deep(image), has_alpha(image)))
            except UNREADABLE:  # said, with its name, when it is asked for
                continue
        grey, deep, alpha = zip(*found, strict=True) if found else ((False,), (False,), (False,))
        return all(grey), any(deep), any(alpha)

    @cached_property
    def _size(self) -> tuple[int, int]:
        _, height, width = self._decode(0).shape
        return height, width

    def _decode(self, index: int) -> Pixels:
        try:
            with Image.open(self._open(index)) as image:
                self._check_header(index, image)
                return decode(image, self.channels, self.image_size)
        except UNREADABLE as error:
            raise self._unreadable(index, error) from error

    def _check_header(self, index: int, image: Image.Image) -> None:
        if (reason := unfit(image)) is not None:
            raise ScenarioError(f"{self.describe(index)}: {reason}")
        if self._channels is None and self.channels == 1 and not is_grey(image):
            raise ScenarioError(
                f"{self.describe(index)}: in colour, where others such as {self.describe(0)} are grey; give data.channels = 3 to "
                "take all as colour, or 1 to take all as grey"
            )

    def _check_size(self, index: int, size: tuple[int, int]) -> None:
        if size != self._size:
            raise ScenarioError(
                f"{self.describe(index)}: the image is {size[1]} x {size[0]} pixels, where {self.describe(0)} is "
                f"{self._size[1]} x {self._size[0]}; give data.image_size to bring all images to one size"
            )

    def _unreadable(self, index: int, error: BaseException) -> ScenarioError:
        known = None if isinstance(error, Image.DecompressionBombError) else format_of(self._start(index))
        if known is not None:
            return ScenarioError(f"{self.describe(index)}: cannot be read as an image: {known}")
        return ScenarioError(
            f"{self.describe(index)}: cannot be read as an image ({error}); expected JPEG, PNG or another format that Pillow "
            "reads; replace or remove it"
        )

    def _start(self, index: int) -> bytes:
        """Return the first bytes of the image's file; none if there are none."""
        try:
            opened = self._open(index)
            with opened.open("rb") if isinstance(opened, Path) else opened as file:
                return file.read(START)
        except UNREADABLE:
            return b""


class ImageFiles(PillowImages):
    """Image files on disk.

    Parameters
    ----------
    paths : sequence of Path
        One file for each label.
    labels : ndarray
        (N,) int64 class indices.
    image_size, channels : int, optional
        As for :class:`PillowImages`.
    """

    def __init__(
        self, paths: Sequence[Path], labels: NDArray[np.int64], image_size: int | None = None, channels: int | None = None
    ) -> None:
        super().__init__(labels, image_size, channels)
        self._paths = tuple(paths)

    def describe(self, index: int) -> str:
        """Return the file's path."""
        return str(self._paths[index])

    def _open(self, index: int) -> Path:
        return self._paths[index]


class EncodedImages(PillowImages):
    """Encoded image files in memory, as an Arrow column.

    Parameters
    ----------
    column : pyarrow.ChunkedArray
        (N,) binary, or structs with a binary field ``bytes``.
    labels : ndarray
        (N,) int64 class indices.
    origins : sequence of (str, int)
        For each file that the column was read from, its name and the number of its rows.
    image_size, channels : int, optional
        As for :class:`PillowImages`.
    """

    def __init__(
        self,
        column: Any,
        labels: NDArray[np.int64],
        origins: Sequence[tuple[str, int]],
        image_size: int | None = None,
        channels: int | None = None,
    ) -> None:
        super().__init__(labels, image_size, channels)
        self._column = column
        self._origins = tuple(origins)

    def describe(self, index: int) -> str:
        """Return the name of the file that the image was read from, and its row there (from 0)."""
        for name, rows in self._origins:
            if index < rows:
                return f"{name}, row {index}"
            index -= rows
        raise IndexError(f"row {index} lies beyond the last file")

    def _open(self, index: int) -> io.BytesIO:
        value = self._column[index].as_py()
        encoded = value.get("bytes") if isinstance(value, dict) else value
        if encoded is None:
            place = value.get("path") if isinstance(value, dict) else None
            raise ValueError("the row holds no bytes" + (f", only the path '{place}': embed the files" if place else ""))
        return io.BytesIO(encoded)
