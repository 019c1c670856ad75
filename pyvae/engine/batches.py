"""Batches as a function of (seed, step): which images, and the images themselves, without a word from the device."""

import math
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from pyvae.base.workers import Workers
from pyvae.data.dataset import Dataset
from pyvae.engine.staging import Staging
from pyvae.functional import gather_bits
from pyvae.random import Stream, bits, data_order, word

WINDOW = 1024
"""Steps whose indices are drawn at once."""
STREAMED_WINDOW = 16
"""Steps whose images are read at once where they do not fit on the device."""
_SHARE_OF_FREE_MEMORY = 0.6


class BatchOrder:
    """Indices of the images of each step.

    Epoch after epoch, each a permutation of the data set: position ``step * batch_size + i`` of the run stands in epoch
    ``position // size``, and a batch may straddle two. With replacement, every image of a batch is drawn by itself.
    """

    def __init__(
        self,
        seed: int,
        size: int,
        batch_size: int,
        device: torch.device,
        stream: Stream = Stream.DATA_ORDER,
        *,
        replacement: bool = False,
        window: int = WINDOW,
    ) -> None:
        self._seed = torch.tensor(word(seed), dtype=torch.int64, device=device)
        self._size = size
        self._batch_size = batch_size
        self._stream = stream
        self._draw = self._with_replacement if replacement else self._by_epochs
        self._base = -1
        self._ahead = torch.empty((window, batch_size), dtype=torch.int64, device=device)

    def prepare(self, step: int) -> None:
        """See to it that :meth:`index` knows ``step`` and the others of its window."""
        window = len(self._ahead)
        base = step - step % window
        if base != self._base:
            self._ahead.copy_(self.draw(base, window))
            self._base = base

    def index(self, step: Tensor) -> Tensor:
        """int64 ``[batch_size]`` of a step int64 ``[]`` on the device."""
        return self._ahead.index_select(0, (step % len(self._ahead)).view(1)).view(-1)

    def draw(self, first: int, count: int) -> Tensor:
        """int64 ``[count, batch_size]`` of the steps from ``first`` on."""
        return self._draw(first, count)

    def _by_epochs(self, first: int, count: int) -> Tensor:
        positions = (
            torch.arange(count * self._batch_size, device=self._seed.device) + first * self._batch_size
        )
        epoch = positions // self._size
        key = torch.stack([self._seed.expand_as(epoch), epoch], -1)
        order = data_order(key, positions % self._size, self._size, stream=self._stream)
        return order.view(count, self._batch_size)

    def _with_replacement(self, first: int, count: int) -> Tensor:
        steps = torch.arange(count, device=self._seed.device) + first
        key = torch.stack([self._seed.expand_as(steps), steps], -1)
        high, low = bits(key, self._batch_size, 2, self._stream).unbind(-1)
        # floor(size * 64-bit fraction), in two products that fit into 64 bits
        return (high * self._size + (low * self._size >> 32)) >> 32


class Batch(NamedTuple):
    """Images float32 ``[B, C, H, W]`` in [0, 1], the same as the target of ``bernoulli_nll``, and which they are."""

    images: Tensor
    target: Tensor
    target_max: int | None
    which: Tensor


class Batches(Protocol):
    """Where the batches of a run come from."""

    def prepare(self, step: int) -> None:
        """See to it that :meth:`batch` can be asked for ``step`` and what follows it in its window."""
        ...

    def batch(self, step: Tensor) -> Batch:
        """The batch of a step int64 ``[]`` on the device; no host code depends on it."""
        ...


class Resident:
    """Images that lie on the device, as bits or as bytes."""

    def __init__(self, store: Tensor, image_shape: tuple[int, int, int], order: BatchOrder) -> None:
        self._store = store
        self._shape = image_shape
        self._order = order
        self.prepare = order.prepare

    def batch(self, step: Tensor) -> Batch:
        return _gathered(self._store, self._order.index(step), self._shape)


def _gathered(store: Tensor, index: Tensor, image_shape: Sequence[int]) -> Batch:
    """Rows of a store of bits ``[N, bytes]`` or of bytes ``[N, C, H, W]``."""
    if store.ndim == 2:
        images, packed = gather_bits(store, index, pixels=math.prod(image_shape))
        return Batch(images.view(-1, *image_shape), packed, None, index)
    return _of_bytes(store.index_select(0, index), index)


def _of_bytes(rows: Tensor, index: Tensor) -> Batch:
    return Batch(rows.float() / 255, rows, 255, index)


class Streamed:
    """Images that are read on the host, one window ahead of the steps that need them."""

    def __init__(
        self, read: Callable[[Tensor], Tensor], order: BatchOrder, device: torch.device, window: int
    ) -> None:
        self._read = read
        self._order = order
        self._window = window
        self._base = -1
        self._staging = Staging(device, window)
        self._reader = Workers(1, "pyvae-read")
        self._next: tuple[int, Future[list[Tensor]]] | None = None

    def prepare(self, step: int) -> None:
        base = step - step % self._window
        if base == self._base:
            return
        if self._next:
            wait([self._next[1]])  # even for a window that is not wanted: it has the pinned memory
        ahead = self._next is not None and self._next[0] == base
        self._staging.put(base, self._next[1].result() if self._next and ahead else self._load(base))
        self._base = base
        following = base + self._window
        self._next = (following, self._reader.submit(self._load, following))

    def batch(self, step: Tensor) -> Batch:
        rows, index = self._staging.at(step)
        return _of_bytes(rows, index) if rows.dtype == torch.uint8 else Batch(rows, rows, None, index)

    def _load(self, base: int) -> list[Tensor]:
        """Images of a window and which they are."""
        index = self._order.draw(base, self._window)
        rows = self._read(index.flatten())
        return self._staging.pin(base, [rows.view(*index.shape, *rows.shape[1:]), index])


class ImageSource:
    """The images of a data set on a device: resident there where they fit, else read ahead of time."""

    def __init__(self, dataset: Dataset, device: torch.device) -> None:
        self._dataset = dataset
        self._device = device
        store = fitting(dataset, device)
        self._store = None if store is None else store.to(device)

    def batches(
        self, seed: int, batch_size: int, stream: Stream = Stream.DATA_ORDER, *, replacement: bool = False
    ) -> Batches:
        """Batches of a run, whose order is that of its seed and the stream."""
        size = len(self._dataset)
        if self._store is not None:
            order = BatchOrder(seed, size, batch_size, self._device, stream, replacement=replacement)
            return Resident(self._store, self._dataset.image_shape, order)
        cpu = torch.device("cpu")
        window = STREAMED_WINDOW if self._device.type == "cuda" else 1
        order = BatchOrder(seed, size, batch_size, cpu, stream, replacement=replacement, window=window)
        pixels = self._dataset.pixels
        read = self._dataset.images if pixels is None else lambda index: pixels.index_select(0, index)
        return Streamed(read, order, self._device, window)

    def images(self, index: Tensor) -> Tensor:
        """Images float32 ``[B, C, H, W]`` on the device."""
        if self._store is None:
            return self._dataset.images(index.cpu()).to(self._device)
        index = index.to(self._device, non_blocking=True)
        return _gathered(self._store, index, self._dataset.image_shape).images


def fitting(dataset: Dataset, device: torch.device) -> Tensor | None:
    """Bits or bytes of the data set on the host, if it has any and they fit on the device; else None."""
    store = dataset.pixels if dataset.bits is None else dataset.bits
    if store is None:
        return None
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        if store.numel() > _SHARE_OF_FREE_MEMORY * free:
            return None
    return store
