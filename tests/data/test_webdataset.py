import gzip
import io
import json
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image

from fedleak.data.webdataset import WebDataset
from fedleak.errors import ScenarioError
from fedleak.scenario.schema import Data


def open_source(path, **keys):
    return WebDataset(Data(source="webdataset", path=path, **keys))


def png(pixels):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def write(path, members, form=tarfile.PAX_FORMAT):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=form) as archive:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def samples(images, labels, label="cls", image="png", start=0):
    for number, (pixels, value) in enumerate(zip(images, labels, strict=True), start):
        content = json.dumps({"label": value, "other": 7}) if label == "json" else str(value)
        yield f"./set/{number:05}.{image}", png(pixels)
        yield f"./set/{number:05}.{label}", content.encode()


@pytest.mark.parametrize("label", ["cls", "json"])
@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_shards_pixel_for_pixel(tmp_path, pictures, label, form):
    images = pictures(7)
    write(tmp_path / "data-train-000001.tar", samples(images[3:5], [0, 2], label, start=3), form)
    write(tmp_path / "data-train-000000.tar", samples(images[:3], [1, 0, 2], label), form)
    write(tmp_path / "data-test-000000.tar", samples(images[5:], [1, 1], label), form)
    source = open_source(tmp_path)
    assert source.train.labels.tolist() == [1, 0, 2, 0, 2]
    assert torch.equal(source.train.load([4, 0, 1, 2, 3]), torch.from_numpy(images[[4, 0, 1, 2, 3]]).permute(0, 3, 1, 2) / 255)
    assert torch.equal(source.test.load([0, 1]), torch.from_numpy(images[5:]).permute(0, 3, 1, 2) / 255)
    # An independent reader of the same file.
    with tarfile.open(tmp_path / "data-train-000001.tar") as archive:
        pixels = np.asarray(Image.open(archive.extractfile("./set/00004.png")))
    assert torch.equal(source.train.load([4])[0], torch.from_numpy(pixels).permute(2, 0, 1) / 255)


def test_one_file_long_names_and_columns(tmp_path, pictures):
    images = pictures(2)
    long = "x" * 150
    members = [
        (f"{long}/a.input.png", png(images[0])),
        (f"{long}/a.seg.png", png(images[1])),
        (f"{long}/a.json", b'{"class_id": 4, "label": 1}'),
    ]
    path = write(tmp_path / "all.tar", members)
    source = open_source(path, columns={"image": "input.png", "label": "class_id"})
    assert (source.train.labels.tolist(), source.test) == ([4], None)
    assert torch.equal(source.train.load([0])[0], torch.from_numpy(images[0]).permute(2, 0, 1) / 255)


def test_an_unreadable_image_is_named_by_its_place(tmp_path):
    path = write(tmp_path / "train.tar", [("a.png", b"no image"), ("a.cls", b"0")])
    with pytest.raises(ScenarioError, match=r"train\.tar, byte \d+: cannot be read as an image"):
        open_source(path).train.load([0])


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("a.png", b"x")], r"sample 'a' of png has no label; expected"),
        ([("a.txt", b"x"), ("a.cls", b"1")], r"sample 'a' of txt, cls has no image"),
        ([("a.png", b"x"), ("a.cls", b"cat")], r"a\.cls: 'cat' is no class number"),
        (
            [("a.png", b"x"), ("a.json", b'{"class": 1}')],
            r"sample 'a' of png, json has no label; .*; name others by data\.columns",
        ),
        ([("a.png", b"x"), ("a.json", b"{")], r"a\.json: '\{' is no class number"),
        ([("a.png", b"x"), ("a.cls", b"-1")], "label -1 of image 0"),
        ([], "no images; expected at least one"),
    ],
)
def test_what_is_missing_is_named(tmp_path, members, message):
    with pytest.raises(ScenarioError, match=message) as caught:
        open_source(write(tmp_path / "train.tar", members))
    assert "\n" not in str(caught.value)


def test_a_packed_or_cut_tar_is_refused(tmp_path, pictures):
    path = write(tmp_path / "train.tar", samples(pictures(2), [0, 1]))
    content = path.read_bytes()
    path.write_bytes(gzip.compress(content))
    with pytest.raises(ScenarioError, match=r"train\.tar: cannot be read as a plain tar .*; unpack a packed one with gunzip"):
        open_source(path)
    path.write_bytes(content[:700])
    with pytest.raises(ScenarioError, match=r"train\.tar"):
        open_source(path).train.load([0])


def test_the_heads_are_not_kept(tmp_path, pictures, monkeypatch):
    path = write(tmp_path / "train.tar", samples(pictures(1).repeat(30, axis=0), [0] * 30))
    held = []
    once = tarfile.TarFile.next
    monkeypatch.setattr(tarfile.TarFile, "next", lambda self: held.append(len(self.members)) or once(self))
    open_source(path)
    assert max(held) <= 1
    assert len(held) >= 60
