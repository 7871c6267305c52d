"""Image files in one folder for each class, with or without ``train/`` and ``val/`` (or ``test/``) above them.

``data.path`` is the folder that holds the class folders or the splits. Where there is only one split, it is the training
split and there is no test split. Images are resized and centre-cropped to ``data.image_size``, 64 pixels by default. Grey
images have one channel, 16-bit ones keep their range, and an alpha channel is dropped: the colours that it hides stay
(``data.channels`` takes all as grey or as colour). Channel statistics are measured on at most 1,000 test images; without
a test split they are 0.5 and 0.5.

Limits: the folders are the classes, in the order of their names; of ``val/`` and ``test/`` only the first is read
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fedleak.data.base import sources
from fedleak.data.folder import nothing_found, required_folder
from fedleak.data.images import SUFFIXES, ImageFiles
from fedleak.data.statistics import MeasuredSource
from fedleak.errors import nearest
from fedleak.scenario.schema import Data

EXPECTED = "class folders, or with train/ and val/ (or test/) and class folders in them"


@sources.register
class ImageFolder(MeasuredSource):
    """The user's own image files."""

    name = "imagefolder"

    def __init__(self, data: Data) -> None:
        root = required_folder(data, EXPECTED)
        splits = [root / split for split in ("train", "val", "test") if (root / split).is_dir()]
        train = splits[0] if splits else root
        self.class_names = tuple(folder.name for folder in _class_folders(train))
        if not self.class_names:
            raise nothing_found(data, train, "no class folder in it", f"a folder with {EXPECTED}")
        self.train = _read(data, train, self.class_names)
        self.test = _read(data, splits[1], self.class_names) if len(splits) > 1 else None

    @classmethod
    def recognises(cls, path: Path) -> bool:
        """Say whether it is a folder with images in class folders."""
        if not path.is_dir() or (path / "val" / "val_annotations.txt").is_file():
            return False
        train = path / "train" if (path / "train").is_dir() else path
        first = _class_folders(train)[:1]
        return any(file.suffix.lower() in SUFFIXES for folder in first for file in folder.iterdir())


def _class_folders(split: Path) -> list[Path]:
    return sorted(folder for folder in split.iterdir() if folder.is_dir() and not folder.name.startswith("."))


def _read(data: Data, split: Path, class_names: tuple[str, ...]) -> ImageFiles:
    paths: list[Path] = []
    labels: list[int] = []
    for folder in _class_folders(split):
        if folder.name not in class_names:
            problem = f"not a class of the training split; {nearest(folder.name, class_names)}"
            raise nothing_found(data, split.parent, f"{split.name}/{folder.name}: {problem}", EXPECTED)
        found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
        paths += found
        labels += [class_names.index(folder.name)] * len(found)
    if not paths:
        raise nothing_found(data, split, "no images in its class folders", "files such as .jpg or .png")
    return ImageFiles(paths, np.array(labels, dtype=np.int64), data.image_size or 64, data.channels)
