"""What every dataset offers, and what those with known factors of variation offer beyond it."""

from __future__ import annotations

import math
import operator
import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import torch
import torch.utils.data

from pyvae.base.files import open_regular
from pyvae.data.place import Place
from pyvae.errors import DataError

Index = torch.Tensor | npt.NDArray[Any] | Sequence[Any] | int


class Dataset(torch.utils.data.Dataset[torch.Tensor], ABC):
    """Images, of which nothing more need be known.

    ``dataset[i]`` is an image, float32 ``[C, H, W]`` in [0, 1], ``dataset[a:b]`` several of them, and a
    `torch.utils.data.DataLoader` gives batches of them. Negative numbers count from the end, as in a list. Of known
    factors, `FactorDataset.factor_classes` gives the classes; `torch.utils.data.StackDataset` puts them beside the
    images.

    To methods, an index may be an int, a list, a numpy array or a tensor of any integer dtype and any shape; results
    are tensors on the CPU whose leading dimensions are those of the index. A value outside of ``[0, len)`` raises
    `IndexError`, anything but integers `TypeError`.
    """

    name: str
    fingerprint: str
    """A short identity that is the same wherever the content is the same."""
    image_shape: tuple[int, int, int]
    """Channels, height, width."""
    bits: torch.Tensor | None = None
    """uint8 ``[N, C * H * W / 8]`` where the images are kept as bits: eight to a byte, little bit order."""
    pixels: torch.Tensor | None = None
    """uint8 ``[N, C, H, W]`` where the images are kept as bytes, in memory or mapped from a file."""

    def __init__(self, *, name: str, fingerprint: str, image_shape: tuple[int, int, int]) -> None:
        self.name = name
        self.fingerprint = fingerprint
        self.image_shape = image_shape

    @abstractmethod
    def __len__(self) -> int: ...

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.fingerprint}: {len(self)} images {self.image_shape})"

    @abstractmethod
    def images(self, index: Index) -> torch.Tensor:
        """float32 ``[*index.shape, C, H, W]`` in [0, 1]."""

    def __getitem__(self, index: int | slice) -> torch.Tensor:
        if isinstance(index, slice):
            return self.images(np.arange(len(self))[index])
        try:
            at = operator.index(index)
        except TypeError:
            raise TypeError(
                f"an int or a slice expected in [], got {type(index).__name__}; images(index) takes lists and tensors"
            ) from None
        if not -len(self) <= at < len(self):
            raise IndexError(f"index {at} is out of range for {len(self)} images")
        return self.images(at % len(self))

    def __getitems__(self, indices: Sequence[int]) -> list[torch.Tensor]:
        """A batch at once, which the workers of a DataLoader ask for."""
        index = torch.tensor(indices, dtype=torch.int64)
        return list(self.images(torch.where(index < 0, index + len(self), index)))

    def _map_when_unpickled(self, place: Place) -> None:
        """Have the bits or pixels, as they are now, mapped from their place in the cache when they are unpickled."""
        self._place = place
        self._mapped = self.bits if self.pixels is None else self.pixels

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        mapped: torch.Tensor | None = state.pop("_mapped", None)
        # what was written to is not in the cache
        if mapped is not None and not mapped.is_inference() and mapped._version == 0:
            for name in ("bits", "pixels"):
                if state.get(name) is mapped:
                    state[name] = self._place
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        for name in ("bits", "pixels"):
            if isinstance(state.get(name), Place):
                setattr(self, name, state[name].map())
                self._map_when_unpickled(state[name])

    def _checked(self, index: Index) -> torch.Tensor:
        index = _integers(index, "index")
        if index.numel():
            low, high = (int(end) for end in torch.aminmax(index))
            if low < 0 or high >= len(self):
                raise IndexError(f"index {low if low < 0 else high} is out of range for {len(self)} images")
        return index


