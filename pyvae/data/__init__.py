"""Data sets: dSprites, 3D Shapes, Cars3D, SmallNORB and MPI3D with their factors of variation, and images without."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from pyvae.data.dataset import Dataset, FactorDataset
from pyvae.errors import DataError, printable

__all__ = ["Dataset", "FactorDataset", "load"]


def load(
    name: str | os.PathLike[str],
    *,
    size: int = 64,
    channels: int | None = None,
    crop: int | None = None,
    corrupt: str = "refuse",
    cache_dir: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> Dataset:
    """Open a dataset.

    ``name`` is ``"dsprites"`` for the generated images of dSprites, or the path of published files, which gives a
    `FactorDataset`: dSprites as ``.npz`` or ``.hdf5``, 3D Shapes as ``.h5``, MPI3D as ``.npz``, the folder ``cars``
    of Cars3D, the folder of SmallNORB or one of its ``-dat.mat`` files; or the path of a folder of images, of
    MNIST's IDX file or its folder, or of any ``.npz``, ``.npy`` or HDF5 file with an array of images, which gives a
    `Dataset` without factors. Which of them it is, its content tells. Of several arrays in a file one is named
    after a colon, ``file.npz:x_train`` or ``file.h5:train/images``; so named, it is of images without factors.
    ``size``, ``channels``, ``crop`` and ``corrupt`` say how such images are packed (`pyvae.data.images.Images`).
    Packed images are kept in ``cache_dir`` (else ``$PYVAE_CACHE``, ``$XDG_CACHE_HOME/pyvae``, ``~/.cache/pyvae``).
    A file may unpack to 16 GB, or to four times its size, or to ``$PYVAE_LIMIT`` gigabytes.

    Raises `DataError`, in one line, for an unknown name, for a file that is missing, damaged or of another make, and
    for options that do not go with the data.
    """
    from pyvae.data.images import Images
    from pyvae.data.mnist import training_file
    from pyvae.data.paths import existing, split

    def published(what: str, channels_there: int) -> None:
        if (size, crop, corrupt) != (64, None, "refuse") or channels not in (None, channels_there):
            raise DataError(
                f"{name}: the images of {what} are {channels_there} x 64 x 64; "
                "leave out size, channels, crop and corrupt"
            )

    if name == "dsprites":
        from pyvae.data.dsprites import DSprites

        published("dSprites", 1)
        return DSprites.generated(cache_dir, progress)
    if name == "shapes3d":
        raise DataError(
            "shapes3d: not generated here; give the path of the published 3dshapes.h5 instead of the name"
        )
    typed, array = split(name)
    path = existing(
        typed,
        "neither a known name nor a file; give 'dsprites', or the path of a dSprites .npz or .hdf5, "
        "of 3dshapes.h5, of an MPI3D .npz, of the folder of Cars3D or SmallNORB, of a folder of images, "
        "of MNIST's IDX file, or of a .npz or HDF5 with an array of images",
    )
    known = None if array is not None else _known(typed, path)
    if known is not None:
        published(known.name, known.channels)
        return known.open(cache_dir, progress)
    if path.is_dir():
        path = training_file(path) or path
    return Images(
        path,
        array=array,
        size=size,
        channels=channels,
        crop=crop,
        corrupt=corrupt,
        cache_dir=cache_dir,
        progress=progress,
    )


class _Known(NamedTuple):
    """A data set whose published files lie at a path."""

    name: str
    channels: int
    open: Callable[[str | os.PathLike[str] | None, bool], FactorDataset]
    """Of the cache's directory, and whether to show progress."""


def _known(typed: str, path: Path) -> _Known | None:
    from pyvae.data import cars3d, dsprites, matlab, mpi3d, shapes3d, smallnorb

    if smallnorb.is_smallnorb(path):
        return _Known("SmallNORB", 1, lambda at, bar: smallnorb.SmallNORB(typed, cache_dir=at, progress=bar))
    if path.is_dir():
        if not cars3d.is_cars3d(path):
            return None
        return _Known("Cars3D", 3, lambda at, bar: cars3d.Cars3D(path, cache_dir=at, progress=bar))
    if matlab.is_matlab(path):
        car = cars3d.is_car(path)
        what = (
            "one car of Cars3D; give its folder" if car else "a MATLAB file of version 5; save it with -v7.3"
        )
        raise DataError(f"{path}: {what}")
    count = shapes3d.images_of_shapes3d(path)
    if count == shapes3d.COUNT:
        return _Known("3D Shapes", 3, lambda at, bar: shapes3d.Shapes3D(path))
    if count is not None:
        _warn_of_no_factors(path, "3D Shapes", count, shapes3d.COUNT)
    count = dsprites.images_of_dsprites(path)
    if count == dsprites.COUNT:
        return _Known("dSprites", 1, lambda at, bar: dsprites.DSprites.genuine(path, at, bar))
    if count is not None:
        _warn_of_no_factors(path, "dSprites", count, dsprites.COUNT)
    count = mpi3d.images_of_mpi3d(path)
    if count not in mpi3d.FACTOR_SIZES:
        return None
    logging.getLogger("pyvae").info(
        "%s: %s images in colour, as MPI3D has, and taken as such; to take them as images without factors, "
        "name their array: %s:images",
        printable(path),
        f"{count:,}",
        printable(path.name),
    )
    return _Known("MPI3D", 3, lambda at, bar: mpi3d.MPI3D(path, cache_dir=at, progress=bar))


def _warn_of_no_factors(path: Path, what: str, count: int, published: int) -> None:
    logging.getLogger("pyvae").warning(
        "%s: made as %s is, but of %s images instead of %s, so that it is not known which factors they have: "
        "taken as images without",
        printable(path),
        what,
        f"{count:,}",
        f"{published:,}",
    )
