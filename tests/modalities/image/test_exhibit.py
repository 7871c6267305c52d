"""Images as they are kept and shown."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from fedleak.modalities.image.exhibit import EXHIBIT, displayed


@pytest.mark.parametrize(
    ("own", "side", "shown"),
    [
        ((32, 32), 96, (96, 96)),
        ((28, 28), 96, (84, 84)),
        ((96, 96), 96, (96, 96)),
        ((224, 112), 96, (96, 48)),
        ((1000, 1), 96, (96, 1)),
    ],
)
def test_small_images_are_shown_in_whole_multiples(own, side, shown):
    assert displayed(*own, side) == shown


@pytest.mark.parametrize("channels", [1, 3])
def test_pixels_are_clamped_and_nan_is_grey(channels):
    image = torch.tensor([-1.0, 0.0, 0.5, 1.0, 7.0, float("nan")]).view(1, 1, 2, 3).expand(1, channels, 2, 3)
    with Image.open(io.BytesIO(EXHIBIT.encode({"images": image}))) as opened:
        values = np.asarray(opened).reshape(6, -1)
    assert [row.tolist() for row in values] == [[v] * channels for v in (0, 0, 128, 255, 255, 128)]


def test_only_a_whole_png_is_whole():
    whole = EXHIBIT.encode({"images": torch.rand(1, 3, 4, 4)})
    assert EXHIBIT.is_whole(whole)
    for content in (whole[:-10], b"<svg onload=''" + whole[14:], whole[:12] + b"XXXX" + whole[16:], b""):
        assert not EXHIBIT.is_whole(content)
    assert not EXHIBIT.is_whole(whole[:16] + bytes(4) + whole[20:])


def test_a_page_shows_it_with_its_words_escaped():
    small, large = (EXHIBIT.encode({"images": torch.rand(1, 3, side, side)}) for side in (4, 200))
    html = EXHIBIT.html(small, 96, '"><script>', None)
    assert html.startswith('<img src="data:image/png;base64,')
    assert html.endswith('width="96" height="96" alt="&#34;&gt;&lt;script&gt;" class="pixelated">')
    assert EXHIBIT.html(large, 96, "x", small).endswith('width="96" height="96" alt="x">')


def test_it_is_drawn_sharp_where_it_is_small():
    for side, kind in ((4, "nearest"), (200, "antialiased")):
        axes = Figure().add_subplot()
        EXHIBIT.draw(axes, EXHIBIT.encode({"images": torch.rand(1, 3, side, side)}), 100)
        assert axes.images[0].get_interpolation() == kind
        assert axes.images[0].get_array().shape == (side, side, 3)
