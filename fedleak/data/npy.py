"""NumPy arrays in files: ``train_images.npy`` and ``train_labels.npy``, and perhaps ``test_images.npy`` and ``test_labels.npy``.

``data.path`` is the folder. ``x_train.npy`` and ``y_train.npy`` are known too, and so are ``images.npy`` and
``labels.npy`` alone. Images are (N, H, W), (N, H, W, C) or (N, C, H, W) of uint8, uint16 or floats in [0, 1]; labels (N,)
or (N, 1). Files are mapped into memory and read as images are asked for. Class names are the numbers. Channel statistics
are measured on at most 1,000 test images; without them they are 0.5 and 0.5.

Limits: arrays of Python objects are pickles, and refused; one class an image
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from fedleak.data.arrays import ArrayImages, class_labels, numbered
from fedleak.data.base import sources
from fedleak.data.folder import nothing_found, required_folder
from fedleak.data.statistics import MeasuredSource
from fedleak.errors import ScenarioError
from fedleak.scenario.schema import Data

EXPECTED = "train_images.npy and train_labels.npy, and perhaps test_images.npy and test_labels.npy"
NAMES: Final[tuple[tuple[str, str], ...]] = (("{}_images", "{}_labels"), ("x_{}", "y_{}"), ("X_{}", "y_{}"))
_READERS: Final = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
_ALONE: Final = (("images", "labels"), ("x", "y"), ("X", "y"))


@dataclass(frozen=True)
class Header:
    """What the head of an .npy says: nothing is allocated before it is known to fit."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    order: Literal["C", "F"]
    length: int

    @property
    def nbytes(self) -> int:
        """Bytes of the array."""
        return prod(self.shape) * self.dtype.itemsize


@sources.register
class Npy(MeasuredSource):
    """Pairs of arrays."""

    name = "npy"

    def __init__(self, data: Data) -> None:
        folder = required_folder(data, EXPECTED)
        train = _pair(folder, ("train",)) or next((pair for pair in _ALONE if _exist(folder, pair)), None)
        if train is None:
            raise nothing_found(data, folder, "no such pair in it", EXPECTED)
        test = _pair(folder, ("test", "val", "valid"))
        self.train = _images(folder, train, data)
        self.test = _images(folder, test, data) if test is not None else None
        self.class_names = numbered(self.train, self.test)

    @classmethod
    def recognises(cls, path: Path) -> bool:
        """Say whether it is a folder with such a pair."""
        return path.is_dir() and (_pair(path, ("train",)) or any(_exist(path, pair) for pair in _ALONE)) not in (None, False)


def _pair(folder: Path, splits: tuple[str, ...]) -> tuple[str, str] | None:
    pairs = ((image.format(split), label.format(split)) for split in splits for image, label in NAMES)
    return next((pair for pair in pairs if _exist(folder, pair)), None)


def _exist(folder: Path, pair: tuple[str, str]) -> bool:
    return all((folder / f"{name}.npy").is_file() for name in pair)


def _images(folder: Path, pair: tuple[str, str], data: Data) -> ArrayImages:
    image, label = (folder / f"{name}.npy" for name in pair)
    images = mapped(image)
    labels = class_labels(mapped(label), len(images), str(label))
    return ArrayImages([images], labels, str(image), data.image_size, data.channels)


def mapped(path: Path) -> NDArray[Any]:
    """Return the array of an .npy, mapped and not to be written to.

    Raises
    ------
    ScenarioError
        If it is none, holds Python objects, or is shorter than it says.
    """
    try:
        with path.open("rb") as file:
            header = header_of(file, str(path))
        if path.stat().st_size < header.length + header.nbytes:
            raise ScenarioError(f"{path}: ends before the {header.nbytes} bytes that its head names; replace the file")
        return np.memmap(path, header.dtype, "r", header.length, header.shape, header.order)
    except (OSError, ValueError) as error:
        raise ScenarioError(f"{path}: cannot be read ({error}); expected an array that numpy.save wrote") from error


def header_of(file: Any, where: str) -> Header:
    """Read the head of an .npy; the file stands behind it then.

    Raises
    ------
    ScenarioError
        If it is none, the array holds Python objects, or is no list of anything.
    """
    try:
        version = np.lib.format.read_magic(file)
        read = _READERS.get(version)
        if read is None:
            raise ValueError(f"version {version[0]}.{version[1]} of the format, expected 1.0 or 2.0")
        shape, fortran, dtype = read(file)
    except ValueError as error:
        raise ScenarioError(f"{where}: no NumPy array ({error}); expected one that numpy.save wrote") from error
    if dtype.hasobject or dtype.fields:
        raise ScenarioError(f"{where}: holds {'Python objects, a pickle' if dtype.hasobject else 'records'}; save it as numbers")
    if not shape or min(shape) < 0:
        raise ScenarioError(f"{where}: of shape {shape}; expected (N, ...)")
    return Header(dtype, shape, "F" if fortran else "C", file.tell())
