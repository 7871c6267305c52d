"""CIFAR-10 (50,000 training and 10,000 test images of 32 x 32 pixels; Krizhevsky, 2009).

Downloaded once through flwr-datasets from Hugging Face (uoft-cs/cifar10), into Hugging Face's own cache; or, if
``data.path`` is given, read from the files there: Parquet, as the source ``parquet`` reads them, or the authors' own batches, as
``cifar-batches`` does.

Limits: without ``data.path`` its first use needs the network
"""

from __future__ import annotations

from fedleak.data.base import ImageSet, Source, sources
from fedleak.data.cifar_batches import CifarBatches
from fedleak.data.parquet import EXPECTED, check_labels, images_from, read_folder
from fedleak.data.samples import CIFAR10_CLASSES, CIFAR10_MEAN, CIFAR10_STD
from fedleak.errors import ScenarioError
from fedleak.scenario.schema import Data

REPOSITORY = "uoft-cs/cifar10"


@sources.register
class Cifar10(Source):
    """CIFAR-10 with its published channel statistics."""

    name = "cifar10"
    class_names = CIFAR10_CLASSES
    mean = CIFAR10_MEAN
    std = CIFAR10_STD

    def __init__(self, data: Data) -> None:
        self.train: ImageSet
        if data.path is not None and CifarBatches.recognises(data.path.expanduser()):
            batches = CifarBatches(data)
            self.train, self.test = batches.train, batches.test
        elif data.path is not None:
            splits = read_folder(data)
            self.train, self.test = splits.train, splits.test
        else:
            self.train, self.test = _download("train", data), _download("test", data)
        for images in (self.train, self.test):
            check_labels(images, len(CIFAR10_CLASSES))


def _download(split: str, data: Data) -> ImageSet:
    import httpx
    from datasets import Image
    from datasets.exceptions import DatasetsError
    from flwr_datasets import FederatedDataset

    try:
        dataset = FederatedDataset(dataset=REPOSITORY, partitioners={"train": 1}, shuffle=False).load_split(split)
    except (OSError, DatasetsError, httpx.HTTPError) as error:
        raise ScenarioError(
            f"data.source 'cifar10': the download of {REPOSITORY} failed ({error}); "
            f"check the network, or give data.path, a folder with {EXPECTED}"
        ) from error
    # Without this, every image would be decoded here instead of when it is asked for.
    encoded = dataset.cast_column("img", Image(decode=False)).with_format("arrow")
    return images_from([(f"{REPOSITORY} {split}", encoded[:])], data)
