"""The bit-packed cache on disk: written whole or not at all, and checked before every use."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import shutil
import struct
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy.typing as npt
import torch

from pyvae.base import files
from pyvae.data.limit import in_words
from pyvae.data.origin import Origin
from pyvae.data.paths import expanded
from pyvae.data.place import Place, checksum, file_of, map_bytes
from pyvae.errors import DataError, printable

Array = npt.NDArray[Any]
T = TypeVar("T")

VERSION = 1
HEADER_BYTES = 4096  # one page, so that the mapped rows are aligned

_MAGIC = b"PYVAEBIT"
_PREFIX = struct.Struct("<8sII")  # magic, version, crc32 of the description that fills the rest of the header
# The last bytes of the header count as spaces in its checksum: the state of the origin, which `note_state` writes there
_STATE_AT = HEADER_BYTES - 64
OTHER_FILES = "was made from something else, or from files that have changed since"

_OLD_LEFTOVER = re.compile(r"\..+\.\d+-[0-9a-f]{8}\.tmp")
_DAY = 86_400.0

logger = logging.getLogger("pyvae")


class Cached(NamedTuple):
    """Rows of a cache file, uint8 ``[rows, row_bytes]``, the numbers noted with them, and where they are."""

    bits: torch.Tensor
    notes: dict[str, int]
    place: Place

    @property
    def crc32(self) -> int:
        """Of the rows."""
        return self.place.crc32


class UnusableError(Exception):
    """The reason why a cache file must be made anew."""


def directory(cache_dir: str | os.PathLike[str] | None = None) -> Path:
    """The argument, else ``$PYVAE_CACHE``, else ``$XDG_CACHE_HOME/pyvae``, else ``~/.cache/pyvae``.

    Raises `DataError` when it is in the home of nobody.
    """
    chosen = cache_dir or os.environ.get("PYVAE_CACHE")
    if chosen:
        return expanded(chosen)
    return expanded(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "pyvae"


def load_or_build(
    path: Path,
    source: str,
    shape: tuple[int, int],
    build: Callable[[Callable[[Array], None]], dict[str, int]],
    origin: Origin | None = None,
) -> Cached:
    """Map the cache file ``path``, making it first when it is absent, damaged, or not made from ``source``.

    ``build(append)`` hands over the uint8 rows in order, ``append([n, row_bytes])`` at a time, and returns
    numbers to be kept beside them. ``origin`` are the files that they are made from, if any: rows of other files are
    made anew. Any number of processes may do this at once: each writes a file of its own and renames it. Raises
    `DataError` when the cache cannot be written or read.
    """
    return open_or_write(
        path,
        lambda: _open(path, source, shape, origin),
        lambda: _write(path, source, shape, build, origin),
    )


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
        logger.warning("rebuilding the cache file %s: it %s", printable(path), fault)
    write()
    try:
        return open_()
    except (FileNotFoundError, UnusableError) as fault:
        raise DataError(
            f"{path}: the cache file just written {fault}; "
            "check that disk, or set PYVAE_CACHE to another directory"
        ) from fault


def check_origin(path: Path, origin: Origin, content: str, state: bytes, state_at: int) -> None:
    """Raise `UnusableError` unless the files are those of a cache file, which notes their checksum and last state.

    Where the state is another one, they are read; if their content is the same, the new state is noted.
    """
    if state == origin.state.encode():
        return
    if content != origin.content:
        raise UnusableError(OTHER_FILES)
    if origin.is_settled:
        # what cannot be noted is checked again
        with contextlib.suppress(OSError), open(path, "r+b") as file:
            file.seek(state_at)
            file.write(origin.state.encode())


def state_to_note(origin: Origin) -> bytes:
    """What a cache file says of the state that its files were packed in: nothing, when a change may not show in it."""
    return origin.state.encode() if origin.is_settled else b" " * len(origin.state)


def _open(path: Path, source: str, shape: tuple[int, int], origin: Origin | None) -> Cached:
    try:
        with files.open_regular(path) as file:
            header = file.read(HEADER_BYTES)
            description = _description(header, source, shape)
            size = os.fstat(file.fileno()).st_size
            if size != HEADER_BYTES + shape[0] * shape[1]:
                raise UnusableError(f"has {size} bytes instead of {HEADER_BYTES + shape[0] * shape[1]}")
            rows = map_bytes(file, HEADER_BYTES, shape)
            place = Place(path, HEADER_BYTES, shape, description["crc32"], file_of(file))
    except FileNotFoundError:
        raise
    except OSError as error:
        raise refusal("read", path, error) from error
    if origin:
        check_origin(path, origin, description.get("content", ""), header[_STATE_AT:], _STATE_AT)
    if checksum(rows) != place.crc32:
        raise UnusableError("fails its checksum")
    return Cached(torch.from_numpy(rows), description["notes"], place)


def _description(header: bytes, source: str, shape: tuple[int, int]) -> dict[str, Any]:
    if len(header) < HEADER_BYTES:
        raise UnusableError(f"has {len(header)} bytes, less than its header")
    magic, version, crc32 = _PREFIX.unpack_from(header)
    if magic != _MAGIC:
        raise UnusableError("is not a cache file of pyvae")
    if version != VERSION:
        raise UnusableError(f"has format version {version} instead of {VERSION}")
    text = header[_PREFIX.size : _STATE_AT]
    if zlib.crc32(text.ljust(HEADER_BYTES - _PREFIX.size)) != crc32:
        raise UnusableError("has a damaged header")
    description: dict[str, Any] = json.loads(text)
    if description["source"] != source or description["shape"] != list(shape):
        raise UnusableError(f"was made from {description['source']}, not {source}")
    return description


def _write(
    path: Path,
    source: str,
    shape: tuple[int, int],
    build: Callable[[Callable[[Array], None]], dict[str, int]],
    origin: Origin | None,
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
        if origin:
            description["content"] = origin.content
        text = json.dumps(description).encode().ljust(HEADER_BYTES - _PREFIX.size)
        file.seek(0)
        file.write(_PREFIX.pack(_MAGIC, VERSION, zlib.crc32(text)) + text)
        if origin:
            file.seek(_STATE_AT)
            file.write(state_to_note(origin))


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """:func:`pyvae.base.files.replacing` in the cache, whose directory is made where there is none.

    What killed processes left there is removed first, older versions' after a day. Any `OSError` in the block counts
    as one of that disk: it becomes a `DataError`.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        files.remove_leftovers(path.parent)
        _remove_old_leftovers(path.parent)
        with files.replacing(path) as temporary:
            yield temporary
    except OSError as error:
        raise refusal("write", path, error) from error


def _remove_old_leftovers(directory: Path) -> None:
    """What versions before `pyvae.base.files` left, whose names do not tell of which machine their process was."""
    for path in directory.iterdir():
        if _OLD_LEFTOVER.fullmatch(path.name):
            with contextlib.suppress(OSError):
                if time.time() - path.lstat().st_mtime > _DAY:
                    path.unlink()


def check_room(path: Path, size: int) -> None:
    """Raise `DataError` when the disk of the directory of a cache file has not as many bytes left."""
    try:
        free = shutil.disk_usage(path.parent).free
    except OSError as error:
        raise refusal("write", path, error) from error
    if size > free:
        raise DataError(
            f"{path.parent}: {in_words(size)} are needed there for the cache file {path.name}, and "
            f"{in_words(free)} are free; make room, or set PYVAE_CACHE to another directory"
        )


def refusal(verb: str, path: Path, error: OSError) -> DataError:
    """The error of a cache file that the system does not let one "read" or "write"."""
    return DataError(
        f"{path.parent}: cannot {verb} the cache file {path.name} there ({error.strerror or error}); "
        "make room and give access, or set PYVAE_CACHE to another directory"
    )
