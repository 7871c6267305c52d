import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from fedleak.data.images import ImageFiles
from fedleak.errors import ScenarioError


def files(paths, image_size=None, channels=None):
    return ImageFiles(paths, np.zeros(len(paths), dtype=np.int64), image_size, channels)


def test_pixels_and_channels_keep_their_place(tmp_path, pictures, write_images):
    images = pictures(3, height=5, width=7)
    write_images(tmp_path, images)
    loaded = files([tmp_path / f"{i}.png" for i in range(3)]).load([2, 0])
    expected = torch.from_numpy(images[[2, 0]]).permute(0, 3, 1, 2).float() / 255
    assert loaded.dtype == torch.float32
    assert torch.equal(loaded, expected)


@pytest.mark.parametrize(
    ("mode", "value", "channels"), [("L", 77, 1), ("1", 1, 1), ("LA", (77, 9), 1), ("RGBA", (77, 77, 77, 255), 3), ("P", 3, 3)]
)
def test_grey_stays_one_channel_and_all_else_becomes_rgb(tmp_path, mode, value, channels):
    Image.new(mode, (6, 6), value).save(tmp_path / "a.png")
    assert files([tmp_path / "a.png"]).load([0]).shape == (1, channels, 6, 6)
    for wanted in (1, 3):
        assert files([tmp_path / "a.png"], channels=wanted).load([0]).shape == (1, wanted, 6, 6)


def test_grey_among_colour_becomes_colour_and_colour_among_grey_is_refused(tmp_path, pictures, write_images):
    write_images(tmp_path, pictures(3))
    grey = np.random.default_rng(1).integers(0, 256, (8, 8), dtype=np.uint8)
    Image.fromarray(grey).save(tmp_path / "1.png")
    loaded = files([tmp_path / f"{i}.png" for i in range(3)]).load([0, 1, 2])
    assert torch.equal(loaded[1], torch.from_numpy(grey).float().div(255).expand(3, 8, 8))
    for number in range(40):
        Image.fromarray(grey).save(tmp_path / f"grey{number:02}.png")
    paths = sorted(tmp_path.glob("grey*.png"))
    paths[1] = tmp_path / "0.png"  # not one of those that are looked at
    images = files(paths)
    assert images.channels == 1
    for read in (images.load, images.verify, lambda chosen: images.verify(chosen, headers_only=True)):
        with pytest.raises(ScenarioError, match=r"0\.png: in colour, where others such as .*grey00\.png are grey; give data\."):
            read([1])
    assert files(paths, channels=3).load([0, 1]).shape == (2, 3, 8, 8)
    assert torch.equal(
        files(paths, channels=1).load([1])[0, 0] * 255, torch.from_numpy(np.array(Image.open(paths[1]).convert("L")))
    )


@pytest.mark.parametrize("suffix", ["png", "tif", "pgm"])
def test_sixteen_bit_grey_keeps_its_range(tmp_path, suffix):
    levels_ = np.random.default_rng(0).integers(0, 65_536, (9, 7), dtype=np.uint16)
    levels_[0, :2] = 0, 65_535
    Image.fromarray(levels_).save(tmp_path / f"a.{suffix}")
    images = files([tmp_path / f"a.{suffix}"])
    for _ in range(2):  # decoded, then kept
        assert torch.equal(images.load([0])[0, 0], torch.from_numpy(levels_.astype(np.float32) / 65_535))
    shown = files([tmp_path / f"a.{suffix}"], channels=3).load([0])[0]
    assert torch.equal(shown, images.load([0])[0].expand(3, -1, -1))


def test_a_sixteen_bit_image_is_resized_in_all_its_bits(tmp_path):
    ramp = np.broadcast_to(np.linspace(1000, 1255, 64).astype(np.uint16)[:, None], (64, 64)).copy()
    Image.fromarray(ramp).save(tmp_path / "a.png")
    rows = files([tmp_path / "a.png"], image_size=16).load([0])[0, 0].mean(dim=1) * 65_535
    expected = torch.from_numpy(ramp.reshape(16, 4, 64).mean(axis=(1, 2))).float()
    assert (rows - expected)[1:-1].abs().max() < 1
    assert len(rows.unique()) == 16  # of 8 bits there would be two


