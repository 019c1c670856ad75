"""``importance_log_weight``: log weights of importance samples."""

import torch
from torch import Tensor

from pyvae.base.checks import accumulation_dtype, flatten_importance, importance_layout
from pyvae.reference.pixels import pixel_nll, unpack_bits


def _standardised(z: Tensor, mu: Tensor, logvar: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """z, (z - mu) / sigma, logvar and 1 / sigma in the accumulation dtype, [..., B, M, K, D] and [..., B, 1, 1, D]."""
    dtype = accumulation_dtype(z.dtype)
    m, lv = (x.to(dtype).unsqueeze(-2).unsqueeze(-2) for x in (mu, logvar))
    precise = torch.exp(-0.5 * lv)
    return z.to(dtype), (z.to(dtype) - m) * precise, lv, precise


def _importance_pixels(
    logits: Tensor, target: Tensor, z: Tensor, mu: Tensor, logvar: Tensor, target_max: int | None
) -> tuple[Tensor, Tensor]:
    """Logits [members, B, M K, pixels] and targets [members, B, 1, pixels] in the accumulation dtype."""
    layout = importance_layout(logits, target, z, mu, logvar, target_max)
    flat_logits, flat_target = flatten_importance(logits, target, z, layout)
    x = unpack_bits(flat_target, layout.pixels) if layout.packed else flat_target
    dtype = accumulation_dtype(logits.dtype)
    return flat_logits.to(dtype), x.unsqueeze(-2).to(dtype) / layout.target_max


def importance_log_parts(
    logits: Tensor, target: Tensor, z: Tensor, mu: Tensor, logvar: Tensor, *, target_max: int | None = None
) -> tuple[Tensor, Tensor]:
    """log p(x|z) and log p(z) - log q(z|x), each [..., B, M, K]: what :func:`importance_log_weight` adds up."""
    flat, x = _importance_pixels(logits, target, z, mu, logvar, target_max)
    log_likelihood = -pixel_nll(flat, x.expand_as(flat)).sum(-1)
    value, distance, lv, _ = _standardised(z, mu, logvar)
    # as a product, a difference of squares keeps its digits where posterior and prior are almost one
    log_ratio = 0.5 * ((distance - value) * (distance + value) + lv).sum(-1)
    return log_likelihood.reshape(z.shape[:-1]), log_ratio


def importance_log_weight(
    logits: Tensor, target: Tensor, z: Tensor, mu: Tensor, logvar: Tensor, *, target_max: int | None = None
) -> Tensor:
    """Specification of :func:`pyvae.importance_log_weight`."""
    log_likelihood, log_ratio = importance_log_parts(logits, target, z, mu, logvar, target_max=target_max)
    return log_likelihood + log_ratio


def importance_log_weight_backward(
    grad_likelihood: Tensor,
    grad_ratio: Tensor,
    logits: Tensor,
    target: Tensor,
    z: Tensor,
    mu: Tensor,
    logvar: Tensor,
    target_max: int | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of the two parts with respect to logits, z, mu and logvar."""
    flat, x = _importance_pixels(logits, target, z, mu, logvar, target_max)
    grad_logits = (x - torch.sigmoid(flat)) * grad_likelihood.reshape(*flat.shape[:-1], 1).to(flat.dtype)
    value, distance, _, precise = _standardised(z, mu, logvar)
    grad = grad_ratio.unsqueeze(-1).to(value.dtype)
    pull = grad * distance * precise
    grad_logvar = (grad * (0.5 - 0.5 * distance.square())).sum((-3, -2))
    return (
        grad_logits.to(logits.dtype).reshape(logits.shape),
        (pull - grad * value).to(z.dtype),
        -pull.sum((-3, -2)).to(mu.dtype),
        grad_logvar.to(logvar.dtype),
    )
