"""The 20 CIFAR-10 test images, lossless PNGs of 32 x 32 pixels, that come with the package foolbox: nothing to download.

Enough for attacks on single images and small batches.

Limits: too few to train on, and no test split, so that reports show no accuracy
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np

from fedleak.data.base import Source, sources
from fedleak.data.images import ImageFiles
from fedleak.errors import ScenarioError
from fedleak.scenario.schema import Data

CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
CIFAR10_MEAN = (0.4914, 0.4822, 0.4465)
CIFAR10_STD = (0.2470, 0.2435, 0.2616)


def foolbox_images(prefix: str) -> tuple[list[Path], list[int]]:
    """Return paths and labels of foolbox's images ``prefix_INDEX_LABEL.*``, in the order of their index.

    Raises
    ------
    ScenarioError
        If the package or its images are not installed.
    """
    # find_spec does not import the package, which would take seconds and pull in other frameworks.
    spec = find_spec("foolbox")
    folders = list(spec.submodule_search_locations or ()) if spec else []
    paths = sorted(path for folder in folders for path in Path(folder, "data").glob(f"{prefix}_*_*.*"))
    if not paths:
        raise ScenarioError(
            f"data.source: the images '{prefix}' come with the package foolbox, which is missing; pip install foolbox"
        )
    return paths, [int(path.stem.rsplit("_", 1)[1]) for path in paths]


@sources.register
class Samples(Source):
    """foolbox's CIFAR-10 images; published channel statistics of CIFAR-10."""

    name = "samples"
    class_names = CIFAR10_CLASSES
    mean = CIFAR10_MEAN
    std = CIFAR10_STD

    def __init__(self, data: Data) -> None:
        paths, labels = foolbox_images("cifar10")
        self.train = ImageFiles(paths, np.array(labels, dtype=np.int64), data.image_size, data.channels)