def test_eight_and_sixteen_bits_side_by_side(tmp_path):
    Image.fromarray(np.full((4, 4), 255, dtype=np.uint8)).save(tmp_path / "8.png")
    Image.fromarray(np.full((4, 4), 65_535, dtype=np.uint16)).save(tmp_path / "16.png")
    images = files([tmp_path / "8.png", tmp_path / "16.png"])
    for _ in range(2):
        assert torch.equal(images.load([0, 1]), torch.ones(2, 1, 4, 4))


def png_of_16_bits(levels_):
    """Write a PNG by hand: Pillow writes no 16-bit colour."""
    height, width, channels = levels_.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in levels_)
    head = struct.pack(">IIBBBBB", width, height, 16, {2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    chunks = [(b"IHDR", head), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    parts = (struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.mark.parametrize("channels", [2, 3, 4])
def test_sixteen_bit_colour_is_refused_instead_of_losing_half_its_bits(tmp_path, channels):
    levels_ = np.random.default_rng(0).integers(0, 65_536, (5, 6, channels), dtype=np.uint16)
    (tmp_path / "a.png").write_bytes(png_of_16_bits(levels_))
    with pytest.raises(ScenarioError, match=r"a\.png: 16-bit colour, .* of which Pillow reads 8 bits; save it with 8 bits"):
        files([tmp_path / "a.png"]).load([0])


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("RGB", "colour of 8 bits"),
        ("L", "grey of 8 bits"),
        ("I;16", "grey of 16 bits"),
        ("RGBA", "colour of 8 bits with alpha, which is dropped: the colours that it hides stay"),
        ("LA", "grey of 8 bits with alpha, which is dropped: the colours that it hides stay"),
    ],
)
def test_it_is_said_what_the_files_hold(tmp_path, mode, expected):
    Image.new(mode, (6, 6)).save(tmp_path / "a.png")
    assert files([tmp_path / "a.png"]).form == expected
    other = 1 if expected.startswith("colour") else 3
    assert files([tmp_path / "a.png"], channels=other).form == f"{expected}; taken as {'grey' if other == 1 else 'colour'}"


def test_alpha_is_dropped_and_the_colours_under_it_stay(tmp_path):
    levels_ = np.random.default_rng(0).integers(0, 256, (5, 6, 4), dtype=np.uint8)
    Image.fromarray(levels_).save(tmp_path / "a.png")
    assert torch.equal(files([tmp_path / "a.png"]).load([0])[0], torch.from_numpy(levels_[..., :3]).permute(2, 0, 1) / 255)


@pytest.mark.parametrize(("kind", "message"), [(np.int32, "32-bit or signed integers"), (np.float32, "floats")])
def test_levels_of_no_known_range_are_refused(tmp_path, kind, message):
    Image.fromarray(np.ones((4, 4), dtype=kind)).save(tmp_path / "a.tif")
    images = files([tmp_path / "a.tif"])
    for read in (images.load, lambda chosen: images.verify(chosen, headers_only=True)):
        with pytest.raises(ScenarioError, match=rf"a\.tif: its levels are {message}, of which no range is known; save it with 8"):
            read([0])


def test_an_image_of_too_many_pixels_is_refused_before_it_is_decoded(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 99)
    Image.new("L", (10, 10)).save(tmp_path / "a.png")
    monkeypatch.setattr(Image.Image, "convert", None)
    with (
        pytest.warns(Image.DecompressionBombWarning),
        pytest.raises(ScenarioError, match=r"a\.png: 10 x 10 pixels, expected at most 99"),
    ):
        files([tmp_path / "a.png"], channels=3).load([0])


def test_what_is_no_image_is_named_by_its_format(tmp_path, pictures, write_images):
    write_images(tmp_path, pictures(1))
    (tmp_path / "scan.png").write_bytes(bytes(128) + b"DICM" + bytes(300))
    with pytest.raises(ScenarioError, match=r"scan\.png: cannot be read as an image: it is DICOM; convert by pydicom"):
        files([tmp_path / "0.png", tmp_path / "scan.png"]).load([0, 1])


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
