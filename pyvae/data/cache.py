"""The bit-packed cache on disk: written whole or not at all, and checked before every use."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from pyvae import files
from pyvae.errors import DataError

Array = npt.NDArray[Any]
T = TypeVar("T")

VERSION = 1
HEADER_BYTES = 4096  # one page, so that the mapped rows are aligned

_MAGIC = b"PYVAEBIT"
_PREFIX = struct.Struct("<8sII")  # magic, version, crc32 of the description that fills the rest of the header
_CHECK_BYTES = 1 << 24

logger = logging.getLogger("pyvae")


class Cached(NamedTuple):
    """Rows of a cache file, uint8 ``[rows, row_bytes]``, their crc32, and the numbers noted with them."""

    bits: torch.Tensor
    crc32: int
    notes: dict[str, int]


class UnusableError(Exception):
    """The reason why a cache file must be made anew."""


def directory(cache_dir: str | os.PathLike[str] | None = None) -> Path:
    """The argument, else ``$PYVAE_CACHE``, else ``$XDG_CACHE_HOME/pyvae``, else ``~/.cache/pyvae``."""
    chosen = cache_dir or os.environ.get("PYVAE_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pyvae"


def load_or_build(
    path: Path,
    source: str,
    shape: tuple[int, int],
    build: Callable[[Callable[[Array], None]], dict[str, int]],
) -> Cached:
    """Map the cache file ``path``, making it first when it is absent, damaged, or not made from ``source``.

    ``build(append)`` hands over the uint8 rows in order, ``append([n, row_bytes])`` at a time, and returns
    numbers to be kept beside them. Any number of processes may do this at once: each writes a file of its
    own and renames it. Raises `DataError` when the cache cannot be written or read.
    """
    return open_or_write(path, lambda: _open(path, source, shape), lambda: _write(path, source, shape, build))


def open_or_write(path: Path, open_: Callable[[], T], write: Callable[[], None]) -> T:
    """What ``open_`` makes of the cache file ``path``, which ``write`` makes anew where it cannot be used.

    ``open_`` raises `FileNotFoundError` or `UnusableError` then; when it does so for the file just written,
    that is a `DataError`.
    """
    try:
        return open_()
    except FileNotFoundError:
        pass
    except UnusableError as fault:
        logger.warning("rebuilding the cache file %s: it %s", path, fault)
    write()
    try:
        return open_()
    except (FileNotFoundError, UnusableError) as fault:
        raise DataError(
            f"{path}: the cache file just written {fault}; "
            "check that disk, or set PYVAE_CACHE to another directory"
        ) from fault


def _open(path: Path, source: str, shape: tuple[int, int]) -> Cached:
    try:
        with open(path, "rb") as file:
            description = _description(file.read(HEADER_BYTES), source, shape)
            size = os.fstat(file.fileno()).st_size
            if size != HEADER_BYTES + shape[0] * shape[1]:
                raise UnusableError(f"has {size} bytes instead of {HEADER_BYTES + shape[0] * shape[1]}")
            # Copy on write: torch takes only arrays it could write to, and the file must not change.
            rows = np.memmap(file, np.uint8, mode="c", offset=HEADER_BYTES, shape=shape)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise refusal("read", path, error) from error
    crc32 = checksum(rows)
    if crc32 != description["crc32"]:
        raise UnusableError("fails its checksum")
    return Cached(torch.from_numpy(rows), crc32, description["notes"])


def checksum(rows: Array) -> int:
    """The crc32 of an array's bytes, which are read piece by piece."""
    step = max(1, _CHECK_BYTES // max(1, rows[:1].nbytes))
    crc32 = 0
    for start in range(0, len(rows), step):
        crc32 = zlib.crc32(rows[start : start + step].data, crc32)
    return crc32


def _description(header: bytes, source: str, shape: tuple[int, int]) -> dict[str, Any]:
    if len(header) < HEADER_BYTES:
        raise UnusableError(f"has {len(header)} bytes, less than its header")
    magic, version, crc32 = _PREFIX.unpack_from(header)
    if magic != _MAGIC:
        raise UnusableError("is not a cache file of pyvae")
    if version != VERSION:
        raise UnusableError(f"has format version {version} instead of {VERSION}")
    if zlib.crc32(header[_PREFIX.size :]) != crc32:
        raise UnusableError("has a damaged header")
    description: dict[str, Any] = json.loads(header[_PREFIX.size :])
    if description["source"] != source or description["shape"] != list(shape):
        raise UnusableError(f"was made from {description['source']}, not {source}")
    return description


def _write(
    path: Path,
    source: str,
    shape: tuple[int, int],
    build: Callable[[Callable[[Array], None]], dict[str, int]],
) -> None:
    crc32 = 0
    with replacing(path) as temporary, open(temporary, "xb") as file:
        file.write(bytes(HEADER_BYTES))

        def append(rows: Array) -> None:
            nonlocal crc32
            file.write(rows.data)
            crc32 = zlib.crc32(rows.data, crc32)

        notes = build(append)
        description = {"source": source, "shape": shape, "crc32": crc32, "notes": notes}
        text = json.dumps(description).encode().ljust(HEADER_BYTES - _PREFIX.size)
        file.seek(0)
        file.write(_PREFIX.pack(_MAGIC, VERSION, zlib.crc32(text)) + text)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """:func:`pyvae.files.replacing` in the cache, whose directory is made where there is none.

    What killed processes left there is removed first. Any `OSError` in the block counts as one of that disk: it
    becomes a `DataError`.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        files.remove_leftovers(path.parent)
        with files.replacing(path) as temporary:
            yield temporary
    except OSError as error:
        raise refusal("write", path, error) from error


def refusal(verb: str, path: Path, error: OSError) -> DataError:
    """The error of a cache file that the system does not let one "read" or "write"."""
    return DataError(
        f"{path.parent}: cannot {verb} the cache file {path.name} there ({error.strerror or error}); "
        "make room and give access, or set PYVAE_CACHE to another directory"
    )
