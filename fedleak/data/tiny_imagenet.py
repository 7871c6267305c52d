"""Tiny-ImageNet as it is unpacked: ``train/<wnid>/images/``, and ``val/images/`` with ``val_annotations.txt``.

``data.path`` is the folder with ``train/``. Its 200 classes are in the order of their WordNet ids, and called by the
first word of ``words.txt`` where that is one class's alone. Images keep their 64 pixels unless ``data.image_size`` says
otherwise. Channel statistics are measured on at most 1,000 validation images.

Limits: ``test/`` has no labels, and is not read
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np

from fedleak.data.base import sources
from fedleak.data.folder import nothing_found, required_folder
from fedleak.data.images import SUFFIXES, ImageFiles
from fedleak.data.statistics import MeasuredSource
from fedleak.errors import ScenarioError, nearest
from fedleak.scenario.schema import Data

EXPECTED = "train/<wnid>/images/, and perhaps val/images/ with val/val_annotations.txt"
_ANNOTATIONS = "val_annotations.txt"


@sources.register
class TinyImageNet(MeasuredSource):
    """The 100,000 training and 10,000 validation images, or a part of them."""

    name = "tiny-imagenet"

    def __init__(self, data: Data) -> None:
        root = required_folder(data, EXPECTED)
        wnids = [folder.parent.name for folder in sorted((root / "train").glob("*/images"))]
        paths, labels = [], []
        for label, wnid in enumerate(wnids):
            found = sorted(path for path in (root / "train" / wnid / "images").iterdir() if path.suffix.lower() in SUFFIXES)
            paths += found
            labels += [label] * len(found)
        if not paths:
            raise nothing_found(data, root, "no images in train/*/images/", EXPECTED)
        self.train = ImageFiles(paths, np.array(labels, dtype=np.int64), data.image_size, data.channels)
        self.test = _validation(root / "val", wnids, data) if (root / "val" / _ANNOTATIONS).is_file() else None
        self.class_names = _names(root / "words.txt", wnids)

    @classmethod
    def recognises(cls, path: Path) -> bool:
        """Say whether it is such a folder."""
        return (path / "val" / _ANNOTATIONS).is_file() or any((path / "train").glob("n*/images"))


def _validation(folder: Path, wnids: list[str], data: Data) -> ImageFiles:
    """Return the validation images in the order of the annotations: lines of a file's name, a tab, its class, and a box."""
    paths, labels = [], []
    annotations = folder / _ANNOTATIONS
    for number, line in enumerate(annotations.read_text(encoding="utf-8", errors="replace").splitlines(), start=1):
        name, _, rest = line.partition("\t")
        wnid = rest.partition("\t")[0].strip()
        if not name.strip():
            continue
        if wnid not in wnids:
            raise ScenarioError(f"{annotations}, line {number}: '{wnid}' is no class of train/; {nearest(wnid, wnids)}")
        paths.append(folder / "images" / Path(name).name)
        labels.append(wnids.index(wnid))
    if not paths:
        raise ScenarioError(f"{annotations}: no line in it; expected a file's name, a tab and its class on each")
    return ImageFiles(paths, np.array(labels, dtype=np.int64), data.image_size, data.channels)


def _names(words: Path, wnids: list[str]) -> tuple[str, ...]:
    if not words.is_file():
        return tuple(wnids)
    lines = (line.partition("\t") for line in words.read_text(encoding="utf-8", errors="replace").splitlines())
    known = {wnid: text.partition(",")[0].strip() for wnid, _, text in lines}
    called = [known.get(wnid) or wnid for wnid in wnids]
    often = Counter(called)
    return tuple(name if often[name] == 1 else wnid for name, wnid in zip(called, wnids, strict=True))
