"""Arrays of bytes in MATLAB's files of version 5, as its ``save`` writes them; later ones (v7.3) are HDF5.

Format: MathWorks, "MAT-File Format". A file is a header of 128 bytes and variables, each of them packed by zlib or not.
scipy reads them as well, but takes whatever sizes a file claims, and all of what it unpacks to.
"""

from __future__ import annotations

import contextlib
import io
import math
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
import numpy.typing as npt

from pyvae.base.files import open_regular
from pyvae.data.columns import Column, exactly, fill

Array = npt.NDArray[Any]

_HEADER = 128
_VERSION = 0x0100
_ORDERS = {b"IM": "<", b"MI": ">"}
_MOST_HEADER = 4096
_PIECE = 1 << 16

# types of elements, and the class of an array of bytes
_INT8, _UINT8, _INT32, _UINT32, _MATRIX, _COMPRESSED = 1, 2, 5, 6, 14, 15
_CLASS_UINT8 = 9
_COMPLEX = 0x0800


def is_matlab(path: Path) -> bool:
    """Whether a file is MATLAB's of version 5, by its header; False for what cannot be read."""
    try:
        with open_regular(path) as file:
            return _order(file.read(_HEADER)) is not None
    except OSError:
        return False


@contextlib.contextmanager
def open_bytes(path: Path, name: str) -> Iterator[Column]:
    """The array of bytes of this name, for as long as the block takes.

    MATLAB's ``A(i, j, k)``, whose first index is the fastest, is here ``[k, j, i]``.

    Raises one of `pyvae.data.columns.DAMAGE`, and so does the column: for a file of another make, for one without such
    an array, and for what ends early or goes on.
    """
    with open_regular(path) as file:
        order = _order(file.read(_HEADER))
        if order is None:
            raise ValueError("no MATLAB file of version 5")
        at = _HEADER
        while True:
            file.seek(at)
            tag = file.read(8)
            if not tag:
                raise LookupError(f"no array {name} in it")
            if len(tag) < 8:
                raise EOFError("a variable ends early")
            kind, size = struct.unpack(f"{order}II", tag)
            if kind in (_MATRIX, _COMPRESSED):
                column = _array(file, kind, size, order, name)
                if column is not None:
                    yield column
                    return
            at += 8 + size


def _order(header: bytes) -> str | None:
    """The byte order of a header, None of what is none."""
    if len(header) < _HEADER or header.startswith(b"\0"):
        return None
    order = _ORDERS.get(header[126:128])
    if order is None or struct.unpack(f"{order}H", header[124:126])[0] != _VERSION:
        return None
    return order


def _array(file: IO[bytes], kind: int, size: int, order: str, name: str) -> Column | None:
    """The array of the variable that begins here if it has this name, else None."""
    stream: IO[bytes] = file
    packed = kind == _COMPRESSED
    if packed:
        stream = cast("IO[bytes]", io.BufferedReader(_Inflated(file, size)))
        kind, size = struct.unpack(f"{order}II", exactly(stream, 8))
        if kind != _MATRIX:
            raise ValueError(f"a variable of type {kind}")
    flags = struct.unpack(f"{order}II", _element(stream, order, _UINT32, 8))[0]
    if flags & 0xFF != _CLASS_UINT8:
        # of an object, what follows may be anything
        return None
    dimensions = _element(stream, order, _INT32)
    sizes = struct.unpack(f"{order}{len(dimensions) // 4}i", dimensions)
    if _element(stream, order, _INT8) != name.encode():
        return None
    if flags & _COMPLEX or not sizes or min(sizes) < 1:
        raise ValueError(f"{name} is complex or empty")
    shape = tuple(reversed(sizes))
    held, small = _tag(stream, order, _UINT8)
    if held != math.prod(sizes):
        raise ValueError(f"{name} has {held:,} bytes for sizes {list(sizes)}")
    if small is not None:
        stream = io.BytesIO(small)
    elif not packed and held > size:
        raise ValueError(f"{name} has {held:,} bytes in a variable of {size:,}")
    left = shape[0]

    def read(rows: int) -> Array:
        nonlocal left
        array = np.empty((rows, *shape[1:]), np.uint8)
        fill(stream, array)
        left -= rows
        # what is packed is checked when it is read to its end; it is filled up to eight bytes
        if not left and packed and len(stream.read(9)) > 8:
            raise ValueError(f"{name} goes on after its end")
        return array

    return Column(shape, np.dtype(np.uint8), read)


def _element(stream: IO[bytes], order: str, kind: int, size: int | None = None) -> bytes:
    """The bytes of a small element of this type, which is filled up to eight of them."""
    held, small = _tag(stream, order, kind)
    if held > _MOST_HEADER or size not in (None, held):
        raise ValueError(f"an element of {held} bytes")
    return small if small is not None else exactly(stream, held + -held % 8)[:held]


def _tag(stream: IO[bytes], order: str, kind: int) -> tuple[int, bytes | None]:
    """How many bytes an element of this type has, and the bytes themselves where they are part of its tag."""
    tag = exactly(stream, 8)
    first, size = struct.unpack(f"{order}II", tag)
    small = first >> 16
    if first & 0xFFFF != kind or small > 4:
        raise ValueError(f"an element of type {first} instead of {kind}")
    return (small, tag[4 : 4 + small]) if small else (size, None)


class _Inflated(io.RawIOBase):
    """What the next ``size`` bytes of a file unpack to."""

    def __init__(self, file: IO[bytes], size: int) -> None:
        self._file, self._left = file, size
        self._inflate, self._rest = zlib.decompressobj(), b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while True:
            piece = self._inflate.decompress(self._rest, len(buffer))
            self._rest = self._inflate.unconsumed_tail
            if piece or self._inflate.eof:
                buffer[: len(piece)] = piece
                return len(piece)
            self._rest = self._file.read(min(self._left, _PIECE))
            self._left -= len(self._rest)
            if not self._rest:
                raise EOFError("a variable ends early")
