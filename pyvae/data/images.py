"""Images without known factors: CelebA, 3D Chairs, 3D Faces, anybody's."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy.typing as npt
import torch
from tqdm import tqdm

from pyvae.data import cache, packed
from pyvae.data.arrays import ImageArray
from pyvae.data.dataset import Dataset, Index
from pyvae.data.folder import Broken, Folder
from pyvae.data.picture import CHANNELS, Fit
from pyvae.errors import DataError

Array = npt.NDArray[Any]

# Raise it with every change of a pixel, so that no cache of the old ones is used.
_PACKING = "images-v1"
_NAMED = 20

logger = logging.getLogger("pyvae")


class Images(Dataset):
    """The images of a folder, or of an array in a .npz, .npy or HDF5 file, resized and packed once.

    A folder gives its image files in the order of their relative paths (`pyvae.data.folder.Folder`), a data
    file the array of images in it (`pyvae.data.arrays.ImageArray`). Of each the central square is kept and
    resized (`pyvae.data.picture.fit`). The bytes are kept in the cache and packed again when a file was added,
    removed or written to since.

    Args:
        path: of the folder or file.
        size: side of the images; the networks of `pyvae.nets` take 64.
        channels: 1 or 3; None: 1 when all pictures are grey, else 3.
        crop: side of the central square in pixels of the picture, for CelebA often 148 or 140; None: the
            largest there is.
        corrupt: what to do with files that cannot be decoded: "refuse" the data, or "skip" them. Either
            names them.
        cache_dir: where the packed images are kept; see `pyvae.data.cache.directory`.
        progress: whether to show a progress bar.

    Raises:
        DataError: an option that cannot be; no images; a file that cannot be read or, unless skipped, is
            corrupt; values that do not say what is white; a cache that cannot be written.
    """

    pixels: torch.Tensor
    """uint8 ``[N, C, size, size]``, mapped from the cache, copied on write."""
    skipped: dict[str, str]
    """The corrupt files that were left out, and why."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        size: int = 64,
        channels: int | None = None,
        crop: int | None = None,
        corrupt: str = "refuse",
        cache_dir: str | os.PathLike[str] | None = None,
        progress: bool = True,
    ) -> None:
        _check(size, channels, crop, corrupt)
        path = Path(path).expanduser().resolve()
        if not path.exists():
            raise DataError(f"{path}: no such file or folder; check the path")
        source = Folder(path) if path.is_dir() else ImageArray(path)

        def pack(append: Callable[[Array], None]) -> dict[str, str]:
            how = Fit(size, channels or source.channels(progress), crop)
            return _pack(source, how, corrupt, append, progress)

        made_by = f"{_PACKING} size {size} channels {channels} crop {crop} {os.fsencode(path)!r}"
        file = f"images-{hashlib.sha256(made_by.encode()).hexdigest()[:32]}.h5"
        held = packed.load_or_pack(cache.directory(cache_dir) / file, f"{made_by} {source.state}", pack)
        for name, reason in list(held.skipped.items())[:_NAMED]:
            if corrupt == "refuse":
                raise _refusal(path / name, reason)
            logger.warning("%s: corrupt (%s), left out", path / name, reason)
        if len(held.skipped) > _NAMED:
            logger.warning("%s: %d corrupt files are left out in all", path, len(held.skipped))
        self.pixels = held.pixels
        self.skipped = held.skipped
        count, *shape = held.pixels.shape
        super().__init__(
            name="images",
            fingerprint=f"images-{count}x{'x'.join(map(str, shape))}-crc32:{held.crc32:08x}",
            image_shape=(shape[0], shape[1], shape[2]),
        )

    def __len__(self) -> int:
        return len(self.pixels)

    def images(self, index: Index) -> torch.Tensor:
        """float32 ``[*index.shape, C, size, size]`` in [0, 1]."""
        index = self._checked(index)
        pixels = self.pixels.index_select(0, index.flatten())
        return pixels.float().div_(255).view(*index.shape, *self.image_shape)


def _check(size: int, channels: int | None, crop: int | None, corrupt: str) -> None:
    if size < 1:
        raise DataError(f"size must be at least 1, got {size}")
    if channels not in (None, *CHANNELS):
        raise DataError(f"channels must be 1 or 3, got {channels}")
    if crop is not None and crop < 1:
        raise DataError(f"crop must be at least 1, got {crop}")
    if corrupt not in ("refuse", "skip"):
        raise DataError(f"corrupt must be 'refuse' or 'skip', got {corrupt!r}")


def _pack(
    source: Folder | ImageArray, how: Fit, corrupt: str, append: Callable[[Array], None], progress: bool
) -> dict[str, str]:
    """Hand over all images, and return the corrupt ones with what is wrong with them."""
    skipped = {}
    brightest = 0
    bar = tqdm(total=len(source), desc=f"packing {source.path.name}", unit="img", disable=not progress)
    with bar, contextlib.closing(source.read(how)) as images:
        for image in images:
            if isinstance(image, Broken):
                if corrupt == "refuse":
                    raise _refusal(source.path / image.name, image.reason)
                skipped[image.name] = image.reason
            else:
                append(image)
                brightest = max(brightest, int(image.max()))
            bar.update()
    if len(skipped) == len(source):
        name, reason = next(iter(skipped.items()))
        raise DataError(
            f"{source.path}: each of its {len(source)} files is corrupt; the first: {name} ({reason})"
        )
    if brightest <= 1:
        raise DataError(
            f"{source.path}: no pixel of any image is above {brightest} of 255, so all are as good as black; "
            "if 1 is white in them, save them as bool, or times 255"
        )
    return skipped


def _refusal(path: Path, reason: str) -> DataError:
    return DataError(
        f"{path}: corrupt ({reason}); remove or replace it, or leave corrupt files out with --corrupt skip"
    )
