import numpy as np
import pytest
import torch

from fedleak.data import arrays
from fedleak.data.arrays import ArrayImages, Mapped, channels_first, check_room, class_labels, levels, narrowed, numbered
from fedleak.errors import ScenarioError

RANDOM = np.random.default_rng(0)


def images(array, **keys):
    return ArrayImages([array], np.zeros(len(array), np.int64), "a.npy", **keys)


@pytest.mark.parametrize(
    ("shape", "seen"),
    [
        ((5, 8, 9), (1, 8, 9)),
        ((5, 8, 9, 3), (3, 8, 9)),
        ((5, 3, 8, 9), (3, 8, 9)),
        ((5, 8, 9, 1), (1, 8, 9)),
        ((5, 8, 9, 4), (3, 8, 9)),
    ]
    + [((5, 64), (1, 8, 8)), ((5, 192), (3, 8, 8))],
)
def test_layouts(shape, seen):
    array = RANDOM.integers(0, 256, shape, dtype=np.uint8)
    found = images(array)
    assert found.shape == seen
    if len(shape) == 4 and shape[1] != 3:
        array = array.transpose(0, 3, 1, 2)[:, :3]
    expected = torch.from_numpy(array.reshape(5, -1, *seen[1:])[[4, 0]].astype(np.float32) / np.float32(255))
    assert found.form.startswith("grey of 8 bits" if seen[0] == 1 else "colour of 8 bits")
    assert ("alpha, which is dropped" in found.form) == (shape[-1] == 4)
    assert torch.equal(found.load([4, 0]), expected)
    assert found.load([]).shape == (0, *seen)


@pytest.mark.parametrize(
    ("dtype", "scale"), [("u1", 255), ("<u2", 65_535), (">u2", 65_535), ("f4", 1), ("f8", 1), ("f2", 1), ("?", 1)]
)
def test_types(dtype, scale):
    array = (RANDOM.random((3, 4, 5)) * scale).round().astype(dtype)
    loaded = images(array).load([0, 1, 2])[:, 0]
    assert torch.equal(loaded, torch.from_numpy(array.astype(np.float32) / np.float32(scale)))


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((2, 3, 4), np.int64), "levels are int64; expected uint8"),
        (np.full((2, 3, 4), 255.0), "levels from 255 to 255; floats are taken to lie in \\[0, 1\\]: divide"),
        (np.full((2, 3, 4), np.nan), "levels from nan"),
        (np.full((2, 3, 4), -0.5), "levels from -0.5"),
        (np.zeros((2, 5), np.uint8), r"of shape \(5,\); expected \(height, width\)"),
        (np.zeros((2, 5, 5, 7), np.uint8), r"of shape \(5, 5, 7\)"),
    ],
)
def test_what_is_no_image_is_refused_by_its_place(array, message):
    with pytest.raises(ScenarioError, match=rf"a\.npy, image 0: {message}"):
        images(array).load([0])


def test_several_arrays_are_one_and_images_of_several_sizes_need_one():
    parts = [RANDOM.integers(0, 256, (count, 4, 4), dtype=np.uint8) for count in (2, 1, 3)]
    joined = ArrayImages(parts, np.arange(6), "x")
    assert torch.equal(joined.load(range(6))[:, 0] * 255, torch.from_numpy(np.concatenate(parts)).float())
    odd = ArrayImages([parts[0], np.zeros((1, 5, 4), np.uint8)], np.arange(3), "x")
    with pytest.raises(ScenarioError, match=r"x, image 2: \(1, 5, 4\) .* the first is \(1, 4, 4\); give data\.image_size"):
        odd.load([0, 2])
    fitted = ArrayImages([parts[0], np.zeros((1, 5, 4), np.uint8)], np.arange(3), "x", image_size=4)
    assert fitted.load([0, 2]).shape == (2, 1, 4, 4)
    mixed = ArrayImages([np.zeros((1, 4, 4), np.uint8), np.zeros((1, 4, 4, 3), np.uint8)], np.arange(2), "x")
    with pytest.raises(ScenarioError, match=r"give data\.channels = 1 or 3"):
        mixed.load([1])


def test_channels_and_mapped_items():
    grey = images(RANDOM.integers(0, 256, (2, 4, 4), dtype=np.uint8), channels=3)
    assert grey.shape == (3, 4, 4)
    mapped = Mapped([1, 2], lambda value: np.full((2, 2), value, np.uint8))
    assert (len(mapped), mapped[1].tolist()) == (2, [[2, 2], [2, 2]])
    assert channels_first(np.zeros((2, 3))).shape == (1, 2, 3)
    assert levels(np.array([True])).tolist() == [255]


def test_wide_integers_are_narrowed_by_the_largest():
    assert narrowed(np.array([0, 255])).dtype == np.uint8
    assert narrowed(np.array([0, 256])).dtype == np.uint16
    assert narrowed(np.array([0.5])).dtype == np.float64
    with pytest.raises(ValueError, match="levels from -1 to 3"):
        narrowed(np.array([-1, 3]))


@pytest.mark.parametrize("raw", [[1, 0, 2], np.array([[1], [0], [2]]), np.array([1, 0, 2], np.uint8)])
def test_labels(raw):
    found = class_labels(raw, 3, "x")
    assert (found.tolist(), found.dtype) == ([1, 0, 2], np.int64)
    assert numbered(ArrayImages([np.zeros((3, 2, 2), np.uint8)], found, "x"), None) == ("0", "1", "2")


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (np.zeros((3, 14)), r"labels of shape \(3, 14\); expected one class an image"),
        (np.zeros(3), "labels are float64; expected whole numbers"),
        (["a", "b", "c"], "labels are <U1"),
        ([0, 1], "2 labels for 3 images"),
        ([0, -1, 0], "label -1 of image 1; expected 0 to 999,999"),
        ([0, 0, 10**9], "label 1000000000 of image 2"),
    ],
)
def test_wrong_labels(raw, message):
    with pytest.raises(ScenarioError, match=f"x: {message}"):
        class_labels(raw, 3, "x")


def test_what_does_not_fit_into_half_the_memory_is_refused(monkeypatch):
    monkeypatch.setattr(arrays.os, "sysconf", lambda name: {"SC_PHYS_PAGES": 2**18, "SC_PAGE_SIZE": 4096}[name])  # 1 GiB
    check_room(2**29, "x", "do")
    with pytest.raises(ScenarioError, match=r"x: 2\.0 GiB unpacked, on a machine of 1\.0 GiB; do this"):
        check_room(2**31, "x", "do this")
