"""dSprites (Matthey et al. 2017), generated or read from a genuine file, as bits.

Genuine files: https://github.com/google-deepmind/dsprites-dataset
"""

from __future__ import annotations

import hashlib
import logging
import math
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from tqdm import tqdm

from pyvae.data import cache, sprites
from pyvae.data.columns import DAMAGE, Column, check_size, damaged, open_columns
from pyvae.data.dataset import FactorDataset, Index, file_format, grid_classes
from pyvae.data.origin import Origin
from pyvae.data.paths import existing
from pyvae.errors import DataError, printable

Array = npt.NDArray[Any]
StrPath = str | os.PathLike[str]

IMAGE_SHAPE = (1, 64, 64)
COUNT = math.prod(sprites.FACTOR_SIZES)

# The generator's version: raise it with every change of a pixel, so that no cache of the old ones is used.
_GENERATED = "dsprites-generated-v1"
_KEYS = {"zip": ("imgs", "latents_classes"), "hdf5": ("imgs", "latents/classes")}
_AGAIN = "download it again from https://github.com/google-deepmind/dsprites-dataset"

logger = logging.getLogger("pyvae")


class DSprites(FactorDataset):
    """737,280 binary images 64x64 of a square, an ellipse or a heart.

    The factors are shape, scale, orientation, posX and posY. The sixth of the publication, color, has one
    class and is left out.
    """

    bits: torch.Tensor
    """uint8 ``[N, 512]``: eight pixels per byte, little bit order; mapped from the cache, copied on write."""
    differing_pixels: int
    """Pixels in which a genuine file differs from the generated images."""
    differing_images: int

    def __init__(self, cached: cache.Cached, origin: str, sizes: Sequence[int]) -> None:
        super().__init__(
            name="dsprites",
            fingerprint=f"{origin}-crc32:{cached.crc32:08x}",
            image_shape=IMAGE_SHAPE,
            factor_names=sprites.FACTOR_NAMES,
            factor_values=[v[:n] for v, n in zip(sprites.factor_values(), sizes, strict=True)],
        )
        self.bits = cached.bits
        self._map_when_unpickled(cached.place)
        self.differing_pixels = cached.notes["differing_pixels"]
        self.differing_images = cached.notes["differing_images"]

    @classmethod
    def generated(
        cls,
        cache_dir: StrPath | None = None,
        progress: bool = True,
        *,
        _grid: Sequence[int] = sprites.FACTOR_SIZES,
    ) -> DSprites:
        """The generated images: made within seconds at the first call, mapped from the cache afterwards.

        Raises `DataError` when the cache directory cannot be used.
        """

        def build(append: Callable[[Array], None]) -> dict[str, int]:
            with _bar("generating dSprites", _grid, progress) as bar:
                for block in sprites.generate(_grid):
                    append(block)
                    bar.update(len(block))
            return {"differing_pixels": 0, "differing_images": 0}

        source = f"{_GENERATED}-{'x'.join(map(str, _grid))}"
        path = cache.directory(cache_dir) / f"{source}.bits"
        cached = cache.load_or_build(path, source, (math.prod(_grid), sprites.ROW_BYTES), build)
        return cls(cached, _GENERATED, _grid)

    @classmethod
    def genuine(
        cls,
        path: StrPath,
        cache_dir: StrPath | None = None,
        progress: bool = True,
        *,
        _grid: Sequence[int] = sprites.FACTOR_SIZES,
    ) -> DSprites:
        """The images of a published ``.npz`` or ``.hdf5`` file.

        The first call packs them into a cache file of their own, checking shapes, types, values and order,
        and compares them with the generated images (`differing_pixels`, and a line in the log). Nothing is
        unpickled. Raises `DataError` saying what is wrong with the file.
        """
        path = existing(path)
        form = file_format(path)
        if form not in ("zip", "hdf5"):
            raise DataError(f"{path}: not dSprites: neither a .npz nor an HDF5 file; {_AGAIN}")
        origin = Origin.of(path, progress)

        def build(append: Callable[[Array], None]) -> dict[str, int]:
            pixels = images = 0
            with _bar(f"packing {printable(path.name)}", _grid, progress) as bar:
                for block, generated in zip(_blocks(path, form, _grid), sprites.generate(_grid), strict=True):
                    append(block)
                    different = (block != generated).any(axis=1)
                    images += int(different.sum())
                    pixels += int(np.unpackbits(block[different] ^ generated[different]).sum())
                    bar.update(len(block))
            _ = origin.content  # the checksum as well must be of what was packed
            if Origin.of(path).state != origin.state:
                raise DataError(f"{path}: was written to while it was read; load it when that is done")
            logger.info(
                "%s: %d images differ from the generated ones, in %d pixels", printable(path), images, pixels
            )
            return {"differing_pixels": pixels, "differing_images": images}

        identity = f"{path} {_GENERATED} {tuple(_grid)}"
        source = f"dsprites-genuine-{hashlib.sha256(os.fsencode(identity)).hexdigest()[:32]}"
        file = cache.directory(cache_dir) / f"{source}.bits"
        cached = cache.load_or_build(file, source, (math.prod(_grid), sprites.ROW_BYTES), build, origin)
        return cls(cached, "dsprites-genuine", _grid)

    def images(self, index: Index) -> torch.Tensor:
        """float32 ``[*index.shape, 1, 64, 64]``, 0 or 1."""
        index = self._checked(index)
        packed = self.bits.index_select(0, index.flatten())
        pixels = np.unpackbits(packed.numpy(), axis=1, bitorder="little")
        return torch.from_numpy(pixels).float().view(*index.shape, *IMAGE_SHAPE)


