"""Batches of black and white images, drawn anew from grey ones in every step."""

import torch
from torch import Tensor

from pyvae.backend import device_of, takes_triton
from pyvae.data import binarised
from pyvae.engine.batches import Batch, Batches
from pyvae.random import Stream, check_counters, word

_BLOCK = 128


class BinarisedBatches:
    """Batches of another source, each pixel white with the probability that its grey says: image b draws row b of
    (seed, step)."""

    def __init__(self, batches: Batches, seed: int, device: torch.device, stream: Stream) -> None:
        self._batches = batches
        self._seed = torch.tensor(word(seed), dtype=torch.int64, device=device)
        self._stream = stream
        self.prepare = batches.prepare

    def batch(self, step: Tensor) -> Batch:
        grey = self._batches.batch(step)
        images = binarise(grey.images, self._seed, step, self._stream)
        return Batch(images, images, None, grey.which)


def binarise(images: Tensor, seed: Tensor, step: Tensor, stream: Stream) -> Tensor:
    """:func:`pyvae.data.binarised.binarise` of (seed, step), int64 ``[]`` each; one kernel where Triton runs."""
    if not takes_triton(images.device):
        return binarised.binarise(images, torch.stack([seed, step]), stream)
    return _launch(images.contiguous(), seed, step, stream)


def _launch(images: Tensor, seed: Tensor, step: Tensor, stream: Stream) -> Tensor:
    from pyvae.kernels.binarise import binarise_kernel

    pixels = images[0].numel()
    quads = -(-pixels // 4)
    counters = len(images) * quads
    check_counters(counters)
    white = torch.empty_like(images)
    with device_of(images):
        binarise_kernel[(-(-counters // _BLOCK),)](
            images, seed, step, white, counters, quads, pixels,
            STREAM=int(stream), WHOLE=pixels % 4 == 0, BLOCK=_BLOCK,
        )  # fmt: skip
    return white
