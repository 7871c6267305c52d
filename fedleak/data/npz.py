"""Arrays in one .npz, as MedMNIST publishes them: ``train_images``, ``train_labels``, and perhaps ``test_images``,
``test_labels``.

``data.path`` is the file, or a folder that holds one. Images are (N, H, W), (N, H, W, C) or (N, C, H, W) of uint8, uint16
or floats in [0, 1]; labels (N,) or (N, 1). ``x_train`` and ``y_train`` (Keras) are known too, and ``data.columns = {
image = "X", label = "y" }`` names others, which are all taken as training images. Class names are the numbers. Channel
statistics are measured on at most 1,000 test images; without them they are 0.5 and 0.5.

Limits: compressed arrays are unpacked into memory, at most half of the machine's; ``val_images`` is read only if there is
no test split; one class an image: several labels an image (ChestMNIST) are refused
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedleak.data.arrays import ArrayImages, check_room, class_labels, numbered
from fedleak.data.base import sources
from fedleak.data.folder import nothing_found, required_path
from fedleak.data.npy import NAMES, header_of
from fedleak.data.statistics import MeasuredSource
from fedleak.errors import ScenarioError
from fedleak.scenario.schema import Data

EXPECTED = "an .npz with train_images and train_labels (or x_train and y_train), and perhaps the same of test"


@sources.register
class Npz(MeasuredSource):
    """MedMNIST's files, and the like."""

    name = "npz"
    takes_columns = True

    def __init__(self, data: Data) -> None:
        path = _file(data)
        try:
            with zipfile.ZipFile(path) as archive:
                held = {name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")}
                names = _splits(data, path, held)
                self.train = _images(archive, path, names["train"], data)
                self.test = _images(archive, path, names["test"], data) if "test" in names else None
        # What a damaged archive or array raises.
        except (OSError, zipfile.BadZipFile, zlib.error, EOFError, ValueError, NotImplementedError) as error:
            raise ScenarioError(f"{path}: cannot be read as .npz ({error}); expected {EXPECTED}; replace the file") from error
        self.class_names = numbered(self.train, self.test)

    @classmethod
    def recognises(cls, path: Path) -> bool:
        """Say whether it is an .npz, or a folder with one."""
        return path.suffix == ".npz" if path.is_file() else any(path.glob("*.npz"))


def _file(data: Data) -> Path:
    path = required_path(data, EXPECTED)
    if path.is_file():
        return path
    found = sorted(path.glob("*.npz"))
    if len(found) != 1:
        problem = f"{len(found)} .npz in it ({', '.join(one.name for one in found[:5])})" if found else "no .npz in it"
        raise nothing_found(data, path, problem, "one file: " + EXPECTED)
    return found[0]


def _splits(data: Data, path: Path, held: set[str]) -> Mapping[str, tuple[str, str]]:
    """Return the names of images and labels of each split."""
    found = {}
    for split, stems in (("train", ("train",)), ("test", ("test", "val", "valid"))):
        pairs = [(image.format(stem), label.format(stem)) for stem in stems for image, label in NAMES]
        if pair := next((pair for pair in pairs if held.issuperset(pair)), None):
            found[split] = pair
    if data.columns is not None:
        usual = found.get("train", ("train_images", "train_labels"))
        # Which arrays would be the test split of others than the usual ones, nobody knows.
        found = {"train": (data.columns.image or usual[0], data.columns.label or usual[1])}
    if not held.issuperset(found.get("train", ("",))):
        where = "data.path" if data.columns is None else "data.columns"
        text = ", ".join(sorted(held)[:12]) or "none"
        raise ScenarioError(f"{where}: {path}: arrays in it are {text}; expected {EXPECTED}; name others by data.columns")
    return found


def _images(archive: zipfile.ZipFile, path: Path, names: tuple[str, str], data: Data) -> ArrayImages:
    image, label = names
    images = _array(archive, path, image)
    labels = class_labels(_array(archive, path, label), len(images), f"{path}, array '{label}'")
    return ArrayImages([images], labels, f"{path}, array '{image}'", data.image_size, data.channels)


def _array(archive: zipfile.ZipFile, path: Path, name: str) -> NDArray[Any]:
    """Return one array: mapped where it is not compressed, and else unpacked, after a look at how large it says it is."""
    member = archive.getinfo(f"{name}.npy")
    with archive.open(member) as file:
        header = header_of(file, f"{path}, array '{name}'")
        if member.compress_type == zipfile.ZIP_STORED:
            return np.memmap(path, header.dtype, "r", _start(path, member) + header.length, header.shape, header.order)
        check_room(header.nbytes, f"{path}, array '{name}'", "unpack it (unzip) into .npy files, which data.source = 'npy' maps")
        # No more is read than the header says, whatever the archive unpacks to.
        content = bytearray(header.nbytes)
        view, filled = memoryview(content), 0
        while filled < header.nbytes and (count := file.readinto(view[filled : filled + 2**24])):  # type: ignore[attr-defined]
            filled += count
        if filled < header.nbytes:
            raise ScenarioError(f"{path}, array '{name}': ends after {filled} of {header.nbytes} bytes; replace the file")
    return np.frombuffer(content, header.dtype).reshape(header.shape, order=header.order)


def _start(path: Path, member: zipfile.ZipInfo) -> int:
    """Return where a member's bytes begin; its own header has a name and extra fields of lengths of their own."""
    with path.open("rb") as file:
        file.seek(member.header_offset + 26)
        lengths = file.read(4)
    return member.header_offset + 30 + int.from_bytes(lengths[:2], "little") + int.from_bytes(lengths[2:], "little")
