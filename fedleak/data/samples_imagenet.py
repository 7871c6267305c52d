"""The 20 ImageNet validation images that come with the package foolbox: nothing to download.

Labels are renumbered from 0 in the order of their ImageNet index, which stays in the class's name
("imagenet-243"). Images are 64 x 64 pixels unless ``data.image_size`` says otherwise.

Limits: too few to train on, and no test split, so that reports show no accuracy
"""

from __future__ import annotations

import numpy as np

from fedleak.data.base import Source, sources
from fedleak.data.images import ImageFiles
from fedleak.data.samples import foolbox_images
from fedleak.scenario.schema import Data


@sources.register
class SamplesImageNet(Source):
    """foolbox's ImageNet images; published channel statistics of ImageNet."""

    name = "samples-imagenet"
    mean = (0.485, 0.456, 0.406)
    std = (0.229, 0.224, 0.225)

    def __init__(self, data: Data) -> None:
        paths, indices = foolbox_images("imagenet")
        distinct, labels = np.unique(indices, return_inverse=True)
        self.class_names = tuple(f"imagenet-{index}" for index in distinct)
        self.train = ImageFiles(paths, labels.astype(np.int64), data.image_size or 64, data.channels)
