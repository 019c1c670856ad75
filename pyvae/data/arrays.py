"""Pictures in an array of a data file."""

from __future__ import annotations

import contextlib
import gzip
import zipfile
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
import numpy.typing as npt
from PIL import Image

from pyvae.data.columns import DAMAGE, Column, damaged, hdf5_column, idx_column, npy_column
from pyvae.data.dataset import file_format
from pyvae.data.picture import CHANNELS, CropError, Fit, fit
from pyvae.errors import DataError

Array = npt.NDArray[Any]

NAMES = ("images", "imgs")
_ROWS = 256
_LISTED = 8
_WANTED = "[N, H, W], [N, H, W, C] or [N, C, H, W] with 1 or 3 channels"


class ImageArray:
    """The images of a .npz, .npy, HDF5 or IDX file: the array called "images" or "imgs", else the only one of images.

    Its shape is ``[N, H, W]``, ``[N, H, W, C]`` or ``[N, C, H, W]`` with 1 or 3 channels. What is white, the
    dtype says: 255 for uint8, True for bool, 1 for floats. Any other dtype is refused, and floats outside of
    [0, 1]. Nothing is ever unpickled.

    Raises `DataError` when the file is damaged or holds no such array.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        status = path.stat()
        self.state = f"{status.st_size} {status.st_mtime_ns}"
        """Another one after the file was written to."""
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
        with self._opened() as column:
            step = -(-_ROWS // column.chunk) * column.chunk
            for start in range(0, len(self), step):
                rows = self._bytes(column.read(min(step, len(self) - start)), start)
                if self._channel_axis is not None:
                    rows = np.moveaxis(rows, self._channel_axis, -1)
                if rows.shape[3:] == (1,):
                    rows = rows[..., 0]
                for row in rows:
                    yield self._fit(row, how)

    def _fit(self, row: Array, how: Fit) -> Array:
        try:
            return fit(Image.fromarray(np.ascontiguousarray(row)), how)
        except CropError as error:
            raise DataError(f"{self.path}: images of {error}; give a smaller crop, or none") from error

    def _bytes(self, rows: Array, start: int) -> Array:
        if rows.dtype == np.uint8:
            return rows
        if rows.dtype.kind == "b":
            return rows.astype(np.uint8) * 255
        wrong = ~((rows >= 0) & (rows <= 1))
        if wrong.any():
            value = rows[wrong][0]
            image = start + int(wrong.reshape(len(rows), -1).any(1).argmax())
            raise DataError(
                f"{self.path}: image {image} has the value {value}, but floats must lie in [0, 1], 1 being white; "
                "scale them, or save uint8 from 0 to 255"
            )
        return np.rint(rows.astype(np.float64) * 255).astype(np.uint8)

    @contextlib.contextmanager
    def _opened(self) -> Iterator[Column]:
        try:
            with _columns(self.path, self._form) as columns:
                yield _chosen(self.path, columns)
        except DataError:
            raise
        except DAMAGE as error:
            raise damaged(self.path, error, "make or download it again") from error


@contextlib.contextmanager
def _columns(path: Path, form: str) -> Iterator[dict[str, Column]]:
    with contextlib.ExitStack() as stack:
        if form == "npy":
            yield {path.name: npy_column(stack.enter_context(open(path, "rb")))}
        elif form == "idx":
            yield {path.name: idx_column(stack.enter_context(open(path, "rb")))}
        elif form == "gzip":
            yield {path.name: idx_column(cast("IO[bytes]", stack.enter_context(gzip.open(path))))}
        elif form == "zip":
            archive = stack.enter_context(zipfile.ZipFile(path))
            members = [name for name in archive.namelist() if name.endswith(".npy")]
            yield {
                name.removesuffix(".npy"): npy_column(stack.enter_context(archive.open(name)))
                for name in members
            }
        else:
            import h5py

            found: dict[str, Column] = {}

            def note(name: str, item: Any) -> None:
                if isinstance(item, h5py.Dataset) and item.shape is not None:
                    found[name] = hdf5_column(item)

            file = stack.enter_context(h5py.File(path, "r"))
            file.visititems(note)
            yield found


def _chosen(path: Path, columns: dict[str, Column]) -> Column:
    likely = [name for name in NAMES if name in columns] or [
        name for name, column in columns.items() if _is_shape_of_images(column.shape)
    ]
    if len(likely) != 1:
        held = ", ".join(f"{name} {column}" for name, column in list(columns.items())[:_LISTED])
        held += f" and {len(columns) - _LISTED} more" if len(columns) > _LISTED else ""
        raise DataError(
            f"{path}: {'more than one array' if likely else 'no array'} of images in it, but {held or 'nothing'}; "
            f"save one called 'images', {_WANTED}"
        )
    name, column = likely[0], columns[likely[0]]
    if not _is_shape_of_images(column.shape):
        raise DataError(f"{path}: {name} is {column}, not images; save {_WANTED}")
    if column.dtype != np.uint8 and column.dtype.kind not in "bf":
        raise DataError(
            f"{path}: {name} is {column}, which does not say what is white; save uint8 from 0 to 255, bool, "
            "or floats in [0, 1]"
        )
    return column


def _is_shape_of_images(shape: tuple[int, ...]) -> bool:
    if len(shape) == 3:
        # fewer are the channels of a single image
        return shape[0] > 0 and min(shape[1:]) > 4
    return len(shape) == 4 and min(shape) > 0 and (shape[1] in CHANNELS) != (shape[3] in CHANNELS)


def _channel_axis(shape: tuple[int, ...]) -> int | None:
    return None if len(shape) == 3 else 1 if shape[1] in CHANNELS else 3
