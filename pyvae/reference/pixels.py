"""Pixels: eight of them in a byte, and the cost of one."""

import torch
import torch.nn.functional as F
from torch import Tensor


def unpack_bits(packed: Tensor, pixels: int) -> Tensor:
    """Bits [..., ceil(pixels / 8)] (uint8, little bit order) to uint8 pixels [..., pixels] of 0 and 1."""
    bit = torch.arange(8, dtype=torch.uint8, device=packed.device)
    return ((packed.unsqueeze(-1) >> bit) & 1).flatten(-2)[..., :pixels]


def pack_bits(pixels: Tensor) -> Tensor:
    """Pixels [..., n] (zero or not) to packed bits [..., ceil(n / 8)] (uint8, little bit order)."""
    lit = F.pad((pixels != 0).to(torch.uint8), (0, -pixels.shape[-1] % 8)).unflatten(-1, (-1, 8))
    bit = torch.arange(8, dtype=torch.uint8, device=pixels.device)
    return (lit << bit).sum(-1, dtype=torch.uint8)


def pixel_nll(logits: Tensor, x: Tensor) -> Tensor:
    """softplus(l) - l x of each pixel. An infinite logit is a certain answer: it costs nothing if it is right, else
    infinitely much, where torch's function and its derivatives are NaN."""
    certain = logits.isinf()
    nll = F.binary_cross_entropy_with_logits(logits.masked_fill(certain, 0.0), x, reduction="none")
    missed = (logits > 0).to(x.dtype) - x
    # 0 where nothing is missed, as the limit is; infinity times 0 is NaN
    cost = (logits * missed).masked_fill(certain & (missed == 0), 0.0)
    return torch.where(certain, cost, nll)
