"""Data sets: dSprites and 3D Shapes with their factors of variation, and images without."""

from __future__ import annotations

import logging
import os
from pathlib import Path

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

    ``name`` is ``"dsprites"`` for the generated images of dSprites, or the path of a published file, dSprites
    as ``.npz`` or ``.hdf5`` or 3D Shapes as ``.h5``, which gives a `FactorDataset`; or the path of a folder of
    images, of MNIST's IDX file or its folder, or of any ``.npz``, ``.npy`` or HDF5 file with an array of images,
    which gives a `Dataset` without factors. Which of them a file is, its content tells. Of several arrays in a file
    one is named after a colon, ``file.npz:x_train`` or ``file.h5:train/images``. ``size``, ``channels``, ``crop`` and
    ``corrupt`` say how such images are packed (`pyvae.data.images.Images`). Packed images are kept in ``cache_dir``
    (else ``$PYVAE_CACHE``, ``$XDG_CACHE_HOME/pyvae``, ``~/.cache/pyvae``). A file may unpack to 16 GB, or to four times
    its size, or to ``$PYVAE_LIMIT`` gigabytes.

    Raises `DataError`, in one line, for an unknown name, for a file that is missing, damaged or of another make, and
    for options that do not go with the data.
    """
    from pyvae.data import dsprites, shapes3d
    from pyvae.data.images import Images
    from pyvae.data.mnist import training_file
    from pyvae.data.paths import existing, split

    def published(what: str, channels_there: int) -> None:
        if (size, crop, corrupt) != (64, None, "refuse") or channels not in (None, channels_there):
            raise DataError(
                f"{name}: the images of {what} are taken as published, {channels_there} x 64 x 64; "
                "leave out size, channels, crop and corrupt"
            )

    if name == "dsprites":
        published("dSprites", 1)
        return dsprites.DSprites.generated(cache_dir, progress)
    if name == "shapes3d":
        raise DataError(
            "shapes3d: not generated here; give the path of the published 3dshapes.h5 instead of the name"
        )
    typed, array = split(name)
    path = existing(
        typed,
        "neither a known name nor a file; give 'dsprites', or the path of a dSprites .npz or .hdf5, "
        "of 3dshapes.h5, of a folder of images, of MNIST's IDX file, or of a .npz or HDF5 with an array of images",
    )
    if path.is_dir():
        path = training_file(path) or path
    if array is None and not path.is_dir():
        count = shapes3d.images_of_shapes3d(path)
        if count == shapes3d.COUNT:
            published("3D Shapes", 3)
            return shapes3d.Shapes3D(path)
        if count is not None:
            _warn_of_no_factors(path, "3D Shapes", count, shapes3d.COUNT)
        count = dsprites.images_of_dsprites(path)
        if count == dsprites.COUNT:
            published("dSprites", 1)
            return dsprites.DSprites.genuine(path, cache_dir, progress)
        if count is not None:
            _warn_of_no_factors(path, "dSprites", count, dsprites.COUNT)
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


def _warn_of_no_factors(path: Path, what: str, count: int, published: int) -> None:
    logging.getLogger("pyvae").warning(
        "%s: made as %s is, but of %s images instead of %s, so that it is not known which factors they have: "
        "taken as images without",
        printable(path),
        what,
        f"{count:,}",
        f"{published:,}",
    )
