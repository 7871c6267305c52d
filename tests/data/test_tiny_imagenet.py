import numpy as np
import pytest
import torch
from PIL import Image

from fedleak.data.tiny_imagenet import TinyImageNet
from fedleak.errors import ScenarioError
from fedleak.scenario.schema import Data

WNIDS = ("n01443537", "n01629819", "n02124075")


@pytest.fixture
def unpacked(tmp_path, pictures):
    """Two training and two validation images a class, as the archive unpacks."""
    for number, wnid in enumerate(WNIDS):
        folder = tmp_path / "train" / wnid / "images"
        folder.mkdir(parents=True)
        for index, pixels in enumerate(pictures(2, 64, 64, seed=number)):
            Image.fromarray(pixels).save(folder / f"{wnid}_{index}.JPEG", "JPEG")
        (folder.parent / f"{wnid}_boxes.txt").write_text("")
    (tmp_path / "val" / "images").mkdir(parents=True)
    lines = []
    for index, pixels in enumerate(pictures(6, 64, 64, seed=9)):
        Image.fromarray(pixels).save(tmp_path / "val" / "images" / f"val_{index}.JPEG", "JPEG")
        lines.append(f"val_{index}.JPEG\t{WNIDS[(2 * index) % 3]}\t0\t32\t44\t62\n")
    (tmp_path / "val" / "val_annotations.txt").write_text("".join(lines))
    (tmp_path / "test" / "images").mkdir(parents=True)
    (tmp_path / "words.txt").write_text(
        "n01443537\tgoldfish, Carassius auratus\nn01629819\tcat, salamander\nn02124075\tcat, tabby\n"
    )
    return tmp_path


def open_source(path, **keys):
    return TinyImageNet(Data(source="tiny-imagenet", path=path, **keys))


def test_both_splits_pixel_for_pixel(unpacked):
    source = open_source(unpacked)
    train = sorted((unpacked / "train").glob("*/images/*.JPEG"))
    assert source.train.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert source.test.labels.tolist() == [0, 2, 1, 0, 2, 1]
    val = [unpacked / "val" / "images" / f"val_{index}.JPEG" for index in range(6)]
    for images, paths in ((source.train, train), (source.test, val)):
        expected = np.stack([np.asarray(Image.open(path)) for path in paths])
        assert torch.equal(images.load(range(6)), torch.from_numpy(expected).permute(0, 3, 1, 2).float() / 255)
    assert source.class_names == ("goldfish", "n01629819", "n02124075")  # two of them are called cat


def test_a_part_of_it(unpacked):
    (unpacked / "words.txt").unlink()
    (unpacked / "val" / "val_annotations.txt").unlink()
    source = open_source(unpacked, image_size=16)
    assert (source.class_names, source.test, source.train.shape) == (WNIDS, None, (3, 16, 16))


def test_a_class_that_train_has_not_is_named(unpacked):
    with (unpacked / "val" / "val_annotations.txt").open("a") as file:
        file.write("val_9.JPEG\tn01443538\t0\t0\t1\t1\n")
    with pytest.raises(
        ScenarioError, match=r"val_annotations\.txt, line 7: 'n01443538' is no class of train/; did you mean 'n01443537'"
    ):
        open_source(unpacked)


def test_a_missing_validation_image_is_named_when_all_are_read(unpacked):
    (unpacked / "val" / "images" / "val_3.JPEG").unlink()
    with pytest.raises(ScenarioError, match=r"val_3\.JPEG: cannot be read"):
        open_source(unpacked).test.verify(range(6))
