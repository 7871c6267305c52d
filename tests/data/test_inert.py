import io
import os
import pickle
import struct

import numpy as np
import pytest

from fedleak.data import inert
from fedleak.data.inert import read_inert
from fedleak.errors import ScenarioError


def write(path, content, protocol=2):
    path.write_bytes(content if isinstance(content, bytes) else pickle.dumps(content, protocol))
    return path


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("kind", ["u1", "<u2", ">i4", "<f4", "?"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_arrays_numbers_and_text_of_every_protocol(tmp_path, protocol, kind, order):
    array = np.asarray(np.random.default_rng(0).integers(0, 100, (3, 4)), dtype=kind, order=order)
    held = {"data": array, "labels": [1, 2], "text": "é", "nested": ({"a": 1.5}, None)}
    found = read_inert(write(tmp_path / "a", held, protocol))
    assert np.array_equal(found["data"], array)
    assert found["data"].dtype == array.dtype
    assert (found["labels"], found["nested"][0]) == ([1, 2], {"a": 1.5})


def test_text_that_python_2_wrote_is_bytes(tmp_path):
    # As CIFAR's files have it: {'data': ..., } by Python 2, whose text is bytes.
    found = read_inert(write(tmp_path / "a", b"\x80\x02}q\x01U\x06labelsq\x02]q\x03(K\x06K\x09es."))
    assert found == {"labels": [6, 9]}
    array = (
        b"\x80\x02}q\x00(U\x04dataq\x01cnumpy.core.multiarray\n_reconstruct\nq\x02cnumpy\nndarray\nq\x03K\x00\x85q\x04U\x01bq\x05"
        b"\x87q\x06Rq\x07(K\x01K\x02K\x03\x86q\x08cnumpy\ndtype\nq\tU\x02u1q\nK\x00K\x01\x87q\x0bRq\x0c(K\x03U\x01|q\rNNNJ\xff\xff"
        b"\xff\xffJ\xff\xff\xff\xffK\x00tq\x0eb\x89U\x06abcdefq\x0ftq\x10bu."
    )
    assert read_inert(write(tmp_path / "b", array))["data"].tolist() == [[97, 98, 99], [100, 101, 102]]


class Runs:
    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        (os.system, ("touch ran",)),
        (eval, ("open('ran', 'w')",)),
        (io.open, ("ran", "w")),
        (getattr, ("x", "y")),
        (np.fromfile, ("ran",)),
        (np.load, ("ran",)),
        (np.ndarray, ((2,), "O")),
    ],
)
def test_nothing_that_a_pickle_names_is_run(tmp_path, monkeypatch, function, arguments):
    monkeypatch.chdir(tmp_path)
    path = write(tmp_path / "a", {"data": Runs(function, *arguments)})
    if function is np.ndarray:  # stands for an array, and has no bytes
        with pytest.raises(ScenarioError, match="cannot be read"):
            read_inert(path)
        return
    with pytest.raises(ScenarioError, match=r"a: cannot be read \(it names .*, which is not run\); expected a pickle of numbers"):
        read_inert(path)
    assert not (tmp_path / "ran").exists()


def test_an_array_of_objects_and_one_of_too_few_bytes_are_refused(tmp_path):
    with pytest.raises(ScenarioError, match="an array that is no block of numbers"):
        read_inert(write(tmp_path / "a", {"data": np.array([{}], dtype=object)}))
    content = pickle.dumps({"data": np.zeros((2, 3), np.uint8)}, 2)
    grown = content.replace(b"K\x02K\x03\x86", b"K\x02K\x09\x86")
    assert grown != content
    with pytest.raises(ScenarioError, match=r"an array of shape \(2, 9\) with 6 bytes"):
        read_inert(write(tmp_path / "b", grown))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no pickle",
        b"\x80\x02]q\x01.",  # a list
        b"\x80\x04\x8e" + struct.pack("<Q", 2**62) + b"x.",  # bytes without end
        b"\x80\x02(((((",
        pickle.dumps({"a": 1})[:-4],
    ],
)
def test_damage_is_one_line(tmp_path, content):
    with pytest.raises(ScenarioError, match="a: cannot be read") as caught:
        read_inert(write(tmp_path / "a", content))
    assert "\n" not in str(caught.value)


def test_a_file_beyond_the_bound_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(inert, "LARGEST", 9)
    with pytest.raises(ScenarioError, match="more than 9 bytes"):
        read_inert(write(tmp_path / "a", {"labels": list(range(9))}))


def test_every_prefix_and_every_changed_byte_ends_in_a_value_or_one_line(tmp_path):
    content = pickle.dumps({b"data": np.arange(6, dtype=np.uint8).reshape(2, 3), b"labels": [0, 1]}, 2)
    random = np.random.default_rng(0)
    for number in range(len(content) * 4):
        if number < len(content):
            damaged = content[:number]
        else:
            changed = bytearray(content)
            changed[int(random.integers(len(content)))] = int(random.integers(256))
            damaged = bytes(changed)
        try:
            assert isinstance(read_inert(write(tmp_path / "a", damaged)), dict)
        except ScenarioError as error:
            assert "\n" not in str(error)  # noqa: PT017 (either outcome is right)
