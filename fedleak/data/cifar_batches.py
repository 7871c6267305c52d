"""CIFAR-10 and CIFAR-100 as their authors publish them: the Python version's pickles (never run), or the binary version.

``data.path`` is the unpacked folder: ``cifar-10-batches-py``, ``cifar-10-batches-bin``, ``cifar-100-python``,
``cifar-100-binary``, or the one above it. CIFAR-100's labels are the fine ones; ``data.columns = { label = "coarse_label"
}`` takes the 20 coarse ones. Channel statistics are measured on at most 1,000 test images.

Limits: the images of the Python version are held in memory (184 MB); a pickle that names anything but NumPy arrays is refused
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from fedleak.data.arrays import ArrayImages, class_labels, numbered
from fedleak.data.base import sources
from fedleak.data.folder import nothing_found, required_folder
from fedleak.data.inert import read_inert
from fedleak.data.statistics import MeasuredSource
from fedleak.errors import ScenarioError
from fedleak.scenario.schema import Data

EXPECTED = "data_batch_1 to data_batch_5 and test_batch (with or without .bin), or CIFAR-100's train and test"
_PIXELS: Final = 3 * 32 * 32
_LABELS: Final = ("fine_label", "coarse_label")


@sources.register
class CifarBatches(MeasuredSource):
    """The authors' own files."""

    name = "cifar-batches"
    takes_columns = True

    def __init__(self, data: Data) -> None:
        root = required_folder(data, EXPECTED)
        found = batches_in(root)
        if found is None:
            raise nothing_found(data, root, "no such files in it", EXPECTED)
        train, test = found
        column = _column(data, hundred=train[0].stem == "train")
        self.train = _images(train, column, data)
        self.test = _images(test, column, data) if test else None
        self.class_names = _names(train[0].parent, column) or numbered(self.train, self.test)
        for images in (self.train, self.test):
            if images is not None and images.labels.max() >= len(self.class_names):
                highest = images.labels.max()
                raise ScenarioError(
                    f"{images.describe(0)}: label {highest}, but only {len(self.class_names)} names; replace the files"
                )

    @classmethod
    def recognises(cls, path: Path) -> bool:
        """Say whether it is a folder with such files."""
        return path.is_dir() and batches_in(path) is not None


def batches_in(root: Path) -> tuple[list[Path], list[Path]] | None:
    """Return the files of training and test images in ``root`` or a folder ``cifar-*`` in it; ``None`` if there are none."""
    for folder in (root, *sorted(root.glob("cifar-*"))):
        for end in ("", ".bin"):
            ten = sorted(path for path in folder.glob(f"data_batch_?{end}") if path.is_file())
            hundred = [folder / f"train{end}"]
            for train, test in ((ten, folder / f"test_batch{end}"), (hundred, folder / f"test{end}")):
                if train and all(path.is_file() for path in train):
                    return train, [test] if test.is_file() else []
    return None


def _column(data: Data, hundred: bool) -> str:
    """Return which labels are meant: ``label`` of CIFAR-10, and one of two of CIFAR-100."""
    known = _LABELS if hundred else ("label",)
    columns = data.columns
    wanted = (columns.label if columns is not None else None) or known[0]
    if wanted.removesuffix("s") not in known or (columns is not None and columns.image is not None):
        raise ScenarioError(
            f"data.columns: these files have {', '.join(known)} as label, and no name for images; leave out others"
        )
    return wanted.removesuffix("s")


def _images(paths: Sequence[Path], column: str, data: Data) -> ArrayImages:
    read = [(_binary if path.suffix == ".bin" else _pickled)(path, column) for path in paths]
    arrays = [array for array, _ in read]
    labels = np.concatenate([labels for _, labels in read])
    return ArrayImages(arrays, labels, str(paths[0].parent / paths[0].name), data.image_size, data.channels)


def _pickled(path: Path, column: str) -> tuple[NDArray[Any], NDArray[np.int64]]:
    held = read_inert(path)
    array, labels = held.get("data"), held.get(f"{column}s")
    if (
        not isinstance(array, np.ndarray)
        or array.ndim != 2
        or array.shape[1] != _PIXELS
        or array.dtype != np.uint8
        or labels is None
    ):
        raise ScenarioError(
            f"{path}: holds {', '.join(map(str, held))}; expected 'data' of (N, {_PIXELS}) bytes, and '{column}s'"
        )
    return array.reshape(-1, 3, 32, 32), class_labels(labels, len(array), str(path))


def _binary(path: Path, column: str) -> tuple[NDArray[Any], NDArray[np.int64]]:
    before = 1 if column == "label" else 2  # coarse, then fine
    size = path.stat().st_size
    if not size or size % (before + _PIXELS):
        raise ScenarioError(f"{path}: {size} bytes are no whole number of images of {before} + {_PIXELS}; replace the file")
    rows = np.memmap(path, np.uint8, "r", shape=(size // (before + _PIXELS), before + _PIXELS))
    labels = class_labels(np.array(rows[:, before - 1 if column != "coarse_label" else 0]), len(rows), str(path))
    return rows[:, before:].reshape(-1, 3, 32, 32), labels


def _names(folder: Path, column: str) -> tuple[str, ...]:
    """Return the names of the classes, if their file lies beside the images."""
    pickled = folder / ("batches.meta" if column == "label" else "meta")
    if pickled.is_file():
        names = read_inert(pickled).get(f"{column}_names", ())
        return tuple(name.decode("utf-8", "replace") if isinstance(name, bytes) else str(name) for name in names)
    text = folder / ("batches.meta.txt" if column == "label" else f"{column}_names.txt")
    if text.is_file():
        return tuple(line.strip() for line in text.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip())
    return ()
