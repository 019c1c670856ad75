"""``reparameterize_kl``: sample the posterior and its KL divergence to the prior in one pass."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pyvae import reference
from pyvae.backend import device_of, take
from pyvae.base.checks import accumulation_dtype, check_device, check_finite, check_latents, expand_key
from pyvae.base.transforms import compiled
from pyvae.ops.library import Operator, as_dtype, detour, next_power_of_two, register_differentiable
from pyvae.random import Stream, check_draw, check_key, fresh_key

_TILE = 1024


def tile(batch: int, latents: int) -> tuple[int, int]:
    """Rows and columns of a program's tile: about 1,024 elements, eight for each thread of four warps."""
    columns = min(next_power_of_two(max(latents, 4)), 128)
    return min(next_power_of_two(batch), _TILE // columns), columns


def _launch_forward(mu: Tensor, logvar: Tensor, key: Tensor, stream: int) -> tuple[Tensor, Tensor]:
    from pyvae.kernels.reparameterize_kl import reparameterize_kl_fwd_kernel

    check_finite(mu, logvar)
    lead, batch, latents = mu.shape[:-2], mu.shape[-2], mu.shape[-1]
    m, lv = mu.reshape(-1, batch, latents), logvar.reshape(-1, batch, latents)
    key, sharing = expand_key(key, lead)
    rows, columns = tile(batch, latents)
    row_blocks = -(-batch // rows)
    z = torch.empty(mu.shape, dtype=mu.dtype, device=mu.device)
    partial = torch.empty((m.shape[0], row_blocks, latents), dtype=torch.float32, device=mu.device)
    grid = (m.shape[0] * row_blocks * -(-latents // columns),)
    with device_of(mu):
        reparameterize_kl_fwd_kernel[grid](
            m, lv, key.contiguous(), z, partial, batch, latents, sharing, *m.stride(), *lv.stride(),
            STREAM=stream, ROWS=rows, COLUMNS=columns,
        )  # fmt: skip
    kl = partial.squeeze(1) if row_blocks == 1 else partial.sum(1)
    return z, kl.reshape(*lead, latents)


def _launch_backward(
    grad_z: Tensor | None, grad_kl: Tensor | None, mu: Tensor, logvar: Tensor, key: Tensor, stream: int
) -> tuple[Tensor, Tensor]:
    from pyvae.kernels.reparameterize_kl import reparameterize_kl_bwd_kernel

    lead, batch, latents = mu.shape[:-2], mu.shape[-2], mu.shape[-1]
    m, lv = mu.reshape(-1, batch, latents), logvar.reshape(-1, batch, latents)
    gz = m if grad_z is None else grad_z.reshape(-1, batch, latents)
    gk = m[:, 0] if grad_kl is None else grad_kl.reshape(-1, latents)
    key, sharing = expand_key(key, lead)
    rows, columns = tile(batch, latents)
    grad_mu = torch.empty(mu.shape, dtype=mu.dtype, device=mu.device)
    grad_logvar = torch.empty_like(grad_mu)
    grid = (m.shape[0] * -(-batch // rows) * -(-latents // columns),)
    with device_of(mu):
        reparameterize_kl_bwd_kernel[grid](
            gz, gk, m, lv, key.contiguous(), grad_mu, grad_logvar, batch, latents, sharing,
            *gz.stride(), *gk.stride(), *m.stride(), *lv.stride(),
            HAS_GRAD_Z=grad_z is not None, HAS_GRAD_KL=grad_kl is not None,
            STREAM=stream, ROWS=rows, COLUMNS=columns,
        )  # fmt: skip
    return grad_mu, grad_logvar


def _native_forward(mu: Tensor, logvar: Tensor, key: Tensor, stream: int) -> tuple[Tensor, Tensor]:
    check_finite(mu, logvar)
    key, _ = expand_key(key, mu.shape[:-2])
    z, kl = torch.ops.pyvae_native.reparameterize_kl_fwd.default(as_dtype(mu), as_dtype(logvar), key, stream)
    return as_dtype(z, mu.dtype), kl


def _native_backward(
    grad_z: Tensor | None, grad_kl: Tensor | None, mu: Tensor, logvar: Tensor, key: Tensor, stream: int
) -> tuple[Tensor, Tensor]:
    key, _ = expand_key(key, mu.shape[:-2])
    grad_z = None if grad_z is None else as_dtype(grad_z)
    grad_mu, grad_logvar = torch.ops.pyvae_native.reparameterize_kl_bwd.default(
        grad_z, grad_kl, as_dtype(mu), as_dtype(logvar), key, stream
    )
    return as_dtype(grad_mu, mu.dtype), as_dtype(grad_logvar, mu.dtype)


def _reference_forward(mu: Tensor, logvar: Tensor, key: Tensor, stream: int) -> tuple[Tensor, Tensor]:
    return reference.reparameterize_kl(mu, logvar, key=key, stream=stream)


_FORWARD = {
    "reference": _reference_forward,
    "triton": _launch_forward,
    "native": _native_forward,
}
_BACKWARD = {
    "reference": reference.reparameterize_kl_backward,
    "triton": _launch_backward,
    "native": _native_backward,
}


def _backend(mu: Tensor, *others: Tensor) -> str:
    return take("reparameterize_kl", mu, *others) if mu.numel() else "reference"


def _forward(mu: Tensor, logvar: Tensor, key: Tensor, stream: int) -> tuple[Tensor, Tensor]:
    check_draw(key, mu.shape)  # which torch.compile could not, of a size that it leaves open
    return _FORWARD[_backend(mu)](mu, logvar, key, stream)


def _backward(
    grad_z: Tensor | None, grad_kl: Tensor | None, mu: Tensor, logvar: Tensor, key: Tensor, stream: int
) -> tuple[Tensor, Tensor]:
    return _BACKWARD[_backend(mu)](grad_z, grad_kl, mu, logvar, key, stream)


def _fake(mu: Tensor, logvar: Tensor, key: Tensor, stream: int) -> tuple[Tensor, Tensor]:
    z = torch.empty(mu.shape, dtype=mu.dtype, device=mu.device)
    kl = torch.empty((*mu.shape[:-2], mu.shape[-1]), dtype=accumulation_dtype(mu.dtype), device=mu.device)
    return z, kl


def _fake_backward(
    grad_z: Tensor | None, grad_kl: Tensor | None, mu: Tensor, logvar: Tensor, key: Tensor, stream: int
) -> tuple[Tensor, Tensor]:
    grad = torch.empty(mu.shape, dtype=mu.dtype, device=mu.device)
    return grad, torch.empty_like(grad)


def _setup_context(
    ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, int], output: tuple[Tensor, Tensor]
) -> None:
    mu, logvar, key, ctx.stream = inputs
    ctx.save_for_backward(mu, logvar, key)
    ctx.set_materialize_grads(False)


def _gradient(
    op: Callable[..., tuple[Tensor, Tensor]], ctx: Any, grad_z: Tensor | None, grad_kl: Tensor | None
) -> tuple[Tensor | None, ...]:
    if grad_z is None and grad_kl is None:
        return None, None, None, None
    grad_mu, grad_logvar = op(grad_z, grad_kl, *ctx.saved_tensors, ctx.stream)
    needs_mu, needs_logvar = ctx.needs_input_grad[:2]
    return grad_mu if needs_mu else None, grad_logvar if needs_logvar else None, None, None


_ReparameterizeKL = register_differentiable(
    "reparameterize_kl",
    Operator("(Tensor mu, Tensor logvar, Tensor key, int stream) -> (Tensor, Tensor)", _forward, _fake),
    Operator(
        "(Tensor? grad_z, Tensor? grad_kl, Tensor mu, Tensor logvar, Tensor key, int stream) -> (Tensor, Tensor)",
        _backward,
        _fake_backward,
    ),
    reference.reparameterize_kl_backward,
    _setup_context,
    _gradient,
)


class _KeptReparameterizeKL(torch.autograd.Function):
    """On a CPU, where arithmetic and not memory is the limit: ``z - mu`` is kept for the backward."""

    @staticmethod
    def forward(ctx: Any, mu: Tensor, logvar: Tensor, key: Tensor, stream: int) -> tuple[Tensor, Tensor]:
        check_finite(mu, logvar)
        expanded, _ = expand_key(key, mu.shape[:-2])
        z, kl, shift = torch.ops.pyvae_native.reparameterize_kl_fwd_keeping.default(
            as_dtype(mu), as_dtype(logvar), expanded, stream
        )
        ctx.save_for_backward(mu, logvar, key, shift)
        ctx.stream = stream
        ctx.set_materialize_grads(False)
        return as_dtype(z, mu.dtype), kl

    @staticmethod
    def backward(ctx: Any, grad_z: Tensor | None, grad_kl: Tensor | None) -> tuple[Tensor | None, ...]:
        return _gradient(_backward_kept, ctx, grad_z, grad_kl)


def _backward_kept(
    grad_z: Tensor | None,
    grad_kl: Tensor | None,
    mu: Tensor,
    logvar: Tensor,
    key: Tensor,
    shift: Tensor,
    stream: int,
) -> tuple[Tensor, Tensor]:
    registered = torch.ops.pyvae.reparameterize_kl_backward
    if op := detour(registered, reference.reparameterize_kl_backward, (grad_z, grad_kl)):
        grad_mu, grad_logvar = op(grad_z, grad_kl, mu, logvar, key, stream)
        return grad_mu, grad_logvar
    grad_z = None if grad_z is None else as_dtype(grad_z)
    grad_mu, grad_logvar = torch.ops.pyvae_native.reparameterize_kl_bwd_kept.default(
        grad_z, grad_kl, as_dtype(mu), as_dtype(logvar), shift
    )
    return as_dtype(grad_mu, mu.dtype), as_dtype(grad_logvar, mu.dtype)


def reparameterize_kl(
    mu: Tensor, logvar: Tensor, *, key: Tensor | None = None, stream: int = Stream.POSTERIOR
) -> tuple[Tensor, Tensor]:
    """Sample a diagonal Gaussian posterior and its KL divergence to the standard normal prior.

    ``z = mu + exp(logvar / 2) * eps`` and ``kl_j = mean_B 1/2 (mu_j^2 + exp(logvar_j) - 1 - logvar_j)``
    (Kingma & Welling 2014, appendix B). The noise is a function of (key, stream, row, dimension) alone; the backward
    pass draws it again instead of storing it, but for eager calls on a CPU, where memory is cheaper than arithmetic.

    Args:
        mu: ``[..., B, D]``, float32, bfloat16, float16 or float64, any strides. The last dimension is the latents,
            the one before it the batch, whatever the rank; those in front are ensemble members. Maps ``[B, D, H, W]``
            are for :class:`pyvae.modules.ReparameterizeKL`, or come as ``mu.flatten(1)``.
        logvar: log sigma^2, of the shape, dtype and device of ``mu``.
        key: int64 ``[2]`` of (seed, step), or one for each member, ``[members, 2]``. Rows of members that share a
            key count on, so no two of them draw the same noise. ``None`` takes a seed from torch's default
            generator, so that ``torch.manual_seed`` governs it.
        stream: which of the independent streams of the key to draw from.

    Returns:
        ``z`` ``[..., B, D]`` in the dtype of ``mu``, and ``kl`` ``[..., D]`` in nats, averaged over the batch
        (NaN for an empty one, as torch.mean), float32 (float64 for float64). ``kl.sum(-1)`` is the KL divergence.

    Raises:
        TypeError: wrong dtype. ValueError: wrong shape or device.

    >>> import torch
    >>> z, kl = reparameterize_kl(torch.zeros(64, 10), torch.zeros(64, 10))
    >>> z.shape, float(kl.sum())
    (torch.Size([64, 10]), 0.0)
    """
    check_latents(mu, logvar)
    if key is None:
        key = fresh_key(mu.device)
    else:
        check_key(key)
        check_device("key", key, "mu", mu)
    check_draw(key, mu.shape)
    stream = int(stream)
    if compiled():
        return torch.ops.pyvae.reparameterize_kl(mu, logvar, key, stream)
    backend = _backend(mu, logvar, key)
    # the reference's own graph is differentiable any number of times
    if backend != "reference" and torch.is_grad_enabled() and (mu.requires_grad or logvar.requires_grad):
        function = _KeptReparameterizeKL if backend == "native" else _ReparameterizeKL
        return function.apply(mu, logvar, key, stream)
    return _FORWARD[backend](mu, logvar, key, stream)
