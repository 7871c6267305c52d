"""What every source of private images must do."""

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from fedleak.data import ImageSet, Source, sources
from fedleak.scenario.schema import Data


def picture(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (32, 32, 3), dtype=np.uint8))


def write_parquet(path: Path) -> None:
    for split, count in (("train", 6), ("test", 3)):
        encoded = []
        for number in range(count):
            buffer = io.BytesIO()
            picture(number + 100 * count).save(buffer, "PNG")
            encoded.append({"bytes": buffer.getvalue(), "path": None})
        pq.write_table(pa.table({"img": encoded, "label": [number % 3 for number in range(count)]}), path / f"{split}.parquet")


def write_folders(path: Path) -> None:
    for split, count in (("train", 6), ("val", 3)):
        for number in range(count):
            folder = path / split / f"class{number % 3}"
            folder.mkdir(parents=True, exist_ok=True)
            picture(number + 100 * count).save(folder / f"{number}.png")


FILES = {"parquet": write_parquet, "cifar10": write_parquet, "imagefolder": write_folders}


@pytest.fixture(params=sources.names())
def data(request, tmp_path) -> Data:
    """A ``[data]`` table with which the source can be opened."""
    if request.param not in FILES:
        return Data(source=request.param)
    FILES[request.param](tmp_path)
    return Data(source=request.param, path=tmp_path)


def opened(data: Data) -> Source:
    return sources.get(data.source)(data)


def splits(source: Source) -> list[ImageSet]:
    return [source.train] if source.test is None else [source.train, source.test]


def test_images_are_rgb_in_the_unit_range(data):
    for images in splits(opened(data)):
        loaded = images.load(range(len(images))[:6])
        assert loaded.dtype == torch.float32
        assert loaded.shape[:2] == (min(len(images), 6), 3)
        assert loaded.min() >= 0
        assert loaded.max() <= 1
        # In [0, 1], not in [0, 1/255] or rounded to 0 and 1.
        assert 0.05 < loaded.mean() < 0.95
        assert len(loaded.unique()) > 50


def test_labels_are_indices_of_class_names(data):
    source = opened(data)
    assert len(set(source.class_names)) == len(source.class_names)
    for images in splits(source):
        assert images.labels.dtype == np.int64
        assert images.labels.shape == (len(images),)
        assert images.labels.min() >= 0
        assert images.labels.max() < len(source.class_names)


def test_statistics_are_of_three_channels(data):
    source = opened(data)
    assert len(source.mean) == len(source.std) == 3
    assert all(0 < mean < 1 for mean in source.mean)
    assert all(0 < std <= 0.5 for std in source.std)


def test_the_same_twice(data):
    first, second = opened(data), opened(data)
    assert list(first.class_names) == list(second.class_names)
    for one, other in zip(splits(first), splits(second), strict=True):
        assert np.array_equal(one.labels, other.labels)
        assert torch.equal(one.load(range(len(one))), other.load(range(len(other))))


def test_images_keep_the_order_asked_for(data):
    images = opened(data).train
    forward = images.load([0, 1, 2])
    assert torch.equal(images.load([2, 0]), forward[[2, 0]])
    assert not torch.equal(forward[0], forward[1])


def test_image_size_applies(data):
    for images in splits(opened(data.model_copy(update={"image_size": 20}))):
        assert images.load([0]).shape == (1, 3, 20, 20)
