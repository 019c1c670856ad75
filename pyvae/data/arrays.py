"""Pictures in an array of a data file."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from pyvae.data.columns import BLOCK, DAMAGE, Column, check_size, damaged, open_columns
from pyvae.data.dataset import file_format
from pyvae.data.origin import Origin
from pyvae.data.picture import CHANNELS, CropError, Fit, fit
from pyvae.errors import DataError

Array = npt.NDArray[Any]

NAMES = ("images", "imgs")
DSPRITES = ({"imgs", "latents_classes"}, {"imgs", "latents/classes"})
"""The arrays by which files made as dSprites is are known, in .npz and in HDF5."""

_ROWS = 256
_ROWS_BYTES = 1 << 26
_AT_ONCE = 1 << 22  # bytes or values that are converted together
_LISTED = 8
_WANTED = "[N, H, W], [N, H, W, C] or [N, C, H, W] with 1 or 3 channels"


class ImageArray:
    """The images of a .npz, .npy, HDF5 or IDX file: the array of this name.

    Without a name it is the one called "images" or "imgs", else the only one of images. Its shape is ``[N, H, W]``,
    ``[N, H, W, C]`` or ``[N, C, H, W]`` with 1 or 3 channels. What is white, the dtype says: 255 for uint8, True for
    bool, 1 for floats; in a file that has the arrays of dSprites, 1 as well for uint8 when nothing is above it. Any
    other dtype is refused, and floats outside of [0, 1]. Nothing is ever unpickled. It is read in pieces, and may be
    as large as `pyvae.data.limit` says.

    Raises `DataError` when the file is damaged or holds no such array.
    """

    def __init__(self, path: Path, name: str | None = None) -> None:
        self.path = path
        self._name = name
        self.origin = Origin.of(path)
        self._form = file_format(path)
        with self._opened() as column:
            self._shape = column.shape
        self._channel_axis = _channel_axis(self._shape)

    def __len__(self) -> int:
        return self._shape[0]

    def channels(self, progress: bool = True) -> int:
        """1 or 3, as its shape says."""
        return 1 if self._channel_axis is None else self._shape[self._channel_axis]

    def read(self, how: Fit) -> Generator[Array, None, None]:
        """uint8 ``[C, size, size]`` of each image in order.

        Raises `DataError` for a damaged file, values that are no image's, and images smaller than the crop.
        """
        white = 1 if self._is_sprites and self._brightest() <= 1 else 255
        for rows, start in self._pieces():
            rows = self._bytes(rows, start, white)
            if self._channel_axis is not None:
                rows = np.moveaxis(rows, self._channel_axis, -1)
            if rows.shape[3:] == (1,):
                rows = rows[..., 0]
            for row in rows:
                yield self._fit(row, how)

    def _pieces(self) -> Iterator[tuple[Array, int]]:
        """Rows as they are, and the number of the first, a few megabytes at a time."""
        with self._opened() as column:
            row = max(1, column.row_bytes)
            part = max(1, _AT_ONCE // row)
            step = min(_ROWS, max(1, _ROWS_BYTES // row))
            if column.chunk > 1:
                step = min(-(-step // column.chunk) * column.chunk, max(1, BLOCK // row))
            for start in range(0, len(self), step):
                rows = column.read(min(step, len(self) - start))
                for first in range(0, len(rows), part):
                    yield rows[first : first + part], start + first

    def _brightest(self) -> int:
        return max(int(rows.max()) for rows, _ in self._pieces())

    def _fit(self, row: Array, how: Fit) -> Array:
        try:
            return fit(Image.fromarray(np.ascontiguousarray(row)), how)
        except CropError as error:
            raise DataError(f"{self.path}: images of {error}; give a smaller crop, or none") from error

    def _bytes(self, rows: Array, start: int, white: int) -> Array:
        if rows.dtype == np.uint8:
            return rows if white == 255 else rows * np.uint8(255)
        if rows.dtype.kind == "b":
            return rows.astype(np.uint8) * 255
        pixels = np.empty(rows.shape, np.uint8)
        values, whole = np.ascontiguousarray(rows).reshape(-1), pixels.reshape(-1)
        for at in range(0, len(values), _AT_ONCE):
            piece = values[at : at + _AT_ONCE]
            wrong = ~((piece >= 0) & (piece <= 1))
            if wrong.any():
                first = int(wrong.argmax())
                raise DataError(
                    f"{self.path}: image {start + (at + first) // rows[0].size} has the value {piece[first]}, but "
                    "floats must lie in [0, 1], 1 being white; scale them, or save uint8 from 0 to 255"
                )
            whole[at : at + _AT_ONCE] = np.rint(piece.astype(np.float64) * 255)
        return pixels

    @contextlib.contextmanager
    def _opened(self) -> Iterator[Column]:
        try:
            with open_columns(self.path, self._form) as columns:
                name = self._name if self._name is not None else _likely(self.path, columns)
                column = _checked(self.path, columns, name.strip("/"))
                self._is_sprites = (
                    name == "imgs"
                    and column.dtype == np.uint8
                    and any(keys <= {*columns} for keys in DSPRITES)
                )
                yield column
        except DataError:
            raise
        except DAMAGE as error:
            raise damaged(self.path, error, "make or download it again") from error


def _likely(path: Path, columns: dict[str, Column]) -> str:
    likely = [name for name in NAMES if name in columns] or [
        name for name, column in columns.items() if _is_shape_of_images(column.shape)
    ]
    if len(likely) == 1:
        return likely[0]
    if likely:
        meant = next((name for name in likely if "train" in name), likely[0])
        raise DataError(
            f"{path}: more than one array of images in it, {_listed(columns)}; name the one that is meant, "
            f"such as {path}:{meant}"
        )
    raise DataError(
        f"{path}: no array of images in it, but {_listed(columns)}; save one called 'images', {_WANTED}"
    )


def _listed(columns: dict[str, Column]) -> str:
    held = ", ".join(f"{name} {column}" for name, column in list(columns.items())[:_LISTED])
    return (held + (f" and {len(columns) - _LISTED} more" if len(columns) > _LISTED else "")) or "nothing"


def _checked(path: Path, columns: dict[str, Column], name: str) -> Column:
    if name not in columns:
        raise DataError(
            f"{path}: no array {name!r} in it, but {_listed(columns)}; write {path}:NAME with one of their names"
        )
    column = columns[name]
    if not _is_shape_of_images(column.shape):
        raise DataError(f"{path}: {name} is {column}, not images; save {_WANTED}")
    if column.dtype != np.uint8 and column.dtype.kind not in "bf":
        raise DataError(
            f"{path}: {name} is {column}, which does not say what is white; save uint8 from 0 to 255, bool, "
            "or floats in [0, 1]"
        )
    check_size(path, name, column)
    return column


def _is_shape_of_images(shape: tuple[int, ...]) -> bool:
    if len(shape) == 3:
        # fewer are the channels of a single image
        return shape[0] > 0 and min(shape[1:]) > 4
    return len(shape) == 4 and min(shape) > 0 and (shape[1] in CHANNELS) != (shape[3] in CHANNELS)


def _channel_axis(shape: tuple[int, ...]) -> int | None:
    return None if len(shape) == 3 else 1 if shape[1] in CHANNELS else 3
