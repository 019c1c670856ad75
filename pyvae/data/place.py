"""Where in a cache file the bytes of a data set lie, by which another process maps them instead of copying them."""

from __future__ import annotations

import os
import zlib
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from pyvae.base.files import open_regular
from pyvae.errors import DataError

_CHECK_BYTES = 1 << 24


class Place(NamedTuple):
    """An array of uint8 in a file."""

    path: Path
    offset: int
    shape: tuple[int, ...]
    crc32: int
    """Of its bytes."""
    file: tuple[int, int, int]
    """Device, inode and size of the file in which they were checked."""

    def map(self) -> torch.Tensor:
        """The array, mapped from the file and copied on write.

        Raises `DataError` when the file is not there any more, or another one with other bytes.
        """
        try:
            with open_regular(self.path) as file:
                mapped = map_bytes(file, self.offset, self.shape)
                if file_of(file) == self.file or checksum(mapped) == self.crc32:
                    return torch.from_numpy(mapped)
        # numpy raises ValueError for a file that is too short
        except (OSError, ValueError) as error:
            raise DataError(f"{self.path}: cannot be mapped again ({error}); load the data again") from error
        raise DataError(f"{self.path}: holds other data now; load the data again")


def map_bytes(file: IO[bytes], offset: int, shape: tuple[int, ...]) -> npt.NDArray[np.uint8]:
    """uint8 of a shape in a file: copy on write, since torch takes only arrays it could write to."""
    return np.memmap(file, np.uint8, mode="c", offset=offset, shape=shape)


def file_of(file: IO[bytes]) -> tuple[int, int, int]:
    """Device, inode and size."""
    status = os.fstat(file.fileno())
    return status.st_dev, status.st_ino, status.st_size


def checksum(rows: npt.NDArray[Any]) -> int:
    """The crc32 of an array's bytes, which are read piece by piece."""
    step = max(1, _CHECK_BYTES // max(1, rows[:1].nbytes))
    crc32 = 0
    for start in range(0, len(rows), step):
        crc32 = zlib.crc32(rows[start : start + step].data, crc32)
    return crc32
