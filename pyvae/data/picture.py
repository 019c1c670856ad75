"""One picture, of whatever file, as the square of bytes that a network takes."""

from __future__ import annotations

from typing import IO, Any, NamedTuple, cast

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFile, ImageOps

Array = npt.NDArray[Any]

CHANNELS = {1: "L", 3: "RGB"}

_SCALES = {"L;2": 85, "L;4": 17}


class Fit(NamedTuple):
    """How a picture becomes an image ``[channels, size, size]``."""

    size: int
    channels: int
    crop: int | None
    """Side of the central square that is kept, in pixels of the picture; None: the largest there is."""


class CropError(ValueError):
    """The picture is smaller than the square to be cut out of it."""


def decode(picture: ImageFile.ImageFile) -> Image.Image:
    """A picture with its pixels read, 8 bits to a value, turned as its EXIF data says; the first of several.

    Of 16 bits 65535 is white.

    Raises:
        ValueError: 32-bit integers and floats, which do not say which value is white.
        Exception: whatever Pillow raises on damaged files.
    """
    stream, samples = cast("IO[bytes]", picture.fp), _png_samples(picture)
    picture.load()
    mode = picture.mode
    # a PNG has at most 16 bits, although older Pillow opens it as 32
    sixteen = mode.startswith("I;16") or (mode == "I" and picture.format == "PNG")
    if mode in ("I", "F") and not sixteen:
        kind = "floats" if mode == "F" else "32-bit integers"
        raise ValueError(f"its pixels are {kind}, which do not say what is white")
    clear = picture.info.get("transparency")
    if samples in _SCALES:  # Pillow scales the pixels, not the transparent value
        picture.info["transparency"] *= _SCALES[samples]
    elif samples == "RGB;16B" and clear is not None:
        _make_clear(
            picture,
            (np.asarray(picture) == np.array(clear) >> 8) & (_low_bytes(stream) == np.array(clear) & 255),
        )
    upright = ImageOps.exif_transpose(picture) if picture.getexif() else picture
    if not sixteen:
        return upright
    values = np.asarray(upright).astype(np.uint32)
    eight = Image.fromarray(((values * 2 + 257) // 514).astype(np.uint8))
    if clear is not None:
        _make_clear(eight, values[..., None] == clear)
    return eight


def _png_samples(picture: ImageFile.ImageFile) -> str | None:
    """How Pillow names the samples of a PNG that has a transparent value, None of other pictures."""
    if picture.format != "PNG" or "transparency" not in picture.info:
        return None
    return str(picture.tile[0][3]) if picture.tile else None


def _low_bytes(stream: IO[bytes]) -> Array:
    """uint8 ``[H, W, 3]``: of a PNG of three times 16 bits what Pillow leaves out, the lower byte of each."""
    stream.seek(0)
    with Image.open(stream, formats=["PNG"]) as picture:
        picture.tile = [(*tile[:3], "RGB;16L") for tile in picture.tile]
        return np.asarray(picture)


def _make_clear(picture: Image.Image, matches: Array) -> None:
    """Make the pixels transparent in which all ``[H, W, C]`` are true."""
    picture.info.pop("transparency", None)
    picture.putalpha(Image.fromarray(np.where(matches.all(-1), np.uint8(0), np.uint8(255))))


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
