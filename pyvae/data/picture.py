"""One picture, of whatever file, as the square of bytes that a network takes."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

Array = npt.NDArray[Any]

CHANNELS = {1: "L", 3: "RGB"}


class Fit(NamedTuple):
    """How a picture becomes an image ``[channels, size, size]``."""

    size: int
    channels: int
    crop: int | None
    """Side of the central square that is kept, in pixels of the picture; None: the largest there is."""


class CropError(ValueError):
    """The picture is smaller than the square to be cut out of it."""


def decode(picture: Image.Image) -> Image.Image:
    """A picture with its pixels read, 8 bits to a value, turned as its EXIF data says; the first of several.

    Of 16 bits 65535 is white.

    Raises:
        ValueError: 32-bit integers and floats, which do not say which value is white.
        Exception: whatever Pillow raises on damaged files.
    """
    picture.load()
    mode = picture.mode
    # a PNG has at most 16 bits, although older Pillow opens it as 32
    sixteen = mode.startswith("I;16") or (mode == "I" and picture.format == "PNG")
    if mode in ("I", "F") and not sixteen:
        kind = "floats" if mode == "F" else "32-bit integers"
        raise ValueError(f"its pixels are {kind}, which do not say what is white")
    if picture.getexif():
        picture = ImageOps.exif_transpose(picture)
    if not sixteen:
        return picture
    values = np.asarray(picture).astype(np.uint32)
    return Image.fromarray(((values * 2 + 257) // 514).astype(np.uint8))


def fit(picture: Image.Image, how: Fit) -> Array:
    """uint8 ``[channels, size, size]``: the central square of a decoded picture, resized.

    Transparent pixels are laid on white. Grey is ITU-R 601 luma. Resizing is Pillow's bilinear filter, which
    averages over what a new pixel covers and never overshoots; a square of the right size is left as it is.

    Raises:
        CropError: the picture is smaller than the square.
        ValueError: colours that Pillow cannot convert.
    """
    side = min(picture.size) if how.crop is None else how.crop
    if side > min(picture.size):
        raise CropError(f"{picture.width} x {picture.height} pixels, smaller than the crop of {side}")
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    square = _opaque(picture.crop((left, top, left + side, top + side))).convert(CHANNELS[how.channels])
    pixels = np.asarray(square.resize((how.size, how.size), Image.Resampling.BILINEAR))
    return np.ascontiguousarray(pixels.reshape(how.size, how.size, how.channels).transpose(2, 0, 1))


def is_grey(picture: Image.Image) -> bool:
    """Whether the header of a picture says that it has no colour; a palette counts as colour."""
    return picture.mode in ("1", "L", "LA", "La", "I", "F") or picture.mode.startswith("I;16")


def _opaque(picture: Image.Image) -> Image.Image:
    if picture.mode not in ("LA", "La", "PA", "RGBA", "RGBa") and "transparency" not in picture.info:
        return picture
    picture = picture.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
