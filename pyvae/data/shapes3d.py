"""3D Shapes (Burgess & Kim 2018), read from the published ``3dshapes.h5``.

Source: https://github.com/google-deepmind/3d-shapes
"""

from __future__ import annotations

import math
import os
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from tqdm import tqdm

from pyvae.base.files import open_regular
from pyvae.data.columns import DAMAGE, check_hdf5, check_size, damaged, hdf5_column, open_columns
from pyvae.data.dataset import FactorDataset, Index, file_format, grid_classes
from pyvae.data.paths import existing
from pyvae.errors import DataError, printable

FACTOR_NAMES = ("floor_hue", "wall_hue", "object_hue", "scale", "shape", "orientation")
FACTOR_SIZES = (10, 10, 10, 8, 4, 15)
IMAGE_SHAPE = (3, 64, 64)
COUNT = math.prod(FACTOR_SIZES)

_AGAIN = "download 3dshapes.h5 again from https://github.com/google-deepmind/3d-shapes"
_IMAGES_AT_ONCE = 4096
_ROWS = {"images": (64, 64, 3), "labels": (len(FACTOR_NAMES),)}


class Shapes3D(FactorDataset):
    """480,000 colour images 64x64 of an object in a room; the factors are `FACTOR_NAMES`.

    Batches are read from the file, which may decompress thousands of neighbours of each image: slow, made
    for looking at a few. For training hold the pixels in memory (`to_memory`, 5.9 GB). An instance survives
    pickling and forking: each process opens the file for itself.

    Raises `DataError` when the file is not 3D Shapes, damaged, or in another order than the published one.
    ``factor_sizes`` is for files of the same make with fewer classes.
    """

    pixels: torch.Tensor | None = None
    """uint8 ``[N, 3, 64, 64]`` after `to_memory`."""

    def __init__(self, path: str | os.PathLike[str], *, factor_sizes: Sequence[int] = FACTOR_SIZES) -> None:
        self.path = existing(path)
        self._file: Any = None
        self._process = -1
        if file_format(self.path) != "hdf5":
            raise DataError(f"{self.path}: not an HDF5 file; {_AGAIN}")
        labels = self._labels(math.prod(factor_sizes))
        super().__init__(
            name="shapes3d",
            fingerprint=f"shapes3d-crc32:{_crc32(self.path):08x}",
            image_shape=IMAGE_SHAPE,
            factor_names=FACTOR_NAMES,
            factor_values=_grid_values(self.path, labels, factor_sizes),
        )

    def images(self, index: Index) -> torch.Tensor:
        """float32 ``[*index.shape, 3, 64, 64]`` in [0, 1]."""
        index = self._checked(index)
        flat = index.flatten()
        pixels = self._read(flat) if self.pixels is None else self.pixels.index_select(0, flat)
        return pixels.float().div_(255).view(*index.shape, *IMAGE_SHAPE)

    def to_memory(self, progress: bool = True) -> Shapes3D:
        """Read all images into `pixels`; returns the dataset itself."""
        chunk = (self._open()["images"].chunks or (1,))[0]
        step = -(-_IMAGES_AT_ONCE // chunk) * chunk  # whole chunks, so that each is decompressed once
        pixels = torch.empty((len(self), *IMAGE_SHAPE), dtype=torch.uint8)
        with tqdm(
            total=len(self), desc=f"reading {printable(self.path.name)}", unit="img", disable=not progress
        ) as bar:
            for block in torch.arange(len(self)).split(step):
                pixels[block[0] : block[-1] + 1] = self._read(block)
                bar.update(len(block))
        self.pixels = pixels
        return self

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_file": None}

    def _open(self) -> Any:
        # A handle inherited through fork shares its file offset with the parent.
        if self._file is None or self._process != os.getpid():
            import h5py

            self._file, self._process = h5py.File(self.path, "r"), os.getpid()
        return self._file

    def _read(self, index: torch.Tensor) -> torch.Tensor:
        """uint8 ``[n, 3, 64, 64]``, each image read once, in the order of the file."""
        unique, inverse = np.unique(index.numpy(), return_inverse=True)
        rows = np.empty((len(unique), 64, 64, 3), np.uint8)
        try:
            images = self._open()["images"]
            starts = np.flatnonzero(np.diff(unique, prepend=-2) != 1)
            stops = np.flatnonzero(np.diff(unique, append=-2) != 1) + 1
            for start, stop in zip(starts, stops, strict=True):
                rows[start:stop] = images[unique[start] : unique[stop - 1] + 1]
        except DAMAGE as error:
            raise damaged(self.path, error, _AGAIN) from error
        return torch.from_numpy(rows)[torch.from_numpy(inverse)].permute(0, 3, 1, 2).contiguous()

    def _labels(self, count: int) -> npt.NDArray[np.float64]:
        try:
            file = self._open()
            with open_columns(self.path, "hdf5") as columns:  # of this file, not of those that it names
                found = {name: (str(column.dtype), column.shape) for name, column in columns.items()}
            wanted = {
                "images": ("uint8", (count, 64, 64, 3)),
                "labels": ("float64", (count, len(FACTOR_NAMES))),
            }
            for name, expected in wanted.items():
                if name not in found:
                    raise DataError(
                        f"{self.path}: not 3D Shapes: it holds {sorted(file)}, no '{name}'; {_AGAIN}"
                    )
                if found[name] != expected:
                    raise DataError(f"{self.path}: {name} is {found[name]} instead of {expected}; {_AGAIN}")
                check_hdf5(file[name])
                check_size(self.path, name, hdf5_column(file[name]))
            return np.asarray(file["labels"][:])
        except DataError:
            raise
        except DAMAGE as error:
            raise damaged(self.path, error, _AGAIN) from error


def _crc32(path: Path) -> int:
    crc32 = 0
    with open_regular(path) as file:
        while piece := file.read(1 << 22):
            crc32 = zlib.crc32(piece, crc32)
    return crc32


def _grid_values(
    path: Path, labels: npt.NDArray[np.float64], sizes: Sequence[int]
) -> list[npt.NDArray[np.float64]]:
    """The values of every factor in increasing order, after checking that the labels run through the grid."""
    classes = grid_classes(sizes, 0, len(labels))
    columns = []
    for f, (name, size) in enumerate(zip(FACTOR_NAMES, sizes, strict=True)):
        values, rank = np.unique(labels[:, f], return_inverse=True)
        if len(values) != size or not np.isfinite(values).all():
            raise DataError(f"{path}: {name} takes {len(values)} values instead of {size}; {_AGAIN}")
        wrong = rank != classes[:, f]
        if wrong.any():
            first = int(wrong.argmax())
            raise DataError(
                f"{path}: label {first} has class {rank[first]} of {name} where {classes[first, f]} belongs: "
                f"not in the published order; {_AGAIN}"
            )
        columns.append(values)
    return columns


def images_of_shapes3d(path: Path) -> int | None:
    """How many images a file has whose arrays are shaped as those of 3D Shapes, None of others.

    Raises `DataError` when it cannot be told.
    """
    if file_format(path) != "hdf5":
        return None
    try:
        with open_columns(path, "hdf5") as columns:
            shapes = {name: columns[name].shape for name in ("images", "labels") if name in columns}
    except DAMAGE as error:
        raise damaged(path, error, "make or download it again") from error
    if {name: shape[1:] for name, shape in shapes.items()} != _ROWS:
        return None
    return shapes["images"][0]
