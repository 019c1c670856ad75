"""MPI3D (Gondal et al. 2019), read from a published ``.npz``.

Files, factors and their order: https://github.com/rr-learning/disentanglement_dataset, README at a7a6729.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from pyvae.data.columns import DAMAGE, check_size, damaged, open_columns
from pyvae.data.dataset import file_format
from pyvae.data.origin import Origin
from pyvae.data.paths import existing
from pyvae.data.pixel_grid import SIDE, Append, PixelGrid
from pyvae.errors import DataError, printable

Array = npt.NDArray[Any]

FACTOR_NAMES = (
    "object_color",
    "object_shape",
    "object_size",
    "camera_height",
    "background_color",
    "horizontal_axis",
    "vertical_axis",
)
FACTOR_SIZES = {math.prod(sizes): sizes for sizes in ((6, 6, 2, 3, 3, 40, 40), (4, 4, 2, 3, 3, 40, 40))}
"""By the number of images: of toy, realistic and real; of real complex, and of the first two as they were in 2019."""

_AGAIN = "download it again from https://github.com/rr-learning/disentanglement_dataset"
_IMAGES_AT_ONCE = 1024
_ROW = (SIDE, SIDE, 3)

logger = logging.getLogger("pyvae")


class MPI3D(PixelGrid):
    """1,036,800 colour images 64x64 of an object on a robot's arm, or 460,800; the factors are `FACTOR_NAMES`.

    A published file has one array, ``images``, in the order of the factors, and says no more: how many images there
    are decides which factors they have, and whether they are drawn or photographed is not known. Nothing is unpickled.
    The file is read in pieces; the cache holds as much again, 12.7 or 5.7 GB.

    ``factor_sizes`` is for files of the same make with fewer classes. Raises `DataError` when the file is not MPI3D,
    damaged, or of another number of images.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        factor_sizes: Sequence[int] | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        progress: bool = True,
    ) -> None:
        path = existing(path)
        count = images_of_mpi3d(path)
        if count is None:
            raise DataError(
                f"{path}: not MPI3D: no .npz with uint8 images {['N', *_ROW]}; {_AGAIN}".replace("'", "")
            )
        sizes = FACTOR_SIZES.get(count) if factor_sizes is None else tuple(factor_sizes)
        if sizes is None or math.prod(sizes) != count:
            wanted = " or ".join(f"{n:,}" for n in (FACTOR_SIZES if sizes is None else [math.prod(sizes)]))
            raise DataError(f"{path}: {count:,} images instead of {wanted}, so not MPI3D; {_AGAIN}")

        def pack(append: Append) -> None:
            what = f"packing {printable(path.name)}"
            with tqdm(total=count, desc=what, unit="img", unit_scale=True, disable=not progress) as bar:
                try:
                    _read(path, append, bar)
                except DataError:
                    raise
                except DAMAGE as error:
                    raise damaged(path, error, _AGAIN) from error

        super().__init__(
            name="mpi3d",
            path=path,
            channels=3,
            factors={
                name: np.arange(size, dtype=np.float64)
                for name, size in zip(FACTOR_NAMES, sizes, strict=True)
            },
            version="v1",
            found=lambda: Origin.of(path, progress),
            pack=pack,
            cache_dir=cache_dir,
        )


def _read(path: Path, append: Append, bar: Any) -> None:
    with open_columns(path, "zip") as columns:
        images = columns["images"]
        check_size(path, "images", images)
        step = max(_IMAGES_AT_ONCE, images.chunk)
        for start in range(0, images.shape[0], step):
            rows = images.read(min(step, images.shape[0] - start))
            append(np.ascontiguousarray(np.moveaxis(rows, -1, 1)).reshape(len(rows), -1))
            bar.update(len(rows))


def images_of_mpi3d(path: Path) -> int | None:
    """How many images a .npz has whose array ``images`` is shaped as MPI3D's, None of other files.

    Raises `DataError` when it cannot be told.
    """
    if file_format(path) != "zip":
        return None
    try:
        with open_columns(path, "zip") as columns:
            images = columns.get("images")
    except DAMAGE as error:
        raise damaged(path, error, "make or download it again") from error
    if images is None or images.dtype != np.uint8 or images.shape[1:] != _ROW:
        return None
    return images.shape[0]
