import numpy as np
import pytest
import torch
from PIL import Image

from fedleak.data.images import ImageFiles
from fedleak.errors import ScenarioError


def files(paths, image_size=None):
    return ImageFiles(paths, np.zeros(len(paths), dtype=np.int64), image_size)


def test_pixels_and_channels_keep_their_place(tmp_path, pictures, write_images):
    images = pictures(3, height=5, width=7)
    write_images(tmp_path, images)
    loaded = files([tmp_path / f"{i}.png" for i in range(3)]).load([2, 0])
    expected = torch.from_numpy(images[[2, 0]]).permute(0, 3, 1, 2).float() / 255
    assert loaded.dtype == torch.float32
    assert torch.equal(loaded, expected)


@pytest.mark.parametrize(("mode", "value"), [("L", 77), ("RGBA", (77, 77, 77, 255)), ("P", 3), ("1", 1)])
def test_every_mode_becomes_rgb(tmp_path, mode, value):
    Image.new(mode, (6, 6), value).save(tmp_path / "a.png")
    assert files([tmp_path / "a.png"]).load([0]).shape == (1, 3, 6, 6)


def test_the_centre_is_kept(tmp_path):
    pixels = np.zeros((4, 8, 3), dtype=np.uint8)
    pixels[:, 2:6] = 255
    Image.fromarray(pixels).save(tmp_path / "wide.png")
    Image.fromarray(pixels.transpose(1, 0, 2)).save(tmp_path / "tall.png")
    loaded = files([tmp_path / "wide.png", tmp_path / "tall.png"], image_size=4).load([0, 1])
    assert torch.equal(loaded, torch.ones(2, 3, 4, 4))


def test_the_short_side_is_resized(tmp_path):
    ramp = np.broadcast_to(np.linspace(0, 255, 64).astype(np.uint8)[:, None, None], (64, 96, 3))
    Image.fromarray(np.ascontiguousarray(ramp)).save(tmp_path / "a.png")
    rows = files([tmp_path / "a.png"], image_size=16).load([0])[0, 0].mean(dim=1)
    expected = torch.from_numpy(np.linspace(0, 1, 64).reshape(16, 4).mean(axis=1)).float()
    # The two outermost rows see the edge.
    assert (rows - expected)[1:-1].abs().max() < 0.01


def test_unequal_sizes_are_refused_by_name(tmp_path, pictures, write_images):
    write_images(tmp_path, pictures(1, 8, 8))
    Image.new("RGB", (8, 6)).save(tmp_path / "odd.png")
    images = files([tmp_path / "0.png", tmp_path / "odd.png"])
    for read in (images.load, images.verify, lambda chosen: images.verify(chosen, headers_only=True)):
        with pytest.raises(ScenarioError, match=r"odd\.png: the image is 8 x 6 .* 8 x 8; give data\.image_size"):
            read([1])
    assert files([tmp_path / "0.png", tmp_path / "odd.png"], image_size=4).load([0, 1]).shape == (2, 3, 4, 4)


@pytest.mark.parametrize("content", [b"", b"not an image", None])
def test_an_unreadable_image_is_named(tmp_path, pictures, write_images, content):
    write_images(tmp_path, pictures(1))
    if content is not None:
        (tmp_path / "bad.png").write_bytes(content)
    images = files([tmp_path / "0.png", tmp_path / "bad.png"])
    images.load([0])
    for read in (images.load, images.verify, lambda chosen: images.verify(chosen, headers_only=True)):
        with pytest.raises(ScenarioError, match=r"bad\.png: cannot be read as an image"):
            read([0, 1])


def test_a_truncated_image_fails_the_full_check_only(tmp_path, pictures, write_images):
    write_images(tmp_path, pictures(2, 32, 32))
    broken = tmp_path / "1.png"
    broken.write_bytes(broken.read_bytes()[:200])
    images = files([tmp_path / "0.png", broken])
    images.verify([0, 1], headers_only=True)
    with pytest.raises(ScenarioError, match=r"1\.png"):
        images.verify([0, 1])


def test_no_indices_give_no_images(tmp_path, pictures, write_images):
    write_images(tmp_path, pictures(1, 6, 4))
    assert files([tmp_path / "0.png"]).load([]).shape == (0, 3, 6, 4)


def test_fine_detail_is_averaged_not_sampled(tmp_path):
    board = (np.indices((64, 64)).sum(axis=0) % 2 * 255).astype(np.uint8)
    Image.fromarray(board).save(tmp_path / "a.png")
    assert (files([tmp_path / "a.png"], image_size=16).load([0]) - 0.5).abs().max() < 0.05


def test_decoded_images_are_kept_within_the_bound(tmp_path, pictures, write_images, monkeypatch):
    monkeypatch.setattr("fedleak.data.images.KEPT_BYTES", 2 * 3 * 4 * 4 + 1)
    write_images(tmp_path, pictures(4, height=4, width=4))
    images = files([tmp_path / f"{i}.png" for i in range(4)])
    expected = images.load([3, 1, 0, 2])
    decoded = []
    once = images._decode
    monkeypatch.setattr(images, "_decode", lambda index: decoded.append(index) or once(index))
    for _ in range(2):
        assert torch.equal(images.load([3, 1, 0, 2]), expected)
        assert torch.equal(images.load([1, 3]), expected[[1, 0]])
    assert set(decoded) == {0, 2}


def test_what_a_caller_does_to_images_does_not_reach_those_that_are_kept(tmp_path, pictures, write_images):
    write_images(tmp_path, pictures(2, height=4, width=4))
    images = files([tmp_path / "0.png", tmp_path / "1.png"])
    expected = images.load([0, 1]).clone()
    for _ in range(2):
        images.load([0, 1]).zero_()
    assert torch.equal(images.load([0, 1]), expected)
