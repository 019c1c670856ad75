"""``aggregate_log_density``: the aggregate posterior and the product of its marginals, from one batch."""

import math

import torch
from torch import Tensor

from pyvae.base.checks import accumulation_dtype, check_aggregate
from pyvae.base.transforms import is_known

Weights = tuple[float | Tensor, float | Tensor, float | Tensor]
"""log W of the image itself, of the one after it, and of each other image of the batch."""


def check_weighting(batch: int, dataset_size: int, weighting: str) -> None:
    """Raise unless the batch, where its size is known, can be weighted so."""
    if weighting not in ("mws", "mss"):
        raise ValueError(f"weighting: expected 'mws' or 'mss', got {weighting!r}")
    if not is_known(batch):
        return
    if dataset_size < max(batch, 1):
        raise ValueError(f"dataset_size: {dataset_size} is smaller than the batch of {batch}")
    if weighting == "mss" and batch < 2:
        raise ValueError(f"weighting: 'mss' needs a batch of at least 2, got {batch}")


def aggregate_log_weights(batch: int, dataset_size: int, weighting: str) -> tuple[float, float, float]:
    """:data:`Weights` of a batch whose size is known."""
    check_weighting(batch, dataset_size, weighting)
    if weighting == "mws":
        uniform_weight = -math.log(dataset_size * max(batch, 1))
        return uniform_weight, uniform_weight, uniform_weight
    others = batch - 1
    successor = (dataset_size - others) / (dataset_size * others)
    return -math.log(dataset_size), math.log(successor), -math.log(others)


def log_weights_of(z: Tensor, dataset_size: int, weighting: str) -> Weights:
    """:data:`Weights` for samples ``[..., B, D]``: numbers, or tensors in a trace that leaves B open."""
    if is_known(z.shape[-2]):
        return aggregate_log_weights(z.shape[-2], dataset_size, weighting)
    batch = torch.ones(z.shape[-2], dtype=accumulation_dtype(z.dtype), device=z.device).sum()
    if weighting == "mws":
        uniform_weight = -torch.log(dataset_size * batch)
        return uniform_weight, uniform_weight, uniform_weight
    others = batch - 1
    successor = torch.log((dataset_size - others) / (dataset_size * others))
    return -math.log(dataset_size), successor, -torch.log(others)


def _pairs(z: Tensor, mu: Tensor, logvar: Tensor, weights: Weights) -> tuple[Tensor, Tensor, Tensor]:
    """log N(z_ij; mu_mj, exp(logvar_mj)) and (z - mu) / sigma, [..., B, B, D], and log W [B, B]."""
    dtype = accumulation_dtype(z.dtype)
    m, lv = mu.to(dtype).unsqueeze(-3), logvar.to(dtype).unsqueeze(-3)
    distance = (z.to(dtype).unsqueeze(-2) - m) * torch.exp(-0.5 * lv)
    density = -0.5 * (math.log(2 * math.pi) + lv + distance.square())
    index = torch.arange(z.shape[-2], device=z.device)
    own, successor, other = (torch.as_tensor(w, dtype=dtype, device=z.device) for w in weights)
    is_own, is_successor = (index == x.unsqueeze(-1) for x in (index, index.roll(-1)))
    log_weight = torch.where(is_own, own, torch.where(is_successor, successor, other))
    return density, distance, log_weight


def aggregate_log_density_table(z: Tensor, mu: Tensor, logvar: Tensor, weights: Weights) -> Tensor:
    """log q(z_ij) of each dimension and, in the last column, log q(z_i): [..., B, D + 1]."""
    density, _, log_weight = _pairs(z, mu, logvar, weights)
    terms = torch.cat([density, density.sum(-1, keepdim=True)], -1)
    return torch.logsumexp(terms + log_weight.unsqueeze(-1), -2)


def aggregate_log_density(
    z: Tensor, mu: Tensor, logvar: Tensor, *, dataset_size: int, weighting: str = "mws"
) -> tuple[Tensor, Tensor]:
    """Specification of :func:`pyvae.aggregate_log_density`."""
    check_aggregate(z, mu, logvar)
    check_weighting(z.shape[-2], dataset_size, weighting)
    table = aggregate_log_density_table(z, mu, logvar, log_weights_of(z, dataset_size, weighting))
    return table[..., -1], table[..., :-1].sum(-1)


def aggregate_log_density_backward(
    grad: Tensor, z: Tensor, mu: Tensor, logvar: Tensor, log_q: Tensor, weights: Weights
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
