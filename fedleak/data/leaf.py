"""LEAF's json, such as FEMNIST's: ``users``, and for each of them its images ``x`` and labels ``y`` (Caldas et al., arXiv
1812.01097).

``data.path`` is a folder with ``train/*.json`` and perhaps ``test/*.json`` (LEAF's ``data/`` above them is known too), or
with the files themselves. An image is a flat list of a square's levels in [0, 1], or nested lists. ``data.partition =
"natural-id"`` gives each client one user's images. Class names are the numbers. Channel statistics are measured on at
most 1,000 test images; without them they are 0.5 and 0.5.

Limits: images alone: Shakespeare, Reddit and Sent140 are text, and CelebA's json names files; held in memory, a byte a
level where the levels are 8-bit ones
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedleak.data.arrays import ArrayImages, check_room, class_labels, narrowed, numbered
from fedleak.data.base import sources
from fedleak.data.folder import nothing_found, required_folder
from fedleak.data.statistics import MeasuredSource
from fedleak.errors import ScenarioError
from fedleak.scenario.schema import Data

EXPECTED = "train/*.json and perhaps test/*.json, each with 'users' and 'user_data'"
_PARSED = 8  # bytes of memory for each byte of json, about, while a file is read


@sources.register
class Leaf(MeasuredSource):
    """Images by writer, or another user."""

    name = "leaf"

    def __init__(self, data: Data) -> None:
        root = required_folder(data, EXPECTED)
        train, test = _files(root)
        if not train:
            raise nothing_found(data, root, "no such files in it", EXPECTED)
        self.train, self._users = _read(train, data)
        self.test = _read(test, data)[0] if test else None
        self.class_names = numbered(self.train, self.test)

    @classmethod
    def recognises(cls, path: Path) -> bool:
        """Say whether it is a folder with such files."""
        return path.is_dir() and bool(_files(path)[0])

    def natural_ids(self, column: str | None) -> NDArray[np.generic]:
        """Return the user of each training image."""
        return self._users if column in (None, "user") else super().natural_ids(column)


def _files(root: Path) -> tuple[list[Path], list[Path]]:
    for folder in (root, root / "data"):
        if train := _of_leaf(folder / "train"):
            return train, _of_leaf(folder / "test")
    return _of_leaf(root), []


def _of_leaf(folder: Path) -> list[Path]:
    found = sorted(folder.glob("*.json"))
    if not found:
        return []
    with found[0].open("rb") as file:
        start = file.read(4096)
    return found if b'"users"' in start or b'"user_data"' in start or b'"num_samples"' in start else []


def _read(paths: list[Path], data: Data) -> tuple[ArrayImages, NDArray[np.generic]]:
    arrays: list[NDArray[Any]] = []
    labels: list[NDArray[np.int64]] = []
    users: list[str] = []
    for path in paths:
        for user, held in _content(path):
            where = f"{path}, user '{user}'"
            array = _levels(held.get("x"), where)
            if not len(array):
                continue
            arrays.append(array)
            labels.append(class_labels(held.get("y"), len(array), where))
            users += [user] * len(array)
    if not arrays:
        raise ScenarioError(f"{paths[0]}: no image in it; expected {EXPECTED}")
    images = ArrayImages(arrays, np.concatenate(labels), str(paths[0].parent), data.image_size, data.channels)
    return images, np.array(users)


def _content(path: Path) -> list[tuple[str, dict[str, Any]]]:
    check_room(_PARSED * path.stat().st_size, str(path), "split it into files of fewer users")
    try:
        content = json.loads(path.read_bytes())
        return [(str(user), dict(content["user_data"][user])) for user in content["users"]]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ScenarioError(
            f"{path}: no json of LEAF's ({error!r}); expected 'users', and 'user_data' with 'x' and 'y' of each"
        ) from error


def _levels(x: Any, where: str) -> NDArray[Any]:
    """Return a user's images (n, ...) as uint8 where that loses nothing, and otherwise as float32."""
    first: Any = x
    while isinstance(first, list) and first:
        first = first[0]
    if isinstance(first, str):
        raise ScenarioError(
            f"{where}: x is text ('{first[:30]}'), no image; "
            "put files that it names into class folders for data.source = 'imagefolder'"
        )
    try:
        array = np.asarray(x if x else [])
        if array.dtype.kind in "iu":
            # 0 and 1 alone may be a picture's darkest and lightest, or two of 256 levels: LEAF's own are in [0, 1].
            return narrowed(array) if array.size and array.max() > 1 else array.astype(np.float32)
        exact = array.astype(np.float32)
    except (ValueError, TypeError) as error:
        raise ScenarioError(f"{where}: x is no list of images of one size ({error})") from error
    if exact.size and exact.min() >= 0 and exact.max() <= 1:
        bytes_ = np.rint(exact * 255).astype(np.uint8)
        if np.array_equal(bytes_.astype(np.float32) / np.float32(255), exact):
            return bytes_
    return exact
