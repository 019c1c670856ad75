"""Arrays of data files, read row by row from their start: members of a .npz, a .npy, IDX, datasets of an HDF5 file."""

from __future__ import annotations

import math
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from pyvae.data.dataset import IDX_TYPES
from pyvae.errors import DataError

Array = npt.NDArray[Any]

DAMAGE = (
    ArithmeticError,
    EOFError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
    struct.error,
    tokenize.TokenError,
    zipfile.BadZipFile,
    zlib.error,
)
"""What readers raise on files that are damaged or truncated, HDF5 any of them."""


def damaged(path: Path, error: Exception, fix: str) -> DataError:
    """The error of a file whose reader raised one of `DAMAGE`."""
    reason = (str(error) or type(error).__name__).splitlines()[0]
    return DataError(f"{path}: damaged or truncated ({reason}); {fix}")


class Column(NamedTuple):
    """An array of a file, read from its start on: ``read(n)`` gives the next n rows."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    read: Callable[[int], Array]
    chunk: int = 1
    """Rows that are decompressed together: reading whole ones spares doing it again."""

    def __str__(self) -> str:
        return f"{self.dtype} {list(self.shape)}"


def npy_column(stream: IO[bytes]) -> Column:
    """The array of an open .npy: nothing of it is read yet, and nothing is ever unpickled.

    Rows of any dtype but object may be read. Raises one of `DAMAGE` when the header, and later the rows, are
    damaged.
    """
    version = np.lib.format.read_magic(stream)
    header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in header:
        raise ValueError(f".npy format {version}")
    shape, fortran_order, dtype = header[version](stream)

    def read(rows: int) -> Array:
        if fortran_order:
            raise ValueError("an array in Fortran order: save np.ascontiguousarray of it")
        array = np.empty((rows, *shape[1:]), dtype)
        rest = array.view(np.uint8).reshape(-1).data
        while rest:
            taken = stream.readinto(rest[: 1 << 20])  # type: ignore[attr-defined]
            if not taken:
                raise EOFError("an array ends early")
            rest = rest[taken:]
        return array

    return Column(shape, dtype, read)


def idx_column(stream: IO[bytes]) -> Column:
    """The array of an open IDX file of bytes, the format of MNIST (LeCun et al. 1998).

    Raises one of `DAMAGE` for another type of values, and when the header, and later the rows, end early.
    """
    start = stream.read(4)
    if len(start) < 4:
        raise EOFError("the header ends early")
    kind, dimensions = IDX_TYPES.get(start[2:3]), start[3]
    if start[:2] != b"\0\0" or kind is None or not dimensions:
        raise ValueError(
            f"no IDX file: it begins with {start.hex(' ')}, the training images of MNIST with 00 00 08 03"
        )
    if kind != "bytes":
        raise ValueError(f"an IDX file of {kind}, not of bytes")
    sizes = stream.read(4 * dimensions)
    if len(sizes) < 4 * dimensions:
        raise EOFError("the header ends early")
    shape = struct.unpack(f">{dimensions}I", sizes)

    def read(rows: int) -> Array:
        array = np.frombuffer(stream.read(rows * math.prod(shape[1:])), np.uint8)
        if len(array) < rows * math.prod(shape[1:]):
            raise EOFError("an array ends early")
        return array.reshape(rows, *shape[1:])

    return Column(shape, np.dtype(np.uint8), read)


def hdf5_column(dataset: Any) -> Column:
    """A dataset of an open HDF5 file."""
    position = 0

    def read(rows: int) -> Array:
        nonlocal position
        position += rows
        return np.asarray(dataset[position - rows : position])

    return Column(dataset.shape, dataset.dtype, read, (dataset.chunks or (1,))[0])
