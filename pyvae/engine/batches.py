"""Batches as a function of (seed, step): which images, and the images themselves."""

import math

import torch
from torch import Tensor

from pyvae.data.dataset import Dataset
from pyvae.random import Stream, data_order
from pyvae.reference import unpack_bits

_AHEAD = 256


class BatchOrder:
    """Indices of the images of each step: epoch after epoch, each a permutation of the data set.

    Position ``step * batch_size + i`` of the run stands in epoch ``position // size``; a batch may straddle two.
    """

    def __init__(
        self, seed: int, size: int, batch_size: int, device: torch.device, stream: Stream = Stream.DATA_ORDER
    ) -> None:
        self._seed = torch.tensor(seed, dtype=torch.int64, device=device)
        self._size = size
        self._batch_size = batch_size
        self._stream = stream
        self._first = -_AHEAD
        self._ahead = torch.empty(0, dtype=torch.int64, device=device)

    def index(self, step: int) -> Tensor:
        """int64 ``[batch_size]``; computed for many steps at once, which changes nothing but the speed."""
        if not self._first <= step < self._first + _AHEAD:
            self._first = step
            self._ahead = self._compute(step, _AHEAD)
        return self._ahead[step - self._first]

    def _compute(self, step: int, count: int) -> Tensor:
        positions = torch.arange(count * self._batch_size, device=self._seed.device) + step * self._batch_size
        epoch = positions // self._size
        key = torch.stack([self._seed.expand_as(epoch), epoch], -1)
        return data_order(key, positions % self._size, self._size, stream=self._stream).view(
            count, self._batch_size
        )


class ImageSource:
    """Images of a data set on a device: bits stay resident there where the data set has them."""

    def __init__(self, dataset: Dataset, device: torch.device) -> None:
        self._dataset = dataset
        self._device = device
        bits = getattr(dataset, "bits", None)
        self._bits: Tensor | None = bits.to(device) if bits is not None and device.type != "cpu" else None

    def batch(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Images float32 ``[B, C, H, W]`` in [0, 1], and the target of their loss: the same, or their bits."""
        if self._bits is None:
            images = self._dataset.images(index.cpu()).to(self._device, non_blocking=True)
            return images, images
        packed = self._bits[index]
        shape = self._dataset.image_shape
        images = unpack_bits(packed, math.prod(shape)).view(len(index), *shape).float()
        return images, packed
