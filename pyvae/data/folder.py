"""Pictures in the files of a folder."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy.typing as npt
from PIL import Image, UnidentifiedImageError
from tqdm import tqdm

from pyvae.data.picture import CropError, Fit, decode, fit, is_grey
from pyvae.errors import DataError

Array = npt.NDArray[Any]

FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
"""What is opened, as far as this Pillow has it; not what other programs decode (EPS), nor what has no signature."""

_AHEAD = 512  # files decoded before their turn


class Broken(NamedTuple):
    """A file that could not be decoded."""

    name: str
    reason: str


class Folder:
    """The image files of a folder and of the folders in it, in the order of their relative paths.

    An image file is one with a suffix of `FORMATS`; others, and those whose name begins with a dot, are
    passed over. Links are followed, each folder once.

    Raises `DataError` when there is none, and when a folder cannot be read.
    """

    def __init__(self, path: Path) -> None:
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
        self.names = [name for name, _, _ in found]
        listing = "\0".join(f"{name}\0{size}\0{changed}" for name, size, changed in found)
        self.state = hashlib.sha256(os.fsencode(listing)).hexdigest()
        """Another one after any file was added, removed, renamed or written to."""

    def __len__(self) -> int:
        return len(self.names)

    def channels(self, progress: bool = True) -> int:
        """1 when the headers of all files say that they are grey, else 3."""
        with tqdm(
            self.names, desc="looking for colour", unit="img", leave=False, disable=not progress
        ) as bar:
            return 1 if all(self._is_grey(name) for name in bar) else 3

    def read(self, how: Fit) -> Generator[Array | Broken, None, None]:
        """uint8 ``[C, size, size]`` of each file in order, decoded by several threads.

        Raises `DataError` for a file that the system does not let one read, or that is smaller than the crop.
        """
        with ThreadPoolExecutor(_threads()) as pool:
            for start in range(0, len(self), _AHEAD):
                yield from pool.map(partial(self._read, how=how), self.names[start : start + _AHEAD])

    def _read(self, name: str, how: Fit) -> Array | Broken:
        path = self.path / name
        try:
            with Image.open(path, formats=self._formats) as picture:
                return fit(decode(picture), how)
        except CropError as error:
            raise DataError(f"{path}: {error}; give a smaller crop, or none") from error
        except MemoryError:
            raise
        # the decoders of many formats raise anything on bytes that are none of theirs
        except Exception as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise DataError(f"{path}: cannot be read ({error.strerror}); check the file") from error
            return Broken(name, _reason(path, error))

    def _is_grey(self, name: str) -> bool:
        try:
            with Image.open(self.path / name, formats=self._formats) as picture:
                return is_grey(picture)
        except Exception:  # told when its turn comes
            return True


def _walk(folder: Path) -> Iterator[tuple[str, int, int]]:
    """Relative path, size and time of change of each image file."""
    suffixes, seen = _suffixes(), set()
    for at, folders, files in os.walk(folder, onerror=_raise, followlinks=True):
        status = os.stat(at)
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        within = os.path.relpath(at, folder)
        for name in files:
            if name.startswith(".") or os.path.splitext(name)[1].lower() not in suffixes:
                continue
            status = os.stat(os.path.join(at, name))
            if stat.S_ISREG(status.st_mode):
                yield os.path.normpath(os.path.join(within, name)), status.st_size, status.st_mtime_ns


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
    return (str(error) or type(error).__name__).splitlines()[0]


def _threads() -> int:
    return min(16, len(os.sched_getaffinity(0)))
