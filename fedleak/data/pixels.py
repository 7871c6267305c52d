"""One image as an array: which channels and levels the modes of files have, and how an image is brought to a size.

8-bit levels are kept as uint8, 16-bit ones as uint16, so that neither loses range; both become float32 in [0, 1] by the
largest value of their type.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

Pixels = NDArray[Any]
"""(C, H, W) of uint8, uint16 or float32, the last in [0, 1]."""

_DEEP_GREY: Final = ("I;16", "I;16B", "I;16L", "I;16N")
_GREY: Final = frozenset({"1", "L", "LA", "La", *_DEEP_GREY})
LUMA: Final = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in grey: ITU-R 601, as in Pillow's own conversion of 8-bit colour."""


def is_grey(image: Image.Image) -> bool:
    """Say whether a file holds one channel of levels; alpha does not count, a palette is colour."""
    return image.mode in _GREY or _is_deep_ppm(image)


def has_alpha(image: Image.Image) -> bool:
    """Say whether a file tells of its pixels how opaque they are."""
    return bool({"A", "a"} & set(image.getbands())) or "transparency" in image.info


def form(grey: bool, deep: bool, alpha: bool, channels: int) -> str:
    """Return in a few words what files hold, and what becomes of it in images of 1 or 3 channels."""
    what = f"{'grey' if grey else 'colour'} of {16 if deep else 8} bits"
    if alpha:
        what += " with alpha, which is dropped: the colours that it hides stay"
    return what if grey == (channels == 1) else f"{what}; taken as {'grey' if channels == 1 else 'colour'}"


def is_deep(image: Image.Image) -> bool:
    """Say whether a file's levels are of 16 bits."""
    return image.mode in _DEEP_GREY or _is_deep_ppm(image)


def unfit(image: Image.Image) -> str | None:
    """Return why an opened file cannot be taken, and what to do; ``None`` if it can.

    Refused are levels of no known range, 16-bit colour of which Pillow reads 8 bits, and more pixels than Pillow takes for
    harmless.
    """
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and image.width * image.height > limit:
        return f"{image.width} x {image.height} pixels, expected at most {limit:,} in all; make it smaller"
    if image.mode in ("I", "F") and not _is_deep_ppm(image):
        levels = "32-bit or signed integers" if image.mode == "I" else "floats"
        return (
            f"its levels are {levels}, of which no range is known; save it with 8 or 16 bits unsigned, or as a NumPy array of "
            "floats in [0, 1], which data.source = 'npy' reads"
        )
    if not is_grey(image) and ";16" in _raw_mode(image):
        return (
            "16-bit colour, or 16-bit grey with alpha, of which Pillow reads 8 bits; save it with 8 bits, or as a NumPy array of "
            "uint16, which data.source = 'npy' reads"
        )
    return None


def decode(image: Image.Image, channels: int, size: int | None) -> Pixels:
    """Return the pixels of an opened file (channels, H, W), as uint8 or uint16; alpha is dropped.

    Parameters
    ----------
    image : Image
        As Pillow opened it.
    channels : int
        1 or 3.
    size : int, optional
        The short side is resized to so many pixels (Lanczos), and the centre square is kept.
    """
    if is_deep(image):
        return fit(to_channels(np.asarray(image).astype(np.uint16)[None], channels), size)
    flat = image.convert("RGB" if channels == 3 else "L")
    if size is not None:
        flat = ImageOps.fit(flat, (size, size), Image.Resampling.LANCZOS)
    levels = np.array(flat)
    return np.ascontiguousarray(levels.transpose(2, 0, 1)) if levels.ndim == 3 else levels[None]


def to_channels(pixels: Pixels, channels: int) -> Pixels:
    """Return pixels of 1 to 4 channels with 1 or 3 of them: alpha dropped, grey repeated, colour weighted to luma."""
    if len(pixels) in (2, 4):  # the last is alpha
        pixels = pixels[:-1]
    if len(pixels) == channels:
        return pixels
    if channels == 3:
        return np.repeat(pixels, 3, axis=0)
    if pixels.dtype == np.uint8:
        return np.array(Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0))).convert("L"))[None]
    luma = np.tensordot(np.array(LUMA), pixels.astype(np.float64), axes=1)[None]
    return (luma.round() if pixels.dtype == np.uint16 else luma).astype(pixels.dtype)


def fit(pixels: Pixels, size: int | None) -> Pixels:
    """Return pixels with the short side resized to ``size`` (Lanczos) and the centre square kept; of the same type."""
    if size is None:
        return pixels
    if pixels.dtype == np.uint8:
        image = Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0)).squeeze(-1 if len(pixels) == 1 else ()))
        levels = np.array(ImageOps.fit(image, (size, size), Image.Resampling.LANCZOS))
        return np.ascontiguousarray(levels.transpose(2, 0, 1)) if levels.ndim == 3 else levels[None]
    # Pillow resizes floats without rounding; it has no 16-bit colour.
    planes = [Image.fromarray(plane.astype(np.float32)) for plane in pixels]
    fitted = np.stack([np.array(ImageOps.fit(plane, (size, size), Image.Resampling.LANCZOS)) for plane in planes])
    if pixels.dtype == np.uint16:
        return fitted.round().clip(0, 65535).astype(np.uint16)
    return fitted.clip(0, 1)


def unit(pixels: NDArray[Any]) -> NDArray[np.float32]:
    """Return levels as float32 in [0, 1]: divided by 255 or 65,535; floats as they are."""
    if pixels.dtype == np.float32:
        return pixels
    levels = pixels.astype(np.float32)
    levels /= np.float32(np.iinfo(pixels.dtype).max)
    return levels


def _is_deep_ppm(image: Image.Image) -> bool:
    # Pillow scales them to 65,535, whatever the file calls white.
    return image.format == "PPM" and image.mode == "I"


def _raw_mode(image: Image.Image) -> str:
    """Return how the levels lie in the file, such as ``"RGB;16B"``; empty where Pillow does not say."""
    tile: Any = getattr(image, "tile", None)
    arguments = tile[0][3] if tile else None
    given = arguments if isinstance(arguments, tuple) else (arguments,)
    return next((part for part in given if isinstance(part, str)), "")
