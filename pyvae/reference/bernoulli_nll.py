"""``bernoulli_nll``: the reconstruction error of Bernoulli pixels."""

import torch
from torch import Tensor

from pyvae.base.checks import accumulation_dtype, flatten_pixels, pixel_layout
from pyvae.reference.pixels import pixel_nll, unpack_bits


def bernoulli_nll(
    logits: Tensor,
    target: Tensor,
    *,
    reduction: str = "batchmean",
    event_dims: int | None = None,
    target_max: int | None = None,
) -> Tensor:
    """Specification of :func:`pyvae.bernoulli_nll`."""
    layout = pixel_layout(logits, target, reduction, event_dims, target_max)
    flat_logits, flat_target = flatten_pixels(logits, target, layout)
    dtype = accumulation_dtype(logits.dtype)
    x = unpack_bits(flat_target, layout.pixels) if layout.packed else flat_target
    x = x.to(dtype) / layout.target_max
    per_image = pixel_nll(flat_logits.to(dtype), x).sum(-1)
    if reduction == "none":
        return per_image.reshape(*layout.lead, layout.batch)
    total = per_image.mean(-1) if reduction == "batchmean" else per_image.sum(-1)
    return total.reshape(layout.lead)


def bernoulli_nll_backward(
    grad_loss: Tensor, logits: Tensor, target: Tensor, reduction: str, event_dims: int, target_max: int | None
) -> Tensor:
    """Gradient with respect to the logits: (sigmoid(logits) - target) times the gradient of each image's loss."""
    layout = pixel_layout(logits, target, reduction, event_dims, target_max)
    flat_logits, flat_target = flatten_pixels(logits, target, layout)
    dtype = accumulation_dtype(logits.dtype)
    x = unpack_bits(flat_target, layout.pixels) if layout.packed else flat_target
    per_image = grad_loss.reshape(layout.members, -1, 1).to(dtype)
    if reduction == "batchmean":
        per_image = per_image / layout.batch
    grad = (torch.sigmoid(flat_logits.to(dtype)) - x.to(dtype) / layout.target_max) * per_image
    return grad.to(logits.dtype).reshape(logits.shape)
