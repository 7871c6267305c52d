import io
import zipfile

import numpy as np
import pytest
import torch

from fedleak.data import npz
from fedleak.data.npz import Npz
from fedleak.errors import ScenarioError
from fedleak.scenario.schema import Data

RANDOM = np.random.default_rng(0)


def medmnist(path, channels=(), save=np.savez_compressed, dtype=np.uint8, splits=("train", "val", "test")):
    held = {}
    for number, split in enumerate(splits):
        held[f"{split}_images"] = RANDOM.integers(0, np.iinfo(dtype).max, (5 + number, 28, 28, *channels), dtype=dtype)
        held[f"{split}_labels"] = RANDOM.integers(0, 3, (5 + number, 1), dtype=np.uint8)
    save(path, **held)
    return held


def open_source(path, **keys):
    return Npz(Data(source="npz", path=path, **keys))


@pytest.mark.parametrize("save", [np.savez_compressed, np.savez])
@pytest.mark.parametrize("channels", [(), (3,)])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_medmnists_files_pixel_for_pixel(tmp_path, save, channels, dtype):
    medmnist(tmp_path / "some.npz", channels, save, dtype)
    independent = np.load(tmp_path / "some.npz", allow_pickle=False)
    for path in (tmp_path, tmp_path / "some.npz"):
        source = open_source(path)
        for split, images in (("train", source.train), ("test", source.test)):
            expected = independent[f"{split}_images"].astype(np.float32) / np.float32(np.iinfo(dtype).max)
            expected = expected.transpose(0, 3, 1, 2) if channels else expected[:, None]
            assert torch.equal(images.load(range(len(images))), torch.from_numpy(expected))
            assert images.labels.tolist() == independent[f"{split}_labels"][:, 0].tolist()
    assert source.mean == pytest.approx((independent["test_images"] / np.iinfo(dtype).max).mean(axis=(0, 1, 2)).ravel(), abs=1e-6)


def test_what_is_not_packed_is_mapped(tmp_path):
    medmnist(tmp_path / "some.npz", save=np.savez)
    assert isinstance(open_source(tmp_path).train._arrays[0], np.memmap)
    with zipfile.ZipFile(tmp_path / "some.npz") as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(tmp_path / "extra.npz", "w") as archive:  # heads of the members with extra fields
        for name, content in members.items():
            info = zipfile.ZipInfo(name)
            info.extra = b"\x99\x99\x04\x00abcd"
            archive.writestr(info, content)
    one, other = open_source(tmp_path / "some.npz"), open_source(tmp_path / "extra.npz")
    assert torch.equal(one.train.load([0, 4]), other.train.load([0, 4]))


def test_a_validation_split_stands_in_and_keras_names_and_own_names(tmp_path):
    medmnist(tmp_path / "a.npz", splits=("train", "val"))
    assert len(open_source(tmp_path / "a.npz").test) == 6
    images, labels = RANDOM.integers(0, 256, (4, 8, 8), dtype=np.uint8), np.array([0, 1, 0, 1])
    np.savez(tmp_path / "keras.npz", x_train=images, y_train=labels, x_test=images[:2], y_test=labels[:2])
    assert len(open_source(tmp_path / "keras.npz").test) == 2
    np.savez(tmp_path / "own.npz", pictures=images, fine=labels, coarse=labels * 0)
    source = open_source(tmp_path / "own.npz", columns={"image": "pictures", "label": "fine"})
    assert (source.train.labels.tolist(), source.test) == ([0, 1, 0, 1], None)
    with pytest.raises(
        ScenarioError, match=r"own\.npz: arrays in it are coarse, fine, pictures; expected .* name others by data\.columns"
    ):
        open_source(tmp_path / "own.npz")
    with pytest.raises(ScenarioError, match=r"data\.columns: .*own\.npz: arrays in it are"):
        open_source(tmp_path / "own.npz", columns={"image": "pictures", "label": "wrong"})


def test_several_labels_an_image_are_refused(tmp_path):
    np.savez(tmp_path / "chest.npz", train_images=np.zeros((2, 8, 8), np.uint8), train_labels=np.zeros((2, 14), np.uint8))
    with pytest.raises(
        ScenarioError, match=r"chest\.npz, array 'train_labels': labels of shape \(2, 14\); expected one class an image"
    ):
        open_source(tmp_path)


def test_no_pickle_in_it_is_run(tmp_path):
    np.savez(tmp_path / "a.npz", train_images=np.array([{}], dtype=object), train_labels=np.zeros(1, np.uint8))
    with pytest.raises(ScenarioError, match=r"array 'train_images': holds Python objects, a pickle; save it as numbers"):
        open_source(tmp_path)


def test_an_array_too_large_is_refused_by_what_its_head_says(tmp_path, monkeypatch):
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(head, {"descr": "|u1", "fortran_order": False, "shape": (2**40, 28, 28)})
    with zipfile.ZipFile(tmp_path / "bomb.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("train_images.npy", head.getvalue() + bytes(99))
        archive.writestr("train_labels.npy", head.getvalue())
    with pytest.raises(
        ScenarioError, match=r"bomb\.npz, array 'train_images': .* GiB unpacked, on a machine of .*unzip.*'npy' maps"
    ):
        open_source(tmp_path)
    # What unpacks to more than its head says is read no further.
    asked = []
    monkeypatch.setattr(npz, "check_room", lambda nbytes, *_: asked.append(nbytes))
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(head, {"descr": "|u1", "fortran_order": False, "shape": (2, 28, 28)})
    with zipfile.ZipFile(tmp_path / "bomb.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("train_images.npy", head.getvalue() + bytes(10**7))
        content = io.BytesIO()
        np.save(content, np.zeros(2, np.uint8))
        archive.writestr("train_labels.npy", content.getvalue())
    assert open_source(tmp_path).train.load([0, 1]).shape == (2, 1, 28, 28)
    assert asked == [2 * 28 * 28, 2]


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04no", b"no"])
def test_damage_is_one_line(tmp_path, content):
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(ScenarioError, match=r"a\.npz: cannot be read as \.npz"):
        open_source(tmp_path)


def test_a_cut_or_changed_file_is_one_line(tmp_path):
    medmnist(tmp_path / "a.npz", splits=("train",))
    whole = (tmp_path / "a.npz").read_bytes()
    for number in range(0, len(whole), 97):
        changed = bytearray(whole)
        changed[number] ^= 0x5A
        for content in (whole[:number], bytes(changed)):
            (tmp_path / "a.npz").write_bytes(content)
            try:
                open_source(tmp_path).train.load([0])
            except ScenarioError as error:
                assert "\n" not in str(error)  # noqa: PT017 (either outcome is right)


def test_several_files_need_a_choice(tmp_path):
    for name in ("a", "b"):
        medmnist(tmp_path / f"{name}.npz")
    with pytest.raises(ScenarioError, match=r"2 \.npz in it \(a\.npz, b\.npz\); expected one file"):
        open_source(tmp_path)
