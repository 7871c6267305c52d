import io

import numpy as np
import pytest
import torch

from fedleak.data.npy import Npy
from fedleak.errors import ScenarioError
from fedleak.scenario.schema import Data

RANDOM = np.random.default_rng(0)


def open_source(path, **keys):
    return Npy(Data(source="npy", path=path, **keys))


def write(folder, images, labels, names=("images", "labels")):
    for name, array in zip(names, (images, labels), strict=True):
        np.save(folder / f"{name}.npy", array)


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", ["u1", ">u2", "f4"])
def test_arrays_are_mapped_and_read_bit_for_bit(tmp_path, order, dtype):
    images = RANDOM.integers(0, 255, (6, 5, 7, 3)).astype(dtype)
    images = images / np.float32(255) if dtype == "f4" else images
    write(tmp_path, np.asarray(images, order=order), np.arange(6) % 2)
    source = open_source(tmp_path)
    scale = {"u1": 255, ">u2": 65_535, "f4": 1}[dtype]
    independent = np.load(tmp_path / "images.npy", allow_pickle=False).astype(np.float32) / np.float32(scale)
    assert torch.equal(source.train.load([5, 2]), torch.from_numpy(independent[[5, 2]].transpose(0, 3, 1, 2)))
    assert isinstance(source.train._arrays[0], np.memmap)
    assert (source.test, source.class_names) == (None, ("0", "1"))


@pytest.mark.parametrize("names", [("{}_images", "{}_labels"), ("x_{}", "y_{}"), ("X_{}", "y_{}")])
def test_splits_by_name(tmp_path, names):
    for split, count in (("train", 4), ("test", 3)):
        images = RANDOM.integers(0, 256, (count, 4, 4), dtype=np.uint8)
        write(tmp_path, images, np.zeros(count, np.int64), tuple(name.format(split) for name in names))
    source = open_source(tmp_path)
    assert (len(source.train), len(source.test)) == (4, 3)


def test_no_pickle_and_no_records(tmp_path):
    write(tmp_path, np.array([{}], dtype=object), np.zeros(1, np.int64))
    with pytest.raises(ScenarioError, match=r"images\.npy: holds Python objects, a pickle; save it as numbers"):
        open_source(tmp_path)
    write(tmp_path, np.zeros(3, dtype=[("a", "u1"), ("b", "f4")]), np.zeros(3, np.int64))
    with pytest.raises(ScenarioError, match=r"images\.npy: holds records"):
        open_source(tmp_path)


def test_what_the_head_says_is_held_against_the_file(tmp_path):
    write(tmp_path, np.zeros((2, 4, 4), np.uint8), np.zeros(2, np.int64))
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(head, {"descr": "|u1", "fortran_order": False, "shape": (2**50, 28, 28)})
    (tmp_path / "images.npy").write_bytes(head.getvalue() + bytes(9))
    with pytest.raises(ScenarioError, match=r"images\.npy: ends before the \d+ bytes that its head names"):
        open_source(tmp_path)


@pytest.mark.parametrize(
    "content", [b"", b"\x93NUMPY", b"\x93NUMPY\x01\x00\x10\x00{'descr': '|u1'}", b"\x93NUMPY\x09\x00" + bytes(99)]
)
def test_damage_is_one_line(tmp_path, content):
    write(tmp_path, np.zeros((2, 4, 4), np.uint8), np.zeros(2, np.int64))
    (tmp_path / "images.npy").write_bytes(content)
    with pytest.raises(ScenarioError, match=r"images\.npy: no NumPy array") as caught:
        open_source(tmp_path)
    assert "\n" not in str(caught.value)
