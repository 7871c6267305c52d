"""Images in tar files as WebDataset has them: ``0001.jpg`` and ``0001.cls`` (or ``0001.json``) side by side.

``data.path`` is one .tar or a folder of them: files with ``test`` or ``val`` in their names are the test split, all
others training images, in the order of the files' names. A label is the number in ``.cls``, or what ``.json`` has under
``label``; ``data.columns = { image = "input.png", label = "class_id" }`` names other extensions, or another key of the
JSON. Tars are read once through for their heads, and images as they are asked for. Class names are the numbers. Channel
statistics are measured on at most 1,000 test images; without them they are 0.5 and 0.5.

Limits: packed tars (.tar.gz) are refused: in them nothing can be found without unpacking all before it
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedleak.data.arrays import class_labels, numbered
from fedleak.data.base import sources
from fedleak.data.folder import nothing_found, required_path
from fedleak.data.images import SUFFIXES, PillowImages
from fedleak.data.statistics import MeasuredSource
from fedleak.errors import ScenarioError
from fedleak.scenario.schema import Data

EXPECTED = "a .tar, or a folder of them, with pairs such as 0001.jpg and 0001.cls (or 0001.json with a key 'label')"
_LONGEST_LABEL = 2**20  # bytes of a .cls or .json


@dataclass
class _Sample:
    key: str
    image: tuple[int, int] | None = None  # where in the tar, and how many bytes
    label: int | None = None
    extensions: list[str] = field(default_factory=list)


class TarImages(PillowImages):
    """Encoded images in tar files, read when they are asked for.

    Parameters
    ----------
    paths : list of Path
        The tar files.
    places : ndarray
        (N, 3) int64: which file, at which byte, how many bytes.
    labels, image_size, channels
        As for :class:`PillowImages`.
    """

    def __init__(
        self,
        paths: list[Path],
        places: NDArray[np.int64],
        labels: NDArray[np.int64],
        image_size: int | None,
        channels: int | None,
    ) -> None:
        super().__init__(labels, image_size, channels)
        self._paths, self._places = paths, places

    def describe(self, index: int) -> str:
        """Return the tar's path, and at which of its bytes the image begins."""
        number, start, _ = self._places[index]
        return f"{self._paths[number]}, byte {start}"

    def _open(self, index: int) -> io.BytesIO:
        number, start, size = map(int, self._places[index])
        with self._paths[number].open("rb") as file:
            file.seek(start)
            return io.BytesIO(file.read(size))


@sources.register
class WebDataset(MeasuredSource):
    """Shards of images and labels."""

    name = "webdataset"
    takes_columns = True

    def __init__(self, data: Data) -> None:
        path = required_path(data, EXPECTED)
        tars = [path] if path.is_file() else sorted(path.glob("*.tar"))
        if not tars:
            raise nothing_found(data, path, "no .tar in it", EXPECTED)
        test = [] if path.is_file() else [tar for tar in tars if any(word in tar.stem.lower() for word in ("test", "val"))]
        self.train = _read([tar for tar in tars if tar not in test] or tars, data)
        self.test = _read(test, data) if test and len(test) < len(tars) else None
        self.class_names = numbered(self.train, self.test)

    @classmethod
    def recognises(cls, path: Path) -> bool:
        """Say whether it is a plain tar, or a folder with one."""
        return path.suffix == ".tar" if path.is_file() else any(path.glob("*.tar"))


def _read(tars: list[Path], data: Data) -> TarImages:
    places, labels = [], []
    for number, tar in enumerate(tars):
        for sample in _samples(tar, data):
            if sample.image is None or sample.label is None:
                missing = "image" if sample.image is None else "label"
                raise ScenarioError(
                    f"{tar}: sample '{sample.key}' of {', '.join(sample.extensions)} has no {missing}; expected {EXPECTED}; "
                    "name others by data.columns"
                )
            places.append((number, *sample.image))
            labels.append(sample.label)
    where = ", ".join(tar.name for tar in tars[:3])
    checked = class_labels(labels, len(places), f"data.path: {tars[0].parent}: {where}")
    return TarImages(tars, np.array(places, dtype=np.int64), checked, data.image_size, data.channels)


def _samples(tar: Path, data: Data) -> Iterator[_Sample]:
    """Yield what lies side by side under one name up to the first dot, in the order of the tar."""
    image = data.columns.image if data.columns is not None else None
    label = data.columns.label if data.columns is not None else None
    present: _Sample | None = None
    try:
        with tarfile.open(tar, "r:") as archive:
            for member in archive:
                archive.members = []  # type: ignore[attr-defined]  # or all heads are kept
                if not member.isreg() or Path(member.name).name.startswith("."):
                    continue
                folder, _, name = member.name.rpartition("/")
                stem, _, extension = name.partition(".")
                key = f"{folder}/{stem}" if folder else stem
                if present is None or present.key != key:
                    if present is not None:
                        yield present
                    present = _Sample(key)
                extension = extension.lower()
                present.extensions.append(extension)
                if extension == image or (image is None and f".{extension}" in SUFFIXES):
                    present.image = (member.offset_data, member.size)
                elif extension in (label, "cls", "json") and member.size <= _LONGEST_LABEL and present.label is None:
                    file = archive.extractfile(member)
                    present.label = _label(file.read() if file else b"", extension, label, f"{tar}: {member.name}")
    except (OSError, tarfile.TarError, EOFError) as error:
        raise ScenarioError(f"{tar}: cannot be read as a plain tar ({error}); unpack a packed one with gunzip") from error
    if present is not None:
        yield present


def _label(content: bytes, extension: str, column: str | None, where: str) -> int | None:
    """Return the label that a file tells; ``None`` if it is JSON without the key."""
    text = content.decode("utf-8", "replace").strip()
    try:
        if extension != "json":
            return int(text)
        found = json.loads(text)
        value = found.get(column or "label") if isinstance(found, dict) else found
        return None if value is None else int(value)
    except (ValueError, TypeError, RecursionError) as error:
        raise ScenarioError(f"{where}: '{text[:40]}' is no class number; expected a whole number from 0") from error
