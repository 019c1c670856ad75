"""Every op in plain torch, on any device and in any float dtype: the specification that the kernels are tested
against, and what runs where no kernel does. float64 inputs are computed in float64, all others in float32."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from pyvae.checks import (
    accumulation_dtype,
    check_aggregate,
    check_finite,
    check_latents,
    expand_key,
    flatten_pixels,
    pixel_layout,
)
from pyvae.random import Stream, bits, check_key, fresh_key, normal


def posterior_noise(shape: torch.Size, key: Tensor, stream: int, dtype: torch.dtype) -> Tensor:
    """Standard normal noise of shape [..., B, D]; rows count on through the dimensions that share a key."""
    check_key(key)
    expanded, sharing = expand_key(key, shape[:-2])
    rows = sharing * shape[-2]
    return normal(expanded, rows, shape[-1], stream, dtype).reshape(shape)


def reparameterize_kl(
    mu: Tensor, logvar: Tensor, *, key: Tensor | None = None, stream: int = Stream.POSTERIOR
) -> tuple[Tensor, Tensor]:
    """Specification of :func:`pyvae.reparameterize_kl`."""
    check_latents(mu, logvar)
    check_finite(mu, logvar)
    key = fresh_key(mu.device) if key is None else key
    dtype = accumulation_dtype(mu.dtype)
    m, lv = mu.to(dtype), logvar.to(dtype)
    z = m + torch.exp(0.5 * lv) * posterior_noise(mu.shape, key, stream, dtype)
    # e^lv - 1 - lv cancels near lv = 0, where collapsed dimensions live
    kl = 0.5 * (m.square() + (torch.expm1(lv) - lv))
    return z.to(mu.dtype), kl.mean(-2)


def reparameterize_kl_backward(
    grad_z: Tensor | None, grad_kl: Tensor | None, mu: Tensor, logvar: Tensor, key: Tensor, stream: int
) -> tuple[Tensor, Tensor]:
    """Gradients of ``z`` and ``kl`` with respect to mu and logvar, with the noise drawn again from the key."""
    dtype = accumulation_dtype(mu.dtype)
    m, lv = mu.to(dtype), logvar.to(dtype)
    grad_mu, grad_logvar = torch.zeros_like(m), torch.zeros_like(lv)
    if grad_z is not None:
        noise = posterior_noise(mu.shape, key, stream, dtype)
        grad_mu = grad_mu + grad_z
        grad_logvar = grad_logvar + 0.5 * grad_z * torch.exp(0.5 * lv) * noise
    if grad_kl is not None:
        per_row = grad_kl.unsqueeze(-2) / mu.shape[-2]
        grad_mu = grad_mu + per_row * m
        grad_logvar = grad_logvar + 0.5 * per_row * torch.expm1(lv)
    return grad_mu.to(mu.dtype), grad_logvar.to(mu.dtype)


def unpack_bits(packed: Tensor, pixels: int) -> Tensor:
    """Bits [..., ceil(pixels / 8)] (uint8, little bit order) to uint8 pixels [..., pixels] of 0 and 1."""
    bit = torch.arange(8, dtype=torch.uint8, device=packed.device)
    return ((packed.unsqueeze(-1) >> bit) & 1).flatten(-2)[..., :pixels]


def pack_bits(pixels: Tensor) -> Tensor:
    """Pixels [..., n] (zero or not) to packed bits [..., ceil(n / 8)] (uint8, little bit order)."""
    lit = F.pad((pixels != 0).to(torch.uint8), (0, -pixels.shape[-1] % 8)).unflatten(-1, (-1, 8))
    bit = torch.arange(8, dtype=torch.uint8, device=pixels.device)
    return (lit << bit).sum(-1, dtype=torch.uint8)


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
    per_image = F.binary_cross_entropy_with_logits(flat_logits.to(dtype), x, reduction="none").sum(-1)
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


def aggregate_log_weights(batch: int, dataset_size: int, weighting: str) -> tuple[float, float, float]:
    """log W of the image itself, of the one after it, and of each other image of the batch."""
    if dataset_size < max(batch, 1):
        raise ValueError(f"dataset_size: {dataset_size} is smaller than the batch of {batch}")
    if weighting == "mws":
        uniform_weight = -math.log(dataset_size * max(batch, 1))
        return uniform_weight, uniform_weight, uniform_weight
    if weighting != "mss":
        raise ValueError(f"weighting: expected 'mws' or 'mss', got {weighting!r}")
    others = batch - 1
    if others < 1:
        raise ValueError(f"weighting: 'mss' needs a batch of at least 2, got {batch}")
    successor = (dataset_size - others) / (dataset_size * others)
    return -math.log(dataset_size), math.log(successor), -math.log(others)


def _pairs(
    z: Tensor, mu: Tensor, logvar: Tensor, weights: tuple[float, float, float]
) -> tuple[Tensor, Tensor, Tensor]:
    """log N(z_ij; mu_mj, exp(logvar_mj)) and (z - mu) / sigma, [..., B, B, D], and log W [B, B]."""
    dtype = accumulation_dtype(z.dtype)
    m, lv = mu.to(dtype).unsqueeze(-3), logvar.to(dtype).unsqueeze(-3)
    distance = (z.to(dtype).unsqueeze(-2) - m) * torch.exp(-0.5 * lv)
    density = -0.5 * (math.log(2 * math.pi) + lv + distance.square())
    index = torch.arange(z.shape[-2], device=z.device)
    own, successor, other = weights
    after = (index - index.unsqueeze(-1)) % max(z.shape[-2], 1)
    log_weight = torch.full(after.shape, other, dtype=dtype, device=z.device)
    log_weight = log_weight.masked_fill(after == 1, successor).masked_fill(after == 0, own)
    return density, distance, log_weight


def aggregate_log_density_table(
    z: Tensor, mu: Tensor, logvar: Tensor, weights: tuple[float, float, float]
) -> Tensor:
    """log q(z_ij) of each dimension and, in the last column, log q(z_i): [..., B, D + 1]."""
    density, _, log_weight = _pairs(z, mu, logvar, weights)
    terms = torch.cat([density, density.sum(-1, keepdim=True)], -1)
    return torch.logsumexp(terms + log_weight.unsqueeze(-1), -2)


def aggregate_log_density(
    z: Tensor, mu: Tensor, logvar: Tensor, *, dataset_size: int, weighting: str = "mws"
) -> tuple[Tensor, Tensor]:
    """Specification of :func:`pyvae.aggregate_log_density`."""
    check_aggregate(z, mu, logvar)
    weights = aggregate_log_weights(z.shape[-2], dataset_size, weighting)
    table = aggregate_log_density_table(z, mu, logvar, weights)
    return table[..., -1], table[..., :-1].sum(-1)


def aggregate_log_density_backward(
    grad: Tensor, z: Tensor, mu: Tensor, logvar: Tensor, log_q: Tensor, weights: tuple[float, float, float]
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of the table with respect to z, mu and logvar."""
    density, distance, log_weight = _pairs(z, mu, logvar, weights)
    w = log_weight.unsqueeze(-1)
    joint = torch.exp(density.sum(-1, keepdim=True) + w - log_q[..., -1:].unsqueeze(-2))
    each = torch.exp(density + w - log_q[..., :-1].unsqueeze(-2))
    share = grad[..., -1:].unsqueeze(-2) * joint + grad[..., :-1].unsqueeze(-2) * each
    pull = share * distance * torch.exp(-0.5 * logvar.to(share.dtype)).unsqueeze(-3)
    grad_logvar = (share * (0.5 * distance.square() - 0.5)).sum(-3)
    return (-pull.sum(-2)).to(z.dtype), pull.sum(-3).to(z.dtype), grad_logvar.to(z.dtype)


def permute_dims(z: Tensor, *, key: Tensor | None = None, stream: int = Stream.PERMUTATION) -> Tensor:
    """Specification of :func:`pyvae.permute_dims`: each dimension sorted by its own random words, ties by row."""
    return z.gather(-2, permutations(z, key, stream))


def permutations(z: Tensor, key: Tensor | None, stream: int) -> Tensor:
    """int64 [..., B, D]: which row each element of ``permute_dims(z)`` comes from."""
    key = fresh_key(z.device) if key is None else key
    check_key(key)
    expanded, sharing = expand_key(key, z.shape[:-2])
    words = bits(expanded, sharing * z.shape[-2], z.shape[-1], stream).reshape(z.shape)
    return words.argsort(stable=True, dim=-2)


def tc_batch(z: Tensor, z2: Tensor, *, key: Tensor | None = None) -> Tensor:
    """Specification of :func:`pyvae.tc_batch`: ``z`` above ``permute_dims(z2)``."""
    return torch.cat([z, permute_dims(z2, key=key)], -2)
