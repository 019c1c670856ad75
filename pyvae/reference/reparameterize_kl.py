"""``reparameterize_kl``: samples of the posterior and its KL to the prior."""

import torch
from torch import Tensor

from pyvae.base.checks import accumulation_dtype, check_finite, check_latents, expand_key
from pyvae.random import Stream, check_key, fresh_key, normal


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
