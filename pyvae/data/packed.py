"""Packed images on disk: ``images``, uint8 ``[N, C, H, W]``, in an HDF5 file that is mapped, not read."""

from __future__ import annotations

import json
import math
import os
import shutil
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from pyvae.base.files import open_regular
from pyvae.data import cache
from pyvae.data.origin import Origin
from pyvae.data.place import Place, checksum, file_of, map_bytes
from pyvae.errors import reason

Array = npt.NDArray[Any]

_PIECE = 1 << 22


class Packed(NamedTuple):
    """What a cache file holds, and where."""

    pixels: torch.Tensor
    """uint8 ``[N, C, H, W]``, mapped from the file, copied on write."""
    skipped: dict[str, str]
    """What was left out, and why."""
    place: Place


class _Header(NamedTuple):
    offset: int
    shape: tuple[int, ...]
    crc32: int
    skipped: dict[str, str]
    content: str
    state: bytes
    state_at: int


def load_or_pack(
    path: Path,
    source: str,
    origin: Origin,
    pack: Callable[[Callable[[Array], None]], dict[str, str]],
) -> Packed:
    """Map the cache file ``path``, making it first when it is absent, damaged, or not made from these.

    ``source`` says how it is made, ``origin`` from which files. ``pack(append)`` hands over the images in order,
    ``append(uint8 [C, H, W])`` at a time, and returns what it left out, with the reasons. The file takes its place
    when it is whole: what stops before that, be it a kill, leaves nothing behind. Raises `DataError` when the cache
    cannot be written or read.
    """
    return cache.open_or_write(
        path, lambda: _open(path, source, origin), lambda: _write(path, source, origin, pack)
    )


def _open(path: Path, source: str, origin: Origin) -> Packed:
    try:
        with open_regular(path) as file:
            header = _read_header(file, source)
            pixels = map_bytes(file, header.offset, header.shape)
            place = Place(path, header.offset, header.shape, header.crc32, file_of(file))
    except FileNotFoundError:
        raise
    except OSError as error:
        raise cache.refusal("read", path, error) from error
    cache.check_origin(path, origin, header.content, header.state, header.state_at)
    if checksum(pixels) != header.crc32:
        raise cache.UnusableError("fails its checksum")
    return Packed(torch.from_numpy(pixels), header.skipped, place)


def _read_header(file: IO[bytes], source: str) -> _Header:
    import h5py

    try:
        with h5py.File(file, "r") as hdf5:
            if hdf5.attrs["source"] != source:
                raise cache.UnusableError("was made by another version of pyvae, or from something else")
            images, state = hdf5["images"], hdf5["state"]
            offset, size = images.id.get_offset(), images.id.get_storage_size()
            skipped = json.loads(bytes(hdf5["skipped"][()]))
            if (
                images.ndim != 4
                or size != math.prod(images.shape)
                or offset + size > os.fstat(file.fileno()).st_size
            ):
                raise cache.UnusableError("has pixels missing")
            return _Header(
                offset,
                images.shape,
                int(hdf5.attrs["crc32"]),
                skipped,
                hdf5.attrs["content"],
                bytes(state[()]),
                state.id.get_offset(),
            )
    # what HDF5 makes of damaged bytes is anything but one kind of error
    except (OSError, KeyError, ValueError, TypeError, RuntimeError, AttributeError) as error:
        raise cache.UnusableError(f"is damaged ({reason(error)})") from error


def _write(
    path: Path,
    source: str,
    origin: Origin,
    pack: Callable[[Callable[[Array], None]], dict[str, str]],
) -> None:
    # How many images there are is known at the end alone, when some are left out: until then they are in a
    # file without a name.
    with cache.replacing(path) as temporary, tempfile.TemporaryFile(dir=path.parent) as spool:
        count, shape, crc32 = 0, (), 0

        def append(image: Array) -> None:
            nonlocal count, shape, crc32
            spool.write(image.data)
            crc32 = zlib.crc32(image.data, crc32)
            count, shape = count + 1, image.shape

        skipped = pack(append)
        offset = _allocate(temporary, (count, *shape), source, origin, crc32, skipped)
        spool.seek(0)
        # not through HDF5, whose files cannot be closed when the disk is full
        with open(temporary, "r+b") as file:
            file.seek(offset)
            shutil.copyfileobj(spool, file, _PIECE)


def _allocate(
    path: Path, shape: tuple[int, ...], source: str, origin: Origin, crc32: int, skipped: dict[str, str]
) -> int:
    """Make the file but for its pixels; returns where they belong in it."""
    import h5py

    try:
        with h5py.File(path, "x") as hdf5:
            hdf5.attrs["source"] = source
            hdf5.attrs["content"] = origin.content
            hdf5.attrs["crc32"] = crc32
            hdf5["state"] = np.frombuffer(cache.state_to_note(origin), np.uint8)
            hdf5["skipped"] = np.frombuffer(json.dumps(skipped).encode(), np.uint8)
            how = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
            how.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
            how.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
            space = h5py.h5s.create_simple(shape)
            images = h5py.h5d.create(hdf5.id, b"images", h5py.h5t.STD_U8LE, space, how)
            return int(images.get_offset())
    # what it cannot write when it closes a file, HDF5 says so
    except RuntimeError as error:
        raise OSError(reason(error)) from error
