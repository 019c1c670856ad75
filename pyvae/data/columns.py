"""Arrays of data files, read row by row from their start: members of a .npz, a .npy, IDX, datasets of an HDF5 file."""

from __future__ import annotations

import contextlib
import gzip
import io
import math
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

import numpy as np
import numpy.typing as npt

from pyvae.base.files import open_regular
from pyvae.data import limit
from pyvae.data.dataset import IDX_TYPES
from pyvae.errors import DataError, reason

Array = npt.NDArray[Any]

BLOCK = 1 << 27
"""Bytes that are decompressed, or gathered out of an array in Fortran order, at once."""

_HEADER = 1 << 16
_PIECE = 1 << 20
_DEFLATE = 1  # the number of this filter in HDF5
_DEFLATED = 1032  # bytes that one byte unpacks to at most

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
    return DataError(f"{path}: damaged or truncated ({reason(error)}); {fix}")


class Column(NamedTuple):
    """An array of a file, read from its start on: ``read(n)`` gives the next n rows."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    read: Callable[[int], Array]
    chunk: int = 1
    """Rows that are decompressed together: reading whole ones spares doing it again."""
    chunk_bytes: int = 0
    """What is held of the file to read a single value."""

    def __str__(self) -> str:
        return f"{self.dtype} {list(self.shape)}"

    @property
    def row_bytes(self) -> int:
        """Bytes of a row."""
        return math.prod(self.shape[1:]) * self.dtype.itemsize


def check_size(path: Path, name: str, column: Column) -> None:
    """Raise `DataError` for an array that is larger than `pyvae.data.limit` lets one read."""
    limit.check_array(
        path, f"{name} is {column}, which is", column.shape[0] * column.row_bytes, path.stat().st_size
    )
    limit.check_image(path, f"{name} is {column}, an image being", column.row_bytes)
    limit.check_image(path, f"{name} is {column}, in chunks of", column.chunk_bytes)


@contextlib.contextmanager
def open_columns(path: Path, form: str) -> Iterator[dict[str, Column]]:
    """The arrays of a file by their names, for as long as the block takes; ``form`` is its `file_format`.

    Those of HDF5 are the datasets in the file itself: what it says of other files is passed over.

    Raises one of `DAMAGE`, and later so do the columns.
    """
    with contextlib.ExitStack() as stack:
        if form == "hdf5":
            import h5py

            found: dict[str, Column] = {}

            def note(name: str, item: Any) -> None:
                if isinstance(item, h5py.Dataset) and item.shape is not None:
                    with contextlib.suppress(TypeError):  # h5py has no dtype for it
                        found[name] = hdf5_column(item)

            stack.enter_context(h5py.File(path, "r")).visititems(note)
            yield found
            return
        file = stack.enter_context(open_regular(path))
        size = path.stat().st_size
        if form == "npy":
            yield {path.name: npy_column(file, size)}
        elif form == "idx":
            yield {path.name: idx_column(file, size)}
        elif form == "gzip":
            unpacked = stack.enter_context(gzip.open(file))
            yield {path.name: idx_column(cast("IO[bytes]", unpacked), None)}
        else:
            archive = stack.enter_context(zipfile.ZipFile(file))
            yield {
                member.filename.removesuffix(".npy"): npy_column(
                    stack.enter_context(open_member(archive, member)), member.file_size
                )
                for member in archive.infolist()
                if member.filename.endswith(".npy")
            }


def open_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> IO[bytes]:
    """A member of a .npz; ValueError for a compression that may unpack to gigabytes at once."""
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f"{member.filename} is not compressed as numpy.savez_compressed does")
    return archive.open(member)


def npy_column(stream: IO[bytes], size: int) -> Column:
    """The array of an open .npy of ``size`` bytes: nothing of it is read yet, and nothing is ever unpickled.

    Rows of any dtype but object may be read. Raises one of `DAMAGE` when the header, and later the rows, are
    damaged.
    """
    version = np.lib.format.read_magic(stream)
    known = {
        (1, 0): (2, np.lib.format.read_array_header_1_0),
        (2, 0): (4, np.lib.format.read_array_header_2_0),
    }
    if version not in known:
        raise ValueError(f".npy format {version}")
    width, read_header = known[version]
    length = exactly(stream, width)
    if int.from_bytes(length, "little") > _HEADER:
        raise ValueError(f"a header of {int.from_bytes(length, 'little')} bytes")
    header = length + exactly(stream, int.from_bytes(length, "little"))
    shape, fortran_order, dtype = read_header(io.BytesIO(header))
    start = len(np.lib.format.magic(*version)) + len(header)
    if fortran_order and len(shape) > 1:
        return _fortran_column(stream, start, size, shape, dtype)

    def read(rows: int) -> Array:
        _check_held(size - start, shape, dtype)
        array = np.empty((rows, *shape[1:]), dtype)
        fill(stream, array)
        return array

    return Column(shape, dtype, read)


def _fortran_column(
    stream: IO[bytes], start: int, size: int, shape: tuple[int, ...], dtype: np.dtype[Any]
) -> Column:
    """An array whose rows lie scattered, one value of each beside the other: gathered in as few passes as fit."""
    values = math.prod(shape[1:])
    at_once = max(1, min(shape[0], BLOCK // max(1, values * dtype.itemsize)))
    position = 0

    def read(rows: int) -> Array:
        nonlocal position
        _check_held(size - start, shape, dtype)
        gathered = np.empty((values, rows), dtype)
        for value in range(values):
            stream.seek(start + (value * shape[0] + position) * dtype.itemsize)
            fill(stream, gathered[value])
        position += rows
        return np.ascontiguousarray(gathered.reshape(*reversed(shape[1:]), rows).T)

    return Column(shape, dtype, read, at_once)


def _check_held(held: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    if held < math.prod(shape) * dtype.itemsize:
        raise EOFError("an array ends early")


def fill(stream: IO[bytes], array: Array) -> None:
    """Read the bytes of an array, which lie in a row."""
    rest = array.view(np.uint8).reshape(-1).data
    while rest:
        taken = stream.readinto(rest[:_PIECE])  # type: ignore[attr-defined]
        if not taken:
            raise EOFError("an array ends early")
        rest = rest[taken:]


def exactly(stream: IO[bytes], count: int) -> bytes:
    read = stream.read(count)
    if len(read) < count:
        raise EOFError("the header ends early")
    return read


def idx_column(stream: IO[bytes], size: int | None) -> Column:
    """The array of an open IDX file of bytes, the format of MNIST (LeCun et al. 1998).

    ``size`` is that of the file, None where it is not known before it is unpacked. Raises one of `DAMAGE` for another
    type of values, and when the header, and later the rows, end early or go on.
    """
    start = exactly(stream, 4)
    kind, dimensions = IDX_TYPES.get(start[2:3]), start[3]
    if start[:2] != b"\0\0" or kind is None or not dimensions:
        raise ValueError(
            f"no IDX file: it begins with {start.hex(' ')}, the training images of MNIST with 00 00 08 03"
        )
    if kind != "bytes":
        raise ValueError(f"an IDX file of {kind}, not of bytes")
    shape = struct.unpack(f">{dimensions}I", exactly(stream, 4 * dimensions))
    left = shape[0]

    def read(rows: int) -> Array:
        nonlocal left
        if size is not None:
            _check_held(size - 4 - 4 * dimensions, shape, np.dtype(np.uint8))
        array = np.empty((rows, *shape[1:]), np.uint8)
        fill(stream, array)
        left -= rows
        # a gzip is checked when it is read to its end
        if not left and stream.read(1):
            raise ValueError("an array goes on after its end")
        return array

    return Column(shape, np.dtype(np.uint8), read)


def check_hdf5(dataset: Any) -> None:
    """Raise ValueError for values in other files, and for a chunk that unpacks to more than it says."""
    if dataset.external or dataset.is_virtual:
        raise ValueError(f"{dataset.name} has its values in other files: copy them into one")
    if not dataset.chunks or dataset.id.get_storage_size() * _DEFLATED <= limit.most_of_an_image():
        return
    pipeline = dataset.id.get_create_plist()
    filters = [pipeline.get_filter(i)[0] for i in range(pipeline.get_nfilters())]
    if _DEFLATE not in filters:
        return
    if filters.count(_DEFLATE) > 1:
        raise ValueError(f"{dataset.name} is compressed twice")
    large = []

    def note(chunk: Any) -> None:
        if chunk.size * _DEFLATED > limit.most_of_an_image():
            large.append(chunk.chunk_offset)

    dataset.id.chunk_iter(note)
    size = math.prod(dataset.chunks) * dataset.dtype.itemsize
    for offset in large:
        skipped_filters, stored = dataset.id.read_direct_chunk(offset)
        if not skipped_filters and _unpacks_to_more(stored, size + _PIECE):
            raise ValueError(f"a chunk of {dataset.name} unpacks to more than its {size} bytes")


def hdf5_column(dataset: Any) -> Column:
    """A dataset of an open HDF5 file, written in the order of its rows, or by MATLAB in that of its columns.

    MATLAB's ``A(row, column, image)`` is here ``[image, row, column]``, and its logical values are bool.
    """
    position = 0
    attributes = dataset.attrs
    matlab = "MATLAB_class" in attributes and dataset.ndim in (3, 4)
    logical = matlab and attributes["MATLAB_class"] in (b"logical", "logical")
    shape, dtype = dataset.shape, np.dtype(bool) if logical else dataset.dtype
    if matlab:
        shape = (*shape[:-2], shape[-1], shape[-2])

    def read(rows: int) -> Array:
        nonlocal position
        if not position:
            check_hdf5(dataset)
        position += rows
        array = np.asarray(dataset[position - rows : position]).astype(dtype, copy=False)
        return array.swapaxes(-1, -2) if matlab else array

    chunks = dataset.chunks or (1,)
    chunk_bytes = math.prod(dataset.chunks) * dtype.itemsize if dataset.chunks else 0
    return Column(shape, dtype, read, chunks[0], chunk_bytes)


def _unpacks_to_more(stored: bytes, size: int) -> bool:
    unpacked, inflate = 0, zlib.decompressobj()
    while not inflate.eof and unpacked <= size:
        piece = inflate.decompress(stored, _PIECE)
        stored = inflate.unconsumed_tail
        if not piece and not stored:
            break
        unpacked += len(piece)
    return unpacked > size
