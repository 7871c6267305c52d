"""Images as they are kept and shown: PNG."""

from __future__ import annotations

import base64
import io
import struct
from typing import TYPE_CHECKING, Final

import numpy as np
from markupsafe import Markup
from PIL import Image

from fedleak.modalities.base import Batch, Exhibit
from fedleak.modalities.image.spec import IMAGES

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_START: Final = b"\x89PNG\r\n\x1a\n"
_END: Final = b"IEND\xaeB`\x82"


class ImageExhibit(Exhibit):
    """A PNG of 8 bits a channel, shown in whole multiples of its size where it is smaller than its place."""

    folder = "images"
    suffix = ".png"

    def encode(self, batch: Batch) -> bytes:
        """Return the PNG of the image (1, C, H, W), clamped to [0, 1]; NaN is grey."""
        [image] = batch[IMAGES].detach().cpu()
        pixels = (image.clamp(0, 1).nan_to_num(0.5) * 255).round().byte().permute(1, 2, 0).numpy()
        file = io.BytesIO()
        Image.fromarray(pixels.squeeze()).save(file, "PNG")
        return file.getvalue()

    def is_whole(self, content: bytes) -> bool:
        """Say whether it is a PNG with pixels; it says itself where it ends."""
        return content.startswith(_START) and content[12:16] == b"IHDR" and content.endswith(_END) and all(_sides(content))

    def html(self, content: bytes, side: int, alt: str, truth: bytes | None) -> Markup:
        """Return an ``img`` with the PNG as a ``data:`` URI."""
        width, height = displayed(*_sides(content), side)
        sharp = Markup(' class="pixelated"') if width >= _sides(content)[0] else ""
        uri = "data:image/png;base64," + base64.b64encode(content).decode()
        return Markup('<img src="{}" width="{}" height="{}" alt="{}"{}>').format(uri, width, height, alt, sharp)

    def draw(self, axes: Axes, content: bytes, side: float) -> None:
        """Draw the image, its pixels sharp where it is smaller than its place."""
        with Image.open(io.BytesIO(content)) as image:
            pixels = np.asarray(image.convert("RGB"))
        axes.imshow(pixels, interpolation="antialiased" if max(pixels.shape[:2]) > side else "nearest")


def displayed(width: int, height: int, side: int) -> tuple[int, int]:
    """Return width and height in CSS pixels: a whole multiple of the image's own where it is smaller than ``side``."""
    longer = max(width, height)
    scale = side // longer if longer <= side else side / longer
    return max(1, round(width * scale)), max(1, round(height * scale))


def _sides(content: bytes) -> tuple[int, int]:
    """Return width and height in pixels, as the PNG's head says."""
    width, height = struct.unpack(">II", content[16:24])
    return width, height


EXHIBIT = ImageExhibit()
