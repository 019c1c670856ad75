"""A decoder as a page holds it: with rounded weights, and what the rounding costs."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pyvae.report.explorer.lowering import CannotRunError, lower
from pyvae.report.explorer.rounding import byte, short
from pyvae.report.explorer.stages import Product, Stage, run

BUDGET = 4_000_000
"""Bytes above which linear layers are held in bytes, the largest first."""
MOST = 32_000_000
"""Bytes of weights above which a page would be no page any more."""
_LARGE = 2**16
"""Weights of a linear layer that are worth it."""
_BATCH = 64


@dataclass(frozen=True)
class Held:
    """A decoder with the weights that the page has of it."""

    stages: list[Stage]
    bytes: int
    """Of its products' weights, before they are written as text."""
    largest: float
    """Difference of a pixel, of 0 to 1, from the network's."""
    mean: float
    codes: int
    """That the differences were measured on."""

    @torch.inference_mode()
    def means(self, codes: Tensor) -> Tensor:
        """Pixels ``[B, C, H, W]`` in [0, 1] of codes ``[B, D]``, as the page computes them."""
        return torch.sigmoid(run(self.stages, codes))

    def accuracy(self) -> str:
        """What the rounding is and costs, in a sentence."""
        kinds = {product.weight.kind for product in _products(self.stages)}
        how = "16 bits each"
        if "byte" in kinds:
            how = "8 bits each" + (", those of small layers in 16" * (len(kinds) > 1))
        return (
            f"The page holds the weights in {how} ({_size(self.bytes)}). Of pixels from 0 to 1, that moves none by "
            f"more than {_ceiling(self.largest)}, and all by {_small(self.mean)} on average, measured on "
            f"{self.codes:,} images over the range of these sliders."
        )


@torch.inference_mode()
def hold(decoder: nn.Module, codes: Tensor) -> Held:
    """Round the weights of a decoder, to two bytes each, or in large layers to one where that would be too much.

    Args:
        decoder: in evaluation, on the CPU; maps codes ``[B, D]`` to logits ``[B, C, H, W]``.
        codes: float32 ``[B, D]`` to measure the loss of accuracy on.

    Raises:
        CannotRunError: a page cannot compute it.
    """
    stages = _rounded(lower(decoder, codes[:2]))
    size = sum(product.weight.bytes for product in _products(stages))
    if size > MOST:
        raise CannotRunError(f"its weights would make the page {_size(size * 4 // 3)} larger")
    largest, total, count = 0.0, 0.0, 0
    for part in codes.split(_BATCH):
        error = (torch.sigmoid(run(stages, part)) - torch.sigmoid(decoder(part))).abs()
        largest = max(largest, float(error.amax()))
        total += float(error.double().sum())
        count += error.numel()
    return Held(stages, size, largest, total / count, len(codes))


def _rounded(stages: list[Stage]) -> list[Stage]:
    found = [s.held(short) if isinstance(s, Product) else s for s in stages]
    large = [
        (s.weight.values.numel(), i) for i, s in enumerate(stages) if isinstance(s, Product) and _is_large(s)
    ]
    for _, i in sorted(large, reverse=True):
        if sum(product.weight.bytes for product in _products(found)) <= BUDGET:
            break
        [product] = _products(stages[i : i + 1])
        found[i] = product.held(byte)
    return found


def _is_large(product: Product) -> bool:
    return len(product.reads) == 1 and product.weight.values.numel() >= _LARGE


def _products(stages: list[Stage]) -> list[Product]:
    return [stage for stage in stages if isinstance(stage, Product)]


def _size(count: int) -> str:
    return f"{count / 1e6:.1f} MB" if count >= 1e5 else f"{max(count / 1e3, 0.1):.1f} kB"


def _ceiling(difference: float) -> str:
    return f"{math.ceil(max(difference, 1e-9) * 1e4) / 1e4:.4f}"


def _small(difference: float) -> str:
    if difference < 1e-4:
        return "less than 0.0001"
    return f"{difference:.4f}" if difference < 0.01 else f"{difference:.3f}"
