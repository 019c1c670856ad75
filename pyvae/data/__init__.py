"""Datasets with known factors of variation."""

from __future__ import annotations

import os
from pathlib import Path

from pyvae.data.dataset import Dataset
from pyvae.errors import DataError

__all__ = ["Dataset", "load"]


def load(
    name: str | os.PathLike[str],
    *,
    cache_dir: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> Dataset:
    """Open a dataset.

    ``name`` is ``"dsprites"`` for the generated images of dSprites, or the path of a published file:
    dSprites as ``.npz`` or ``.hdf5``, 3D Shapes as ``.h5``. Which of them a file is, its content tells.
    Packed images are kept in ``cache_dir`` (else ``$PYVAE_CACHE``, ``$XDG_CACHE_HOME/pyvae``,
    ``~/.cache/pyvae``).

    Raises `DataError` for an unknown name and for a file that is missing, damaged or of another make.
    """
    from pyvae.data.dsprites import DSprites
    from pyvae.data.shapes3d import Shapes3D, is_shapes3d

    if name == "dsprites":
        return DSprites.generated(cache_dir, progress)
    if name == "shapes3d":
        raise DataError(
            "shapes3d: not generated here; give the path of the published 3dshapes.h5 instead of the name"
        )
    path = Path(name).expanduser()
    if not path.exists():
        raise DataError(
            f"{path}: neither a known name nor a file; "
            "give 'dsprites', or the path of a dSprites .npz or .hdf5 or of 3dshapes.h5"
        )
    return Shapes3D(path) if is_shapes3d(path) else DSprites.genuine(path, cache_dir, progress)
