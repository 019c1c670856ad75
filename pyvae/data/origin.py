"""What a cache file was made from: files whose states are compared first, and their content where a state differs.

A copy can keep the size and the time of the file in whose place it comes (``cp -p``, ``rsync -t``, ``tar``), but not
the time of its last change and its inode. Those differ as well after ``chmod`` or a move, which change no pixel:
then the content decides.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

from tqdm import tqdm

from pyvae.base.files import open_regular
from pyvae.base.workers import Workers
from pyvae.errors import DataError, printable

# clocks of file systems tick up to 2 s apart: of what was changed this lately, a second change may show no other time
_TICK = 2e9
_PIECE = 1 << 20
_AHEAD = 4096


class Origin:
    """Files by their names in ``folder``, each with its status, or with none where there is no file at its name."""

    def __init__(
        self, folder: Path, found: Sequence[tuple[str, os.stat_result | None]], progress: bool = True
    ) -> None:
        self._folder = folder
        self._names = [name for name, _ in found]
        self._progress = progress
        listing = "\0".join(
            f"{name}\0{s.st_size} {s.st_mtime_ns} {s.st_ctime_ns} {s.st_ino}" if s else f"{name}\0-"
            for name, s in found
        )
        self.state = hashlib.sha256(os.fsencode(listing)).hexdigest()
        """Another one after any file was added, removed, renamed, replaced or written to."""
        newest = max((s.st_ctime_ns for _, s in found if s), default=0)
        self.is_settled = newest < time.time_ns() - _TICK
        """Whether a change from now on would show in the state."""

    @classmethod
    def of(cls, path: Path, progress: bool = True) -> Origin:
        """Of one file; `DataError` when it cannot be found."""
        try:
            return cls(path.parent, [(path.name, path.stat())], progress)
        except OSError as error:
            raise DataError(f"{path}: cannot be opened ({error.strerror}); check the path") from error

    @classmethod
    def of_files(cls, folder: Path, names: Sequence[str], progress: bool = True) -> Origin:
        """Of files in a folder; `DataError` when one cannot be found."""
        try:
            return cls(folder, [(name, (folder / name).stat()) for name in names], progress)
        except OSError as error:
            raise DataError(f"{error.filename}: cannot be opened ({error.strerror}); check it") from error

    @cached_property
    def content(self) -> str:
        """A checksum of the names and bytes of all files, each of which is read."""
        total = hashlib.sha256()
        bar = tqdm(
            total=len(self._names),
            desc=f"checking {printable(self._folder.name)}",
            unit="file",
            leave=False,
            delay=1,
            disable=not self._progress or len(self._names) == 1,
        )
        with bar, Workers(min(16, len(os.sched_getaffinity(0))), "pyvae-check") as pool:
            for start in range(0, len(self._names), _AHEAD):
                names = self._names[start : start + _AHEAD]
                for name, digest in zip(names, pool.map(self._digest, names), strict=True):
                    total.update(os.fsencode(f"{name}\0{digest}\0"))
                    bar.update()
        return total.hexdigest()

    def _digest(self, name: str) -> str:
        digest = hashlib.sha256()
        try:
            with open_regular(self._folder / name) as file:
                while piece := file.read(_PIECE):
                    digest.update(piece)
        # told by whoever reads it
        except OSError as error:
            return str(error.errno)
        return digest.hexdigest()
