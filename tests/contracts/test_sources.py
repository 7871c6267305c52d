"""What every source of private images must do."""

import io
import json
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from fedleak.data import ImageSet, Source, federated_data, sources
from fedleak.errors import ScenarioError
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


def levels(split: str) -> np.ndarray:
    """Six training or three test images of three classes, uint8 (n, 32, 32, 3)."""
    count = {"train": 6, "test": 3}[split]
    return np.stack([np.asarray(picture(number + 100 * count)) for number in range(count)])


def labels(split: str) -> list[int]:
    return [number % 3 for number in range(len(levels(split)))]


def write_npz(path: Path) -> None:
    splits = ("train", "test")
    arrays = {f"{split}_images": levels(split) for split in splits}
    np.savez_compressed(path / "some.npz", **arrays, **{f"{split}_labels": np.array(labels(split))[:, None] for split in splits})


def write_npy(path: Path) -> None:
    for split in ("train", "test"):
        np.save(path / f"{split}_images.npy", levels(split))
        np.save(path / f"{split}_labels.npy", np.array(labels(split)))


def write_idx(path: Path) -> None:
    for split, name in (("train", "train"), ("test", "t10k")):
        grey = levels(split)[..., 0]
        head = b"\0\0\x08\x03" + np.array(grey.shape, ">u4").tobytes()
        (path / f"{name}-images-idx3-ubyte").write_bytes(head + grey.tobytes())
        head = b"\0\0\x08\x01" + np.array(len(grey), ">u4").tobytes()
        (path / f"{name}-labels-idx1-ubyte").write_bytes(head + bytes(labels(split)))


def write_leaf(path: Path) -> None:
    for split in ("train", "test"):
        grey = (
            levels(split)[..., 0].reshape(-1, 2, 1024) / 255
            if split == "train"
            else levels(split)[..., 0].reshape(3, 1, 1024) / 255
        )
        held = {
            f"writer{number}": {"x": images.tolist(), "y": labels(split)[number * len(images) : (number + 1) * len(images)]}
            for number, images in enumerate(grey)
        }
        (path / split).mkdir()
        content = {"users": list(held), "num_samples": [len(one["y"]) for one in held.values()], "user_data": held}
        (path / split / "all_data.json").write_text(json.dumps(content))


def write_cifar_batches(path: Path) -> None:
    for split, name in (("train", "data_batch_1"), ("test", "test_batch")):
        flat = levels(split).transpose(0, 3, 1, 2).reshape(-1, 3072)
        (path / name).write_bytes(pickle.dumps({b"data": flat, b"labels": labels(split)}, protocol=2))


def write_tiny_imagenet(path: Path) -> None:
    write_folders(path)
    for number, folder in enumerate(sorted((path / "train").iterdir())):
        (folder / "images").mkdir()
        for image in folder.glob("*.png"):
            image.rename(folder / "images" / image.name)
        folder.rename(folder.with_name(f"n0000{number}"))
    (path / "val" / "images").mkdir()
    lines = []
    for image in sorted((path / "val").glob("class*/*.png")):
        image.rename(path / "val" / "images" / image.name)
        lines.append(f"{image.name}\tn0000{image.parent.name[-1]}\t0\t0\t9\t9\n")
    (path / "val" / "val_annotations.txt").write_text("".join(lines))


def write_webdataset(path: Path) -> None:
    for split in ("train", "test"):
        with tarfile.open(path / f"{split}-000.tar", "w") as archive:
            for number, (image, label) in enumerate(zip(levels(split), labels(split), strict=True)):
                buffer = io.BytesIO()
                Image.fromarray(image).save(buffer, "PNG")
                for extension, content in (("cls", str(label).encode()), ("png", buffer.getvalue())):
                    member = tarfile.TarInfo(f"{number:04}.{extension}")
                    member.size = len(content)
                    archive.addfile(member, io.BytesIO(content))


FILES = {
    "parquet": write_parquet,
    "cifar10": write_parquet,
    "imagefolder": write_folders,
    "npz": write_npz,
    "npy": write_npy,
    "idx": write_idx,
    "leaf": write_leaf,
    "cifar-batches": write_cifar_batches,
    "tiny-imagenet": write_tiny_imagenet,
    "webdataset": write_webdataset,
}
GREY = {"idx", "leaf"}


OF_IMAGES = [name for name in sources.names() if sources.get(name).modality == "image"]
OF_TEXTS = [name for name in sources.names() if name not in OF_IMAGES]


@pytest.mark.parametrize("name", OF_TEXTS)
def test_passages_are_tokens_of_the_vocabulary_with_what_is_public(name):
    table = Data(source=name, max_tokens=16)
    source = sources.get(name)(table)
    spec, tokens = source.spec(table), source.train.load(range(6))
    assert spec.shape == (16,)
    assert tokens.shape == (6, 16)
    assert tokens.dtype == torch.int64
    assert 0 <= int(tokens.min()) < int(tokens.max()) < spec.vocabulary
    assert source.public() is not None
    assert source.train.labels.max() < len(source.class_names)


@pytest.fixture(params=OF_IMAGES)
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


def channels(data: Data) -> int:
    return 1 if data.source in GREY else 3


def test_images_are_grey_or_rgb_and_in_the_unit_range(data):
    for images in splits(opened(data)):
        loaded = images.load(range(len(images))[:6])
        assert loaded.dtype == torch.float32
        assert loaded.shape[:2] == (min(len(images), 6), channels(data))
        assert tuple(loaded.shape[1:]) == images.shape
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


def test_statistics_are_of_each_channel_or_one_for_all(data):
    source = opened(data)
    assert len(source.mean) == len(source.std)
    assert len(source.mean) in (1, channels(data))
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
        assert images.load([0]).shape == (1, channels(data), 20, 20)


@pytest.mark.parametrize("wanted", [1, 3])
def test_channels_apply(data, wanted):
    asked = data.model_copy(update={"channels": wanted})
    for images in splits(opened(asked)):
        loaded = images.load([0, 1])
        assert loaded.shape[1] == wanted
        if wanted == 3 and data.source in GREY:
            assert torch.equal(loaded[:, 0], loaded[:, 2])
    spec = federated_data(asked.model_copy(update={"normalize": True}), 2, 1).input
    assert (len(spec.mean), len(spec.std), spec.shape[0]) == (wanted, wanted, wanted)


@pytest.mark.parametrize("source", FILES)
def test_files_of_another_form_are_told_by_the_source_that_reads_them(tmp_path, source):
    FILES[source](tmp_path)
    home = {"cifar10": "parquet"}.get(source, source)
    readers = [name for name in FILES if name != "cifar10" and sources.get(name).recognises(tmp_path)]
    assert readers == [home]
    for other in sorted(FILES.keys() - {source, home, "cifar10"}):
        with pytest.raises(ScenarioError) as caught:
            opened(Data(source=other, path=tmp_path))
        assert f"data.source = '{home}' reads what is there" in str(caught.value), other
        assert "\n" not in str(caught.value)
