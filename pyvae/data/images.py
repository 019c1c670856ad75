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

from pyvae.data import cache, limit, packed
from pyvae.data.arrays import ImageArray
from pyvae.data.dataset import Dataset, Index
from pyvae.data.folder import UNREADABLE, Broken, Folder
from pyvae.data.paths import existing
from pyvae.data.picture import CHANNELS, Fit
from pyvae.errors import DataError, printable

Array = npt.NDArray[Any]

# Raise it with every change of a pixel, so that no cache of the old ones is used.
_PACKING = "images-v1"
_NAMED = 20

logger = logging.getLogger("pyvae")


class Images(Dataset):
    """The images of a folder, or of an array in a .npz, .npy, HDF5 or IDX file, resized and packed once.

    A folder gives its image files in the order of their relative paths (`pyvae.data.folder.Folder`), a data
    file the array of images in it (`pyvae.data.arrays.ImageArray`). Of each the central square is kept and
    resized (`pyvae.data.picture.fit`). The bytes are kept in the cache and packed again when a file was added,
    removed, replaced or written to since. Pickling copies no pixels: they are mapped from the cache again.

    Args:
        path: of the folder or file.
        array: which array of the file; None: the one called "images" or "imgs", else the only one of images.
        size: side of the images; the networks of `pyvae.nets` take 64.
        channels: 1 or 3; None: 1 when all pictures are grey, else 3.
        crop: side of the central square in pixels of the picture, for CelebA often 148 or 140; None: the
            largest there is.
        corrupt: what to do with files that cannot be opened or decoded: "refuse" the data, or "skip" them.
            Either names them.
        cache_dir: where the packed images are kept; see `pyvae.data.cache.directory`.
        progress: whether to show a progress bar.

    Raises:
        DataError: an option that cannot be; no images; a file that, unless skipped, cannot be read or is
            corrupt; values that do not say what is white; more bytes than `pyvae.data.limit` lets one read; files
            that are written to at this moment; a cache that cannot be written.
    """

    pixels: torch.Tensor
    """uint8 ``[N, C, size, size]``, mapped from the cache, copied on write."""
    skipped: dict[str, str]
    """The files that were left out, and why: corrupt, or not to be read."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        array: str | None = None,
        size: int = 64,
        channels: int | None = None,
        crop: int | None = None,
        corrupt: str = "refuse",
        cache_dir: str | os.PathLike[str] | None = None,
        progress: bool = True,
    ) -> None:
        _check(size, channels, crop, corrupt)
        path = existing(path, "no such file or folder; check the path")

        def found() -> Folder | ImageArray:
            return Folder(path, progress) if path.is_dir() else ImageArray(path, array)

        source = found()
        made_by = f"{_PACKING} size {size} channels {channels} crop {crop} {os.fsencode(path)!r}"
        if array is not None:
            made_by += f" {array!r}"
        file = cache.directory(cache_dir) / f"images-{hashlib.sha256(made_by.encode()).hexdigest()[:32]}.h5"

        def pack(append: Callable[[Array], None]) -> dict[str, str]:
            how = Fit(size, channels or source.channels(progress), crop)
            if isinstance(source, ImageArray):
                image = how.channels * size * size
                limit.check_array(
                    path,
                    f"its {len(source):,} images, {size} x {size}, are",
                    len(source) * image,
                    path.stat().st_size,
                )
            # once without a name, once in its place
            cache.check_room(file, 2 * len(source) * how.channels * size * size)
            skipped = _pack(source, how, corrupt, append, progress)
            # the checksum as well must be of what was packed
            _ = source.origin.content
            if found().origin.state != source.origin.state:
                raise DataError(f"{path}: was written to while it was read; load it when that is done")
            return skipped

        held = packed.load_or_pack(file, made_by, source.origin, pack)
        for name, reason in list(held.skipped.items())[:_NAMED]:
            if corrupt == "refuse":
                raise _refusal(path / name, reason)
            logger.warning("%s: %s, left out", printable(path / name), _fault(reason))
        if len(held.skipped) > _NAMED:
            logger.warning("%s: %d corrupt files are left out in all", printable(path), len(held.skipped))
        self.skipped = held.skipped
        count, *shape = held.pixels.shape
        super().__init__(
            name="images",
            fingerprint=f"images-{count}x{'x'.join(map(str, shape))}-crc32:{held.place.crc32:08x}",
            image_shape=(shape[0], shape[1], shape[2]),
        )
        self.pixels = held.pixels
        self._map_when_unpickled(held.place)

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
    what = f"packing {printable(source.path.name)}"
    bar = tqdm(total=len(source), desc=what, unit="img", disable=not progress)
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
        f"{path}: {_fault(reason)}; remove or replace it, or leave corrupt files out with --corrupt skip"
    )


def _fault(reason: str) -> str:
    return reason if reason.startswith(UNREADABLE) else f"corrupt ({reason})"
