"""Black and white images drawn from grey ones."""

from __future__ import annotations

import torch
from torch import Tensor

from pyvae.data.dataset import Dataset, FactorDataset, Index
from pyvae.errors import DataError
from pyvae.random import Stream, uniform, word


def binarise(images: Tensor, key: Tensor, stream: Stream = Stream.BINARISATION) -> Tensor:
    """Each pixel white with the probability that its grey says (Salakhutdinov & Murray 2008).

    Args:
        images: ``[B, C, H, W]`` in [0, 1].
        key: int64 ``[2]``, of which image b draws row b; or ``[B, 2]``, of which each image draws row 0.
        stream: to draw from.

    Returns:
        float32 of the shape of ``images``, 0 or 1.
    """
    rows = len(images) if key.ndim == 1 else 1
    draws = uniform(key, rows, images.shape[1:].numel(), stream)
    return (draws.view(images.shape) < images).float()


class Binarised(Dataset):
    """A data set of grey images, each binarised once for all: image i is a function of (seed, i)."""

    def __init__(self, dataset: Dataset, seed: int = 0) -> None:
        check_binarisable(dataset)
        super().__init__(name=dataset.name, fingerprint=dataset.fingerprint, image_shape=dataset.image_shape)
        self._dataset = dataset
        self._seed = word(seed)

    def __len__(self) -> int:
        return len(self._dataset)

    def images(self, index: Index) -> Tensor:
        """float32 ``[*index.shape, C, H, W]``, 0 or 1."""
        index = self._checked(index)
        rows = index.flatten()
        grey = self._dataset.images(rows)
        key = torch.stack([torch.full_like(rows, self._seed), rows], -1)
        return binarise(grey, key).view(*index.shape, *self.image_shape)


def check_binarisable(dataset: Dataset) -> None:
    """Raise DataError for a data set of known factors, black and white or in colour, unless its pixels are grey."""
    if isinstance(dataset, FactorDataset) and (dataset.pixels is None or dataset.image_shape[0] != 1):
        raise DataError(
            f"binarise stochastic: for grey images, but those of {dataset.name} are not: --binarise none"
        )