class FactorDataset(Dataset):
    """Images on the full grid of their factors: one image for every combination of factor classes.

    Image ``i`` has the classes that are the digits of ``i`` in the mixed radix of `factor_sizes`, the last
    factor the fastest.
    """

    factor_names: tuple[str, ...]
    factor_sizes: tuple[int, ...]

    def __init__(
        self,
        *,
        name: str,
        fingerprint: str,
        image_shape: tuple[int, int, int],
        factor_names: Sequence[str],
        factor_values: Sequence[npt.NDArray[Any]],
    ) -> None:
        super().__init__(name=name, fingerprint=fingerprint, image_shape=image_shape)
        self.factor_names = tuple(factor_names)
        self.factor_sizes = tuple(len(values) for values in factor_values)
        self._values = [torch.tensor(values, dtype=torch.float64) for values in factor_values]
        self._sizes = torch.tensor(self.factor_sizes)
        self._strides = torch.tensor(strides(self.factor_sizes))

    def __len__(self) -> int:
        return math.prod(self.factor_sizes)

    def __repr__(self) -> str:
        sizes = ", ".join(f"{n} {s}" for n, s in zip(self.factor_names, self.factor_sizes, strict=True))
        return f"{super().__repr__()[:-1]}; {sizes})"

    def factor_classes(self, index: Index) -> torch.Tensor:
        """int64 ``[*index.shape, F]``: class ``0 .. factor_sizes[f] - 1`` of each factor."""
        return self._checked(index)[..., None] // self._strides % self._sizes

    def factor_values(self, index: Index) -> torch.Tensor:
        """float64 ``[*index.shape, F]``: the generative values of each factor."""
        classes = self.factor_classes(index)
        return torch.stack([values[classes[..., f]] for f, values in enumerate(self._values)], dim=-1)

    def index(self, classes: Index) -> torch.Tensor:
        """int64 ``[...]`` for integer classes ``[..., F]``: the inverse of `factor_classes`.

        Raises `ValueError` when the last dimension is not F, `IndexError` when a factor has no such class.
        """
        classes = _integers(classes, "classes")
        if classes.dim() == 0 or classes.shape[-1] != len(self.factor_sizes):
            raise ValueError(
                f"classes: last dimension must be {len(self.factor_sizes)}, got {list(classes.shape)}"
            )
        wrong = (classes < 0) | (classes >= self._sizes)
        if wrong.any():
            *_, factor = place = tuple(wrong.nonzero()[0].tolist())
            raise IndexError(
                f"class {int(classes[place])} of {self.factor_names[factor]} is out of range "
                f"for {self.factor_sizes[factor]} classes"
            )
        return (classes * self._strides).sum(-1)


def strides(sizes: Sequence[int]) -> list[int]:
    """How far apart two neighbouring classes of each factor are in the order of the images."""
    return [math.prod(sizes[f + 1 :]) for f in range(len(sizes))]


def grid_classes(sizes: Sequence[int], start: int, stop: int) -> npt.NDArray[np.int64]:
    """int64 ``[stop - start, F]``: the factor classes of images ``start .. stop - 1`` of a grid."""
    return np.arange(start, stop)[:, None] // np.array(strides(sizes)) % np.array(sizes)


IDX_TYPES = {
    bytes([kind]): name
    for kind, name in [
        (8, "bytes"),
        (9, "signed bytes"),
        (11, "16-bit integers"),
        (12, "32-bit integers"),
        (13, "floats"),
        (14, "doubles"),
    ]
}
"""What the values of an IDX file are, by the third byte of its first four."""


def file_format(path: Path) -> str:
    """ "zip", "npy", "hdf5", "idx" or "gzip" by the first bytes.

    Raises `DataError` for what is none, empty, not there, or no regular file.
    """
    try:
        with open_regular(path) as file:
            start = file.read(8)
            is_hdf5 = _is_hdf5(file)
    except OSError as error:
        raise DataError(f"{path}: cannot be opened ({error.strerror}); check the path") from error
    if not start:
        raise DataError(f"{path}: the file is empty; download it again")
    if start.startswith(b"PK"):
        return "zip"
    if start.startswith(b"\x93NUMPY"):
        return "npy"
    if is_hdf5:
        return "hdf5"
    if start.startswith(b"\0\0") and start[2:3] in IDX_TYPES:
        return "idx"
    if start.startswith(b"\x1f\x8b"):
        return "gzip"
    raise DataError(
        f"{path}: neither a .npz (zip), a .npy nor an HDF5 (or IDX) file; give such a file, or the folder "
        "of the image files"
    )


def _is_hdf5(file: IO[bytes]) -> bool:
    """Whether the signature is where HDF5 looks for it: after a block of somebody else's, MATLAB's for one."""
    at, end = 0, file.seek(0, os.SEEK_END)
    while at < end:
        file.seek(at)
        if file.read(8) == b"\x89HDF\r\n\x1a\n":
            return True
        at = 2 * at or 512
    return False


def _integers(value: Index, name: str) -> torch.Tensor:
    if not isinstance(value, torch.Tensor):
        array = np.asarray(value)
        if array.size and array.dtype.kind not in "iu":
            raise TypeError(f"{name}: integers expected, got {array.dtype}")
        return torch.tensor(array.astype(np.int64))
    if value.is_floating_point() or value.is_complex() or value.dtype == torch.bool:
        raise TypeError(f"{name}: integers expected, got {value.dtype}")
    return value.to(device="cpu", dtype=torch.int64)
