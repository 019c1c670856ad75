"""Pictures in the files of a folder."""

from __future__ import annotations

import errno
import os
import stat
import threading
from collections.abc import Generator, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy.typing as npt
from PIL import Image, ImageFile, UnidentifiedImageError
from tqdm import tqdm

from pyvae.base.files import open_regular
from pyvae.base.workers import Workers
from pyvae.data import limit
from pyvae.data.origin import Origin
from pyvae.data.picture import CropError, Fit, decode, fit, is_grey
from pyvae.errors import DataError, reason

Array = npt.NDArray[Any]

FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
"""What is opened, as far as this Pillow has it; not what other programs decode (EPS), nor what has no signature."""

_AHEAD = 512  # files decoded before their turn
_LARGE = 1 << 26  # bytes of a picture, beyond which one is decoded at a time
_ABSENT = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EACCES, errno.EPERM, errno.EINVAL)
"""Of a file that cannot be opened whenever it is tried: no such target of a link, no permission, no regular file."""


UNREADABLE = "cannot be read"
"""How the reason begins where a file is not corrupt, but not to be had."""


class Broken(NamedTuple):
    """A file that could not be opened or decoded."""

    name: str
    reason: str


class Folder:
    """The image files of a folder and of the folders in it, in the order of their relative paths.

    An image file is a regular one with a suffix of `FORMATS`; others, and those whose name begins with a dot, are
    passed over. Links are followed, each folder once; those that lead nowhere count as files that cannot be read.

    Raises `DataError` when there is none, and when a folder cannot be read.
    """

    def __init__(self, path: Path, progress: bool = True) -> None:
        self.path = path
        try:
            found = sorted(_walk(path))
        except OSError as error:
            raise DataError(f"{error.filename}: cannot be read ({error.strerror}); check it") from error
        if not found:
            raise DataError(
                f"{path}: no image file in this folder or the folders in it ({' '.join(sorted(_suffixes()))}); "
                "check the path"
            )
        self._formats = _formats()
        self.names = [name for name, _ in found]
        self.origin = Origin(path, found, progress)

    def __len__(self) -> int:
        return len(self.names)

    def channels(self, progress: bool = True) -> int:
        """1 when the headers of all files say that they are grey, else 3."""
        bar = tqdm(self.names, desc="looking for colour", unit="img", leave=False, disable=not progress)
        with bar, _our_own_limit():
            return 1 if all(self._is_grey(name) for name in bar) else 3

    def read(self, how: Fit) -> Generator[Array | Broken, None, None]:
        """uint8 ``[C, size, size]`` of each file in order, decoded by several threads.

        Raises `DataError` for a picture that is smaller than the crop, or larger than `pyvae.data.limit` lets one
        read, and for a disk that does not give what it holds.
        """
        with _our_own_limit(), Workers(_threads(), "pyvae-read") as pool:
            for start in range(0, len(self), _AHEAD):
                yield from pool.map(partial(self._read, how=how), self.names[start : start + _AHEAD])

    def _read(self, name: str, how: Fit) -> Array | Broken:
        path = self.path / name
        try:
            with self._opened(name) as picture:
                size = picture.width * picture.height * len(picture.getbands())
                limit.check_image(path, f"{picture.width} x {picture.height} pixels,", size)
                with _ONE_LARGE if size > _LARGE else nullcontext():
                    return fit(decode(picture), how)
        except CropError as error:
            raise DataError(f"{path}: {error}; give a smaller crop, or none") from error
        except (DataError, MemoryError):
            raise
        # the decoders of many formats raise anything on bytes that are none of theirs
        except Exception as error:
            if isinstance(error, OSError) and error.errno is not None:
                unreadable = f"{UNREADABLE} ({error.strerror})"
                if error.errno not in _ABSENT:
                    raise DataError(f"{path}: {unreadable}; check the file") from error
                return Broken(name, unreadable)
            return Broken(name, _reason(path, error))

    def _is_grey(self, name: str) -> bool:
        try:
            with self._opened(name) as picture:
                return is_grey(picture)
        except Exception:  # told when its turn comes
            return True

    @contextmanager
    def _opened(self, name: str) -> Iterator[ImageFile.ImageFile]:
        with (
            open_regular(self.path / name) as file,
            Image.open(file, formats=self._formats) as picture,
        ):
            yield picture


@contextmanager
def _our_own_limit() -> Iterator[None]:
    """Pillow has a limit for all of the process, which no option raises: that of `pyvae.data.limit` takes its place."""
    with _PILLOW.lock:
        if not _PILLOW.readers:
            _PILLOW.limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        _PILLOW.readers += 1
    try:
        yield
    finally:
        with _PILLOW.lock:
            _PILLOW.readers -= 1
            if not _PILLOW.readers:
                Image.MAX_IMAGE_PIXELS = _PILLOW.limit


class _Pillow:
    """Its own limit, while any thread reads here."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.readers = 0
        self.limit = Image.MAX_IMAGE_PIXELS


_PILLOW = _Pillow()
_ONE_LARGE = threading.Lock()


def _walk(folder: Path) -> Iterator[tuple[str, os.stat_result | None]]:
    """Relative path and status of each image file; None of a link that leads nowhere, or where one may not look."""
    suffixes, seen = _suffixes(), set()
    for at, folders, files in os.walk(folder, onerror=_raise, followlinks=True):
        status = os.stat(at)
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        within = os.path.relpath(at, folder)
        prefix = "" if within == "." else f"{within}/"
        for name in files:
            if name.startswith(".") or os.path.splitext(name)[1].lower() not in suffixes:
                continue
            try:
                status = os.stat(f"{at}/{name}")
            except OSError as error:
                if error.errno not in _ABSENT:
                    raise
                yield prefix + name, None
                continue
            if stat.S_ISREG(status.st_mode):
                yield prefix + name, status


def _raise(error: OSError) -> None:
    raise error


def _formats() -> list[str]:
    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]


def _suffixes() -> set[str]:
    formats = _formats()
    return {suffix for suffix, name in Image.registered_extensions().items() if name in formats}


def _reason(path: Path, error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "of no known format" if path.stat().st_size else "the file is empty"
    return reason(error)


def _threads() -> int:
    return min(16, len(os.sched_getaffinity(0)))
