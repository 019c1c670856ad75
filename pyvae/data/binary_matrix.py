"""Matrices as NORB is published in: a magic number, the sizes, the values, all little-endian; gzipped or not.

Format: https://cs.nyu.edu/~ylclab/data/norb-v1.0-small. Sizes of fewer than three dimensions are filled up to three.
"""

from __future__ import annotations

import contextlib
import gzip
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

DTYPES: dict[int, np.dtype[Any]] = {0x1E3D4C55: np.dtype(np.uint8), 0x1E3D4C54: np.dtype("<i4")}
"""By the magic number: bytes and 32-bit integers."""
_OTHERS = {
    0x1E3D4C51: "floats",
    0x1E3D4C52: "packed values",
    0x1E3D4C53: "doubles",
    0x1E3D4C56: "16-bit integers",
}
_MOST_DIMENSIONS = 8


def is_matrix(path: Path) -> bool:
    """Whether a file, unpacked where it is gzipped, begins as a matrix does; False for what cannot be read."""
    try:
        with _unpacked(path) as (stream, _):
            start = stream.read(4)
    except (OSError, EOFError, zlib.error):
        return False
    return len(start) == 4 and struct.unpack("<I", start)[0] in DTYPES.keys() | _OTHERS.keys()


@contextlib.contextmanager
def open_matrix(path: Path) -> Iterator[Column]:
    """The matrix of a file, for as long as the block takes.

    Raises one of `pyvae.data.columns.DAMAGE`, and so does the column: for another format, another type of values, and a
    file that ends early or goes on.
    """
    with _unpacked(path) as (stream, size):
        magic, dimensions = struct.unpack("<Ii", exactly(stream, 8))
        if magic not in DTYPES:
            what = _OTHERS.get(magic)
            raise ValueError(
                f"a matrix of {what}" if what else f"it begins with {magic:08x}, no matrix of NORB"
            )
        if not 1 <= dimensions <= _MOST_DIMENSIONS:
            raise ValueError(f"a matrix of {dimensions} dimensions")
        stored = max(3, dimensions)
        sizes = struct.unpack(f"<{stored}i", exactly(stream, 4 * stored))
        shape, dtype = sizes[:dimensions], DTYPES[magic]
        if min(sizes) < 1:
            raise ValueError(f"a matrix of {list(sizes)}")
        expected = 8 + 4 * stored + math.prod(shape) * dtype.itemsize
        if size is not None and size != expected:
            raise EOFError(f"{size:,} bytes instead of {expected:,}")
        yield _column(stream, shape, dtype)


def _column(stream: IO[bytes], shape: tuple[int, ...], dtype: np.dtype[Any]) -> Column:
    left = shape[0]

    def read(rows: int) -> Array:
        nonlocal left
        array = np.empty((rows, *shape[1:]), dtype)
        fill(stream, array)
        left -= rows
        # a gzip is checked when it is read to its end
        if not left and stream.read(1):
            raise ValueError("a matrix goes on after its end")
        return array

    return Column(shape, dtype, read)


@contextlib.contextmanager
def _unpacked(path: Path) -> Iterator[tuple[IO[bytes], int | None]]:
    """A file, and its size where it is not packed."""
    with open_regular(path) as file:
        packed = file.read(2) == b"\x1f\x8b"
        file.seek(0)
        if not packed:
            yield file, path.stat().st_size
            return
        with gzip.open(file) as stream:
            yield cast("IO[bytes]", stream), None