def _bar(what: str, sizes: Sequence[int], progress: bool) -> Any:
    return tqdm(total=math.prod(sizes), desc=what, unit="img", unit_scale=True, disable=not progress)


def _blocks(path: Path, form: str, sizes: Sequence[int]) -> Iterator[Array]:
    """The packed images of a genuine file, uint8 ``[n, 512]``, in the blocks of `sprites.generate`."""
    count, block = math.prod(sizes), math.prod(sizes[2:])
    try:
        with open_columns(path, form) as columns:
            images, classes = (_column(path, columns, name) for name in _KEYS[form])
            if images.dtype != np.uint8 or images.shape != (count, 64, 64):
                raise DataError(f"{path}: imgs is {images} instead of uint8 {[count, 64, 64]}; {_AGAIN}")
            if classes.dtype.kind not in "iu" or classes.shape != (count, 1 + len(sizes)):
                wanted = f"integers {[count, 1 + len(sizes)]}"
                raise DataError(f"{path}: the latent classes are {classes} instead of {wanted}; {_AGAIN}")
            check_size(path, "imgs", images)
            for start in range(0, count, block):
                _check_order(path, classes.read(block), sizes, start)
                yield _packed(path, images.read(block), start)
    except DataError:
        raise
    except DAMAGE as error:
        raise damaged(path, error, _AGAIN) from error


def _check_order(path: Path, classes: Array, sizes: Sequence[int], start: int) -> None:
    expected = np.pad(grid_classes(sizes, start, start + len(classes)), ((0, 0), (1, 0)))
    wrong = (classes != expected).any(axis=1)
    if wrong.any():
        first = int(wrong.argmax())
        raise DataError(
            f"{path}: image {start + first} has the latent classes {classes[first].tolist()} where "
            f"{expected[first].tolist()} belong: not in the published order; {_AGAIN}"
        )


def _packed(path: Path, images: Array, start: int) -> Array:
    if images.max() > 1:
        first = int((images > 1).any(axis=(1, 2)).argmax())
        raise DataError(
            f"{path}: image {start + first} has the value {images[first].max()}, "
            f"but dSprites holds 0 and 1 only; {_AGAIN}"
        )
    return np.packbits(images.reshape(len(images), -1), axis=1, bitorder="little")


def _column(path: Path, columns: dict[str, Column], name: str) -> Column:
    if name not in columns:
        raise DataError(f"{path}: not dSprites: it holds {', '.join(columns)} instead of {name}; {_AGAIN}")
    return columns[name]


def images_of_dsprites(path: Path) -> int | None:
    """How many images a file with the arrays of dSprites has, None without; `DataError` when it cannot be told."""
    form = file_format(path)
    if form not in _KEYS:
        return None
    try:
        with open_columns(path, form) as columns:
            if not set(_KEYS[form]) <= set(columns):
                return None
            return (*columns["imgs"].shape, 0)[0]
    except DAMAGE as error:
        raise damaged(path, error, "make or download it again") from error
