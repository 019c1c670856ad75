"""How much a data file may unpack to: a few megabytes can say that they are any number of gigabytes, and be so."""

from __future__ import annotations

import math
import os

from pyvae.errors import DataError

VARIABLE = "PYVAE_LIMIT"
GIGABYTE = 10**9

_DEFAULT = 16.0
_IMAGES = 32  # one image is at most this part of it, since it is held whole
_FACTOR = 4  # what every file may unpack to, times its own size


def most() -> int:
    """Bytes that the array of a data file may have: ``$PYVAE_LIMIT`` gigabytes, else 16."""
    text = os.environ.get(VARIABLE) or str(_DEFAULT)
    try:
        gigabytes = float(text)
    except ValueError:
        gigabytes = math.nan
    if not 0 < gigabytes < math.inf:
        raise DataError(
            f"{VARIABLE}={text}: not a number of gigabytes above 0; give one, 16 for example, or unset it"
        )
    return int(gigabytes * GIGABYTE)


def most_of_an_image() -> int:
    """Bytes that one image may have, or what is decompressed with it."""
    return most() // _IMAGES


def check_array(path: object, what: str, size: int, file_size: int) -> None:
    """Raise `DataError` for more bytes than a file of ``file_size`` may hold."""
    if size > max(most(), _FACTOR * file_size):
        raise DataError(
            f"{path}: {what} {in_words(size)} from a file of {in_words(file_size)}, more than the "
            f"{in_words(most())} that are taken; {_raise_to(size)}"
        )


def check_image(path: object, what: str, size: int) -> None:
    """Raise `DataError` for more bytes than one image may have."""
    if size > most_of_an_image():
        raise DataError(
            f"{path}: {what} {in_words(size)}, more than the {in_words(most_of_an_image())} that are held at once; "
            f"{_raise_to(size * _IMAGES)}"
        )


def _raise_to(size: int) -> str:
    return f"if it is meant so, set {VARIABLE}={math.ceil(size / GIGABYTE)} (gigabytes)"


def in_words(size: int) -> str:
    """A number of bytes, to three digits."""
    for unit, scale in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if size >= scale:
            return f"{size / scale:.3g} {unit}" if size < 1000 * scale else f"{size // scale:,} {unit}"
    return f"{size} bytes"
