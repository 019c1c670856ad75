"""Cars3D (Reed et al. 2015), read from the ``cars`` folder of the published nips2015-analogy-data.tar.gz.

The folder, the shapes in it and their order: nmichlo/disent at 8f061a8, disent/dataset/data/_groundtruth__cars3d.py.
The factors, their order and the filter are those of google-research/disentanglement_lib at 86a644d,
disentanglement_lib/data/ground_truth/cars3d.py.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from pyvae.base.files import open_regular
from pyvae.data.columns import DAMAGE, check_size, damaged
from pyvae.data.matlab import is_matlab, open_bytes
from pyvae.data.origin import Origin
from pyvae.data.paths import existing
from pyvae.data.pixel_grid import SIDE, Append, PixelGrid
from pyvae.data.resize import lanczos
from pyvae.errors import DataError, printable

Array = npt.NDArray[Any]

FACTOR_NAMES = ("elevation", "azimuth", "object_type")
FACTOR_SIZES = (4, 24, 183)

_AGAIN = "unpack nips2015-analogy-data.tar.gz (http://www.scottreed.info) again and give its folder data/cars"
_LIST = "list.txt"
_WITHIN = ("", "cars", "data/cars")
_PUBLISHED_SIDE = 128
_LOOKED_AT = 8
_LONGEST_LIST = 1 << 20


class Cars3D(PixelGrid):
    """17,568 colour images of 183 cars from 24 sides and 4 heights; the factors are `FACTOR_NAMES`.

    ``path`` is that of the folder ``cars``, or of one that it lies in: a ``.mat`` file to each car, in whose array
    ``im`` MATLAB has the sizes ``[128, 128, 3, azimuth, elevation]``. Cars come in the order of ``list.txt`` there, or
    without one in that of their names. Images are resized from 128 to 64 pixels.

    ``factor_sizes`` is for folders of the same make with fewer classes. Raises `DataError` when files are missing,
    damaged, or not those of Cars3D.
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
        sizes = tuple(FACTOR_SIZES if factor_sizes is None else factor_sizes)
        folder = _folder(path)
        if folder is None:
            raise DataError(f"{path}: no MATLAB files in this folder, nor in cars; {_AGAIN}")
        names = _names(folder)
        if len(names) != sizes[2]:
            raise DataError(f"{folder}: {len(names)} cars instead of {sizes[2]}, so not Cars3D; {_AGAIN}")

        def pack(append: Append) -> None:
            pixels = np.empty((*sizes, 3 * SIDE * SIDE), np.uint8)
            bar = tqdm(names, desc=f"packing {printable(folder.name)}", unit="car", disable=not progress)
            with bar:
                for number, name in enumerate(bar):
                    _read(folder / name, pixels[:, :, number])
            append(pixels.reshape(-1, pixels.shape[-1]))

        super().__init__(
            name="cars3d",
            path=folder,
            channels=3,
            factors={
                name: np.arange(size, dtype=np.float64)
                for name, size in zip(FACTOR_NAMES, sizes, strict=True)
            },
            version="v1",
            found=lambda: Origin.of_files(folder, names, progress),
            pack=pack,
            cache_dir=cache_dir,
        )


def is_cars3d(path: Path) -> bool:
    """Whether a folder, or ``cars`` in it, has a MATLAB file with images of a car among its first ones."""
    folder = _folder(path)
    return folder is not None and any(map(is_car, islice(_mat_files(folder), _LOOKED_AT)))


def is_car(path: Path) -> bool:
    """Whether a MATLAB file has an array of images that is shaped as those of Cars3D."""
    if not is_matlab(path):
        return False
    try:
        with open_bytes(path, "im") as images:
            return images.shape == _shape(FACTOR_SIZES)
    except DAMAGE:
        return False


def _shape(sizes: Sequence[int]) -> tuple[int, ...]:
    return sizes[0], sizes[1], 3, _PUBLISHED_SIDE, _PUBLISHED_SIDE


def _folder(path: Path) -> Path | None:
    folders = (path / within for within in _WITHIN)
    return next((each for each in folders if os.path.isdir(each) and any(_mat_files(each))), None)


def _mat_files(folder: Path) -> list[Path]:
    try:
        names = sorted(name for name in os.listdir(folder) if name.endswith(".mat"))
    except OSError as error:
        raise DataError(f"{folder}: cannot be read ({error.strerror}); check it") from error
    return [folder / name for name in names]


def _names(folder: Path) -> list[str]:
    """The files of the cars, in their order."""
    present = [file.name for file in _mat_files(folder)]
    if not os.path.isfile(folder / _LIST):
        return present
    try:
        with open_regular(folder / _LIST) as file:
            lines = file.read(_LONGEST_LIST).decode(errors="replace").splitlines()
    except OSError as error:
        raise DataError(f"{folder / _LIST}: cannot be read ({error.strerror}); check it") from error
    names = [f"{line.strip().removesuffix('.mat')}.mat" for line in lines if line.strip()]
    missing = next((name for name in names if name not in set(present)), None)
    if missing is not None:
        raise DataError(f"{folder / _LIST}: it names {printable(missing)}, which is not there; {_AGAIN}")
    if len(set(names)) != len(names):
        raise DataError(f"{folder / _LIST}: it names a car twice; {_AGAIN}")
    return names


def _read(path: Path, pixels: Array) -> None:
    """Fill in uint8 ``[elevation, azimuth, 3 * 64 * 64]``: the images of a car, resized."""
    elevations, azimuths = pixels.shape[:2]
    try:
        with open_bytes(path, "im") as images:
            if images.shape != _shape((elevations, azimuths)):
                held, wanted = (
                    list(reversed(shape)) for shape in (images.shape, _shape((elevations, azimuths)))
                )
                raise DataError(f"{path}: its images im are {held} instead of {wanted}; {_AGAIN}")
            check_size(path, "im", images)
            for elevation in range(elevations):
                for azimuth, image in enumerate(images.read(1)[0]):
                    # MATLAB's row, column, channel are here channel, column, row
                    small = lanczos(image.transpose(2, 1, 0), SIDE)
                    pixels[elevation, azimuth] = small.transpose(2, 0, 1).reshape(-1)
    except DataError:
        raise
    except DAMAGE as error:
        raise damaged(path, error, _AGAIN) from error
