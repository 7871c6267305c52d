import gzip

import numpy as np
import pytest
import torch
from torchvision.datasets.mnist import read_image_file, read_label_file

from fedleak.data import idx
from fedleak.data.idx import Idx
from fedleak.errors import ScenarioError
from fedleak.scenario.schema import Data

RANDOM = np.random.default_rng(0)


def content(array):
    return b"\0\0\x08" + bytes([array.ndim]) + np.array(array.shape, ">u4").tobytes() + array.tobytes()


def write(folder, prefix="", packed=False, dash="-"):
    folder.mkdir(parents=True, exist_ok=True)
    for split, count in (("train", 6), ("t10k", 3)):
        images = RANDOM.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        labels = RANDOM.integers(0, 10, count, dtype=np.uint8)
        for name, array in ((f"images{dash}idx3", images), (f"labels{dash}idx1", labels)):
            path = folder / f"{prefix}{split}-{name}-ubyte"
            path.with_name(path.name + ".gz" * packed).write_bytes(gzip.compress(content(array)) if packed else content(array))


def open_source(path, **keys):
    return Idx(Data(source="idx", path=path, **keys))


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    ("place", "prefix", "dash"),
    [("", "", "-"), ("raw", "", "-"), ("MNIST/raw", "", "-")] + [("", "emnist-balanced-", "-"), ("", "", ".")],
)
def test_mnists_files_pixel_for_pixel(tmp_path, packed, place, prefix, dash):
    write(tmp_path / place, prefix, packed, dash)
    source = open_source(tmp_path)
    for split, images in (("train", source.train), ("t10k", source.test)):
        files = []
        for name in (f"images{dash}idx3", f"labels{dash}idx1"):
            path = tmp_path / place / f"{prefix}{split}-{name}-ubyte"
            if packed:
                path.write_bytes(gzip.decompress(path.with_name(path.name + ".gz").read_bytes()))
            files.append(path)
        assert torch.equal(images.load(range(len(images)))[:, 0], read_image_file(files[0]).float() / 255)
        assert images.labels.tolist() == read_label_file(files[1]).tolist()
    assert source.train.shape == (1, 28, 28)
    assert source.train.load([0]).shape == (1, 1, 28, 28)


def test_plain_files_are_mapped_and_come_before_packed_ones(tmp_path):
    write(tmp_path, packed=True)
    write(tmp_path)
    assert isinstance(open_source(tmp_path).train._arrays[0], np.memmap)


def test_sets_side_by_side_need_a_choice(tmp_path):
    write(tmp_path, "emnist-letters-")
    write(tmp_path, "emnist-digits-")
    with pytest.raises(ScenarioError, match="2 sets in it, of emnist-digits-train.*, emnist-letters-train.*; expected one set"):
        open_source(tmp_path)


def test_what_the_head_says_is_held_against_the_file(tmp_path, monkeypatch):
    write(tmp_path)
    path = tmp_path / "train-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ScenarioError, match=r"idx3-ubyte: ends before the 4704 bytes that its head names"):
        open_source(tmp_path)
    path.unlink()
    packed = path.with_name(path.name + ".gz")
    packed.write_bytes(gzip.compress(b"\0\0\x08\x03" + np.array([2**31, 2**15, 28], ">u4").tobytes() + bytes(99)))
    with pytest.raises(ScenarioError, match=r"\.gz: .* GiB unpacked, on a machine of .*; unpack it with gunzip"):
        open_source(tmp_path)
    # More than the head says is not read.
    packed.write_bytes(gzip.compress(b"\0\0\x08\x03" + np.array([6, 28, 28], ">u4").tobytes() + bytes(10**7)))
    assert len(open_source(tmp_path).train._arrays[0].base.base) == 6 * 28 * 28
    monkeypatch.setattr(idx, "check_room", lambda *_: None)
    packed.write_bytes(packed.read_bytes()[:14])
    with pytest.raises(ScenarioError, match=r"\.gz: cannot be read"):
        open_source(tmp_path)


@pytest.mark.parametrize("damaged", [b"", b"\0\0", b"no idx file", b"\0\0\x07\x03" + bytes(99), b"\0\0\x08\x03\0\0"])
def test_damage_is_one_line(tmp_path, damaged):
    write(tmp_path)
    (tmp_path / "train-images-idx3-ubyte").write_bytes(damaged)
    with pytest.raises(ScenarioError, match="train-images-idx3-ubyte: ") as caught:
        open_source(tmp_path)
    assert "\n" not in str(caught.value)
