import os
from pathlib import Path

import pytest
import torch

from fedleak.data.imagefolder import ImageFolder
from fedleak.errors import ScenarioError
from fedleak.scenario.schema import Data


def open_source(path, **keys):
    return ImageFolder(Data(source="imagefolder", path=path, **keys))


def test_class_folders_alone(tmp_path, pictures, write_images):
    images = pictures(3)
    write_images(tmp_path / "dog", images[:2])
    write_images(tmp_path / "cat", images[2:])
    (tmp_path / "cat" / "notes.txt").write_text("not an image")
    (tmp_path / ".cache").mkdir()
    source = open_source(tmp_path, image_size=8)
    assert source.class_names == ("cat", "dog")
    assert source.train.labels.tolist() == [0, 1, 1]
    assert source.test is None
    assert torch.equal(source.train.load([0]), torch.from_numpy(images[2:]).permute(0, 3, 1, 2) / 255)
    assert source.mean == (0.5,)


@pytest.mark.parametrize("test_split", ["val", "test"])
def test_splits(tmp_path, pictures, write_images, test_split):
    write_images(tmp_path / "train" / "a", pictures(2))
    write_images(tmp_path / "train" / "b", pictures(1))
    public = pictures(2, seed=3) // 4
    write_images(tmp_path / test_split / "b", public)
    source = open_source(tmp_path, image_size=8)
    assert source.train.labels.tolist() == [0, 0, 1]
    assert source.test.labels.tolist() == [1, 1]
    assert source.mean == pytest.approx((public / 255).mean(axis=(0, 1, 2)), abs=1e-6)


def test_a_single_split_is_the_training_split(tmp_path, pictures, write_images):
    write_images(tmp_path / "val" / "a", pictures(2))
    source = open_source(tmp_path)
    assert source.class_names == ("a",)
    assert len(source.train) == 2
    assert source.test is None
    assert source.train.load([0]).shape == (1, 3, 64, 64)


def test_opening_decodes_nothing(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "broken.jpg").write_bytes(b"no")
    source = open_source(tmp_path)
    with pytest.raises(ScenarioError, match=r"broken\.jpg: cannot be read"):
        source.train.load([0])


def test_wrong_folders(tmp_path, pictures, write_images):
    with pytest.raises(ScenarioError, match=r"data\.path: data\.source 'imagefolder' needs it"):
        open_source(None)
    with pytest.raises(ScenarioError, match="no class folder in it"):
        open_source(tmp_path)
    (tmp_path / "train" / "a").mkdir(parents=True)
    with pytest.raises(ScenarioError, match="no images in its class folders"):
        open_source(tmp_path)
    write_images(tmp_path / "train" / "ant", pictures(1))
    write_images(tmp_path / "val" / "ants", pictures(1))
    with pytest.raises(ScenarioError, match="ants: not a class of the training split; did you mean 'ant'"):
        open_source(tmp_path)


@pytest.mark.skipif("FEDLEAK_DATA" not in os.environ, reason="FEDLEAK_DATA names no folder with imagenet/")
def test_imagenet_validation_images():
    source = open_source(Path(os.environ["FEDLEAK_DATA"], "imagenet"))
    assert source.test is None
    assert len(source.train) == len(source.class_names) == 200
    assert source.train.load([0, 199]).shape == (2, 3, 64, 64)
