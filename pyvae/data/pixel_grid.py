"""Images on the grid of their factors as bytes: packed once from the published files, then mapped from the cache."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy.typing as npt
import torch

from pyvae.data import cache
from pyvae.data.dataset import FactorDataset, Index
from pyvae.data.origin import Origin
from pyvae.errors import DataError

Array = npt.NDArray[Any]
Append = Callable[[Array], None]
SIDE = 64


class PixelGrid(FactorDataset):
    """A published data set of grey or colour images, one for each combination of its factors.

    The bytes are kept in the cache, and packed again when a file was replaced or written to since. They are mapped, not
    read: of more images than fit in memory the system holds those that are in use. Pickling copies no pixels.

    Args:
        name: of the data set, with which its fingerprint begins.
        path: of the file or folder.
        channels: 1 or 3.
        factors: the values of each factor by its name, the last factor the fastest.
        version: of how the images are made; another one is packed anew.
        found: the files as they are now.
        pack: ``pack(append)`` hands over all images in the order of the grid, ``append(uint8 [n, C * 64 * 64])``.
        cache_dir: where the packed images are kept; see `pyvae.data.cache.directory`.

    Raises:
        DataError: files that are written to at this moment; a cache that cannot be written; what ``pack`` raises.
    """

    pixels: torch.Tensor
    """uint8 ``[N, C, 64, 64]``, mapped from the cache, copied on write."""

    def __init__(
        self,
        *,
        name: str,
        path: Path,
        channels: int,
        factors: Mapping[str, Array],
        version: str,
        found: Callable[[], Origin],
        pack: Callable[[Append], None],
        cache_dir: str | os.PathLike[str] | None,
    ) -> None:
        shape = (channels, SIDE, SIDE)
        sizes = [len(values) for values in factors.values()]
        count, row = math.prod(sizes), math.prod(shape)
        identity = f"{os.fsencode(path)!r} {version} {sizes}"
        source = f"{name}-{hashlib.sha256(identity.encode()).hexdigest()[:32]}"
        file = cache.directory(cache_dir) / f"{source}.pixels"
        origin = found()

        def build(append: Append) -> dict[str, int]:
            cache.check_room(file, count * row)
            pack(append)
            # the checksum as well must be of what was packed
            _ = origin.content
            if found().state != origin.state:
                raise DataError(f"{path}: was written to while it was read; load it when that is done")
            return {}

        cached = cache.load_or_build(file, source, (count, row), build, origin)
        super().__init__(
            name=name,
            fingerprint=f"{name}-crc32:{cached.crc32:08x}",
            image_shape=shape,
            factor_names=tuple(factors),
            factor_values=tuple(factors.values()),
        )
        self.pixels = cached.bits.view(count, *shape)
        self._map_when_unpickled(cached.place._replace(shape=(count, *shape)))

    def images(self, index: Index) -> torch.Tensor:
        """float32 ``[*index.shape, C, 64, 64]`` in [0, 1]."""
        index = self._checked(index)
        pixels = self.pixels.index_select(0, index.flatten())
        return pixels.float().div_(255).view(*index.shape, *self.image_shape)
