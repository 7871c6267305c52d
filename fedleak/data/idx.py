"""MNIST's idx files, and those of Fashion-MNIST, KMNIST and EMNIST: ``train-images-idx3-ubyte`` and its labels, plain or ``.gz``.

``data.path`` is the folder that holds ``train-images-idx3-ubyte``, ``train-labels-idx1-ubyte`` and perhaps those of
``t10k`` (or ``test``), or torchvision's folder with ``raw/`` in it. Plain files are mapped and read as images are asked
for. Class names are the numbers. Channel statistics are measured on at most 1,000 test images; without them they are 0.5
and 0.5.

Limits: one set a folder; EMNIST's images lie on their side in its files, and are read so
"""

from __future__ import annotations

import gzip
import re
import zlib
from math import prod
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from fedleak.data.arrays import ArrayImages, check_room, class_labels, numbered
from fedleak.data.base import sources
from fedleak.data.folder import nothing_found, required_folder
from fedleak.data.statistics import MeasuredSource
from fedleak.errors import ScenarioError
from fedleak.scenario.schema import Data

EXPECTED = "train-images-idx3-ubyte and train-labels-idx1-ubyte (or .gz), and perhaps those of t10k"
_IMAGES: Final = re.compile(r"(?P<set>.*?)(?P<split>train|t10k|test)-images[-.]idx\d-ubyte(\.gz)?")
_TYPES: Final = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}


@sources.register
class Idx(MeasuredSource):
    """MNIST's form."""

    name = "idx"

    def __init__(self, data: Data) -> None:
        root = required_folder(data, EXPECTED)
        found = _found(root)
        train = [files for (_, split), files in found.items() if split == "train"]
        if len(train) != 1:
            problem = (
                f"{len(train)} sets in it, of {', '.join(files[0].name for files in train)}" if train else "no such files in it"
            )
            raise nothing_found(data, root, problem, f"one set: {EXPECTED}")
        test = [files for (_, split), files in found.items() if split != "train"]
        self.train = _images(*train[0], data)
        self.test = _images(*test[0], data) if test else None
        self.class_names = numbered(self.train, self.test)

    @classmethod
    def recognises(cls, path: Path) -> bool:
        """Say whether it is a folder with such files."""
        return path.is_dir() and bool(_found(path))


def _found(root: Path) -> dict[tuple[str, str], tuple[Path, Path]]:
    """Return images and labels of each set and split; plain files before packed ones."""
    found: dict[tuple[str, str], tuple[Path, Path]] = {}
    for folder in (root, root / "raw", *sorted(root.glob("*/raw"))):
        for path in sorted(folder.glob("*-images*-ubyte*")):
            named = _IMAGES.fullmatch(path.name)
            label = next((one for one in _labels_of(path) if one.is_file()), None)
            if named is not None and label is not None:
                found.setdefault((f"{folder}/{named['set']}", named["split"]), (path, label))
    return found


def _labels_of(images: Path) -> list[Path]:
    name = re.sub(r"-images([-.])idx\d", r"-labels\1idx1", images.name).removesuffix(".gz")
    return [images.with_name(name), images.with_name(f"{name}.gz")]


def _images(images: Path, labels: Path, data: Data) -> ArrayImages:
    array = read_idx(images)
    return ArrayImages(
        [array], class_labels(read_idx(labels), len(array), str(labels)), str(images), data.image_size, data.channels
    )


def read_idx(path: Path) -> NDArray[Any]:
    """Return the array of an idx file: mapped where the file is plain, unpacked where it is packed.

    Raises
    ------
    ScenarioError
        If it is damaged, or shorter than its head says.
    """
    packed = path.suffix == ".gz"
    try:
        with gzip.open(path) if packed else path.open("rb") as file:
            head = file.read(4)
            if len(head) < 4 or head[:2] != b"\0\0" or head[2] not in _TYPES or not head[3]:
                raise ScenarioError(f"{path}: no idx file (it begins with {head.hex() or 'nothing'}); replace the file")
            dtype = np.dtype(_TYPES[head[2]])
            sides = file.read(4 * head[3])
            if len(sides) < 4 * head[3]:
                raise ScenarioError(f"{path}: ends in its head; replace the file")
            shape = tuple(np.frombuffer(sides, ">u4").tolist())
            nbytes, start = prod(shape) * dtype.itemsize, 4 + 4 * head[3]
            if packed:
                check_room(nbytes, str(path), "unpack it with gunzip: plain files are mapped")
                content = file.read(nbytes)
            elif path.stat().st_size >= start + nbytes and nbytes:
                return np.memmap(path, dtype, "r", start, shape)
            else:
                content = b""
    except (OSError, EOFError, zlib.error) as error:
        raise ScenarioError(f"{path}: cannot be read ({error}); replace the file") from error
    if len(content) < nbytes:
        raise ScenarioError(f"{path}: ends before the {nbytes} bytes that its head names; replace the file")
    return np.frombuffer(content, dtype).reshape(shape)
