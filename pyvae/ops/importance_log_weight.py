"""``importance_log_weight``: log p(x, z) - log q(z|x) of importance samples."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pyvae import reference
from pyvae.backend import device_of, take
from pyvae.base.checks import PixelLayout, accumulation_dtype, flatten_importance, importance_layout
from pyvae.base.transforms import compiled
from pyvae.ops.library import Operator, as_dtype, next_power_of_two, register_differentiable

_TILE = 1024
Gradients = tuple[Tensor, Tensor, Tensor, Tensor]


def block(pixels: int) -> int:
    """Pixels of one program: eight for each thread of four warps, as bernoulli_nll has them."""
    return min(max(next_power_of_two(pixels), 16), 1024)


def columns(latents: int) -> int:
    """Latents that a program takes at a time."""
    return min(next_power_of_two(latents), 128)


def _pixels(logits: Tensor, target: Tensor, z: Tensor, layout: PixelLayout) -> tuple[Tensor, Tensor]:
    """Flattened logits and target whose pixels are dense; a bool target is read as its bytes."""
    logits, target = flatten_importance(logits, target, z, layout)
    target = target.view(torch.uint8) if target.dtype == torch.bool else target
    return (
        logits if logits.stride(-1) == 1 else logits.contiguous(),
        target if target.stride(-1) == 1 else target.contiguous(),
    )


def _posteriors(mu: Tensor, logvar: Tensor) -> tuple[Tensor, Tensor]:
    """[members * B, D], rows dense: the halves of an encoder's head are not copied."""
    m, lv = mu.reshape(-1, mu.shape[-1]), logvar.reshape(-1, mu.shape[-1])
    return (m if m.stride(-1) == 1 else m.contiguous(), lv if lv.stride(-1) == 1 else lv.contiguous())


def _launch_forward(
    logits: Tensor, target: Tensor, z: Tensor, mu: Tensor, logvar: Tensor, layout: PixelLayout
) -> tuple[Tensor, Tensor]:
    from pyvae.kernels.importance_log_weight import importance_log_weight_fwd_kernel

    flat_logits, flat_target = _pixels(logits, target, z, layout)
    m, lv = _posteriors(mu, logvar)
    size, samples = block(layout.pixels), flat_logits.shape[2]
    blocks = -(-layout.pixels // size)
    partial = torch.empty((*z.shape[:-1], blocks), dtype=torch.float32, device=z.device)
    log_ratio = torch.empty(z.shape[:-1], dtype=torch.float32, device=z.device)
    with device_of(z):
        importance_log_weight_fwd_kernel[(partial.numel(),)](
            flat_logits, flat_target, z.contiguous(), m, lv, partial, log_ratio,
            layout.batch, samples, layout.pixels, z.shape[-1],
            *flat_logits.stride()[:3], *flat_target.stride()[:2], m.stride(0), lv.stride(0),
            1.0 / layout.target_max,
            PACKED=layout.packed, BLOCK=size, COLUMNS=columns(z.shape[-1]),
        )  # fmt: skip
    return partial.squeeze(-1) if blocks == 1 else partial.sum(-1), log_ratio


def _launch_backward(
    grad_likelihood: Tensor,
    grad_ratio: Tensor,
    logits: Tensor,
    target: Tensor,
    z: Tensor,
    mu: Tensor,
    logvar: Tensor,
    layout: PixelLayout,
) -> Gradients:
    from pyvae.kernels import importance_log_weight as kernels

    flat_logits, flat_target = _pixels(logits, target, z, layout)
    m, lv = _posteriors(mu, logvar)
    size, samples, latents = block(layout.pixels), flat_logits.shape[2], z.shape[-1]
    grad_logits = torch.empty(logits.shape, dtype=logits.dtype, device=logits.device)
    grad_z = torch.empty(z.shape, dtype=z.dtype, device=z.device)
    wide = columns(latents)
    rows = min(next_power_of_two(samples), _TILE // wide)
    sample_blocks = -(-samples // rows)
    grad_mu, grad_logvar = (
        torch.empty((*mu.shape[:-1], sample_blocks, latents), dtype=torch.float32, device=mu.device)
        for _ in range(2)
    )
    with device_of(z):
        kernels.importance_log_weight_bwd_logits_kernel[(grad_likelihood.numel() * -(-layout.pixels // size),)](
            grad_likelihood.contiguous(), flat_logits, flat_target, grad_logits,
            layout.batch, samples, layout.pixels,
            *flat_logits.stride()[:3], *flat_target.stride()[:2], 1.0 / layout.target_max,
            PACKED=layout.packed, BLOCK=size,
        )  # fmt: skip
        kernels.importance_log_weight_bwd_latents_kernel[(len(m) * sample_blocks * -(-latents // wide),)](
            grad_ratio.contiguous(), z.contiguous(), m, lv, grad_z, grad_mu, grad_logvar,
            samples, latents, m.stride(0), lv.stride(0), ROWS=rows, COLUMNS=wide,
        )  # fmt: skip
    if sample_blocks == 1:
        return (
            grad_logits,
            grad_z,
            as_dtype(grad_mu.squeeze(-2), mu.dtype),
            as_dtype(grad_logvar.squeeze(-2), mu.dtype),
        )
    return grad_logits, grad_z, as_dtype(grad_mu.sum(-2), mu.dtype), as_dtype(grad_logvar.sum(-2), mu.dtype)


def _native_inputs(
    logits: Tensor, target: Tensor, z: Tensor, mu: Tensor, logvar: Tensor, layout: PixelLayout
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, float, bool]:
    """What the compiled operators take: rows in two dimensions, all float32 but for targets of bytes."""
    flat_logits, flat_target = _pixels(logits, target, z, layout)
    if flat_target.dtype not in (torch.float32, torch.uint8):
        flat_target = flat_target.float()
    rows = (flat_logits.reshape(-1, layout.pixels), z.reshape(-1, z.shape[-1]), *_posteriors(mu, logvar))
    x, sampled, m, lv = (as_dtype(row) for row in rows)
    target_rows = flat_target.reshape(len(m), -1)
    return x, target_rows, sampled, m, lv, 1.0 / layout.target_max, layout.packed


def _native_backward(
    grad_likelihood: Tensor,
    grad_ratio: Tensor,
    logits: Tensor,
    target: Tensor,
    z: Tensor,
    mu: Tensor,
    logvar: Tensor,
    layout: PixelLayout,
) -> Gradients:
    gradients = torch.ops.pyvae_native.importance_log_weight_bwd.default(
        grad_likelihood.reshape(-1),
        grad_ratio.reshape(-1),
        *_native_inputs(logits, target, z, mu, logvar, layout),
    )
    inputs = (logits, z, mu, logvar)
    one, two, three, four = (
        as_dtype(g.view(x.shape), x.dtype) for g, x in zip(gradients, inputs, strict=True)
    )
    return one, two, three, four


def _backend(logits: Tensor, z: Tensor, *others: Tensor) -> str:
    if not logits.numel():
        return "reference"
    decides, other = (z, logits) if z.dtype == torch.float64 else (logits, z)
    return take("importance_log_weight", decides, other, *others)


def _forward(
    logits: Tensor, target: Tensor, z: Tensor, mu: Tensor, logvar: Tensor, target_max: int | None
) -> tuple[Tensor, Tensor]:
    backend = _backend(logits, z, target, mu, logvar)
    if backend == "reference":
        return reference.importance_log_parts(logits, target, z, mu, logvar, target_max=target_max)
    layout = importance_layout(logits, target, z, mu, logvar, target_max)
    if backend == "native":
        inputs = _native_inputs(logits, target, z, mu, logvar, layout)
        likelihood, ratio = torch.ops.pyvae_native.importance_log_weight_fwd.default(*inputs)
        return likelihood.view(z.shape[:-1]), ratio.view(z.shape[:-1])
    return _launch_forward(logits, target, z, mu, logvar, layout)


def _backward(
    grad_likelihood: Tensor,
    grad_ratio: Tensor,
    logits: Tensor,
    target: Tensor,
    z: Tensor,
    mu: Tensor,
    logvar: Tensor,
    target_max: int | None,
) -> Gradients:
    inputs, backend = (logits, target, z, mu, logvar), _backend(logits, z)
    if backend == "reference":
        return reference.importance_log_weight_backward(grad_likelihood, grad_ratio, *inputs, target_max)
    layout = importance_layout(*inputs, target_max)
    if backend == "native":
        return _native_backward(grad_likelihood, grad_ratio, *inputs, layout)
    return _launch_backward(grad_likelihood, grad_ratio, *inputs, layout)


def _fake(
    logits: Tensor, target: Tensor, z: Tensor, mu: Tensor, logvar: Tensor, target_max: int | None
) -> tuple[Tensor, Tensor]:
    return (
        torch.empty(z.shape[:-1], dtype=accumulation_dtype(logits.dtype), device=z.device),
        torch.empty(z.shape[:-1], dtype=accumulation_dtype(z.dtype), device=z.device),
    )


def _fake_backward(
    grad_likelihood: Tensor,
    grad_ratio: Tensor,
    logits: Tensor,
    target: Tensor,
    z: Tensor,
    mu: Tensor,
    logvar: Tensor,
    target_max: int | None,
) -> Gradients:
    one, two, three, four = (
        torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (logits, z, mu, logvar)
    )
    return one, two, three, four


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.target_max = inputs
    ctx.save_for_backward(*tensors)


def _gradient(
    op: Callable[..., Gradients], ctx: Any, grad_likelihood: Tensor, grad_ratio: Tensor
) -> tuple[Tensor | None, ...]:
    gradients = op(grad_likelihood, grad_ratio, *ctx.saved_tensors, ctx.target_max)
    needs = (ctx.needs_input_grad[0], *ctx.needs_input_grad[2:5])
    logits, *latents = (g if need else None for g, need in zip(gradients, needs, strict=True))
    return logits, None, *latents, None


_INPUTS = "Tensor logits, Tensor target, Tensor z, Tensor mu, Tensor logvar, int? target_max"
_ImportanceLogWeight = register_differentiable(
    "importance_log_weight",
    Operator(f"({_INPUTS}) -> (Tensor, Tensor)", _forward, _fake),
    Operator(
        f"(Tensor grad_likelihood, Tensor grad_ratio, {_INPUTS}) -> (Tensor, Tensor, Tensor, Tensor)",
        _backward,
        _fake_backward,
    ),
    reference.importance_log_weight_backward,
    _setup_context,
    _gradient,
)


def importance_log_parts(
    logits: Tensor, target: Tensor, z: Tensor, mu: Tensor, logvar: Tensor, *, target_max: int | None = None
) -> tuple[Tensor, Tensor]:
    """The two parts of :func:`importance_log_weight`, which takes the same arguments.

    Returns:
        log p(x|z), whose gradient goes to the logits alone, and log p(z) - log q(z|x), whose gradient goes to z, mu
        and logvar alone; each ``[..., B, M, K]`` in nats.
    """
    inputs = (logits, target, z, mu, logvar)
    importance_layout(*inputs, target_max)
    if compiled():
        return torch.ops.pyvae.importance_log_weight(*inputs, target_max)
    needed = torch.is_grad_enabled() and any(x.requires_grad for x in (logits, z, mu, logvar))
    if needed and _backend(logits, z, target, mu, logvar) != "reference":
        return _ImportanceLogWeight.apply(*inputs, target_max)
    return _forward(*inputs, target_max)


def importance_log_weight(
    logits: Tensor, target: Tensor, z: Tensor, mu: Tensor, logvar: Tensor, *, target_max: int | None = None
) -> Tensor:
    """Log importance weights ``log p(x|z) + log p(z) - log q(z|x)`` of Bernoulli images, in nats.

    Burda et al. 2016, "Importance weighted autoencoders", section 3, with prior N(0, I) and posterior N(mu,
    exp(logvar)). ``pyvae.objectives.importance`` makes bounds and gradient coefficients of it.

    Gradients go to logits, z, mu and logvar, each as if the others were independent: with a reparameterised z they add
    up to the total one. Passing ``mu.detach()`` and ``logvar.detach()`` leaves out how q's own density moves with its
    parameters: the path of STL and DReG.

    Args:
        logits: ``[..., B, M, K, *image]``, float32, bfloat16, float16 or float64; M samples of K, or any two numbers.
        target: the images, shared by the samples of each: as :func:`pyvae.bernoulli_nll` takes them for logits
            ``[..., B, *image]``.
        z: samples ``[..., B, M, K, D]``, in the dtype of ``mu``.
        mu: ``[..., B, D]``, float32, bfloat16, float16 or float64.
        logvar: log sigma^2, of the shape and dtype of ``mu``.
        target_max: 1 or 255: what a lit pixel of a uint8 target is. ``None``: uint8 targets are bits.

    Returns:
        ``[..., B, M, K]``, float32 (float64 if logits or z are).

    Raises:
        TypeError: wrong dtype. ValueError: wrong shape, device or option.

    >>> import torch
    >>> z = torch.zeros(1, 2, 3, 10)
    >>> importance_log_weight(torch.zeros(1, 2, 3, 8), torch.ones(1, 8), z, z[:, 0, 0], z[:, 0, 0]).shape
    torch.Size([1, 2, 3])
    """
    log_likelihood, log_ratio = importance_log_parts(logits, target, z, mu, logvar, target_max=target_max)
    return log_likelihood + log_ratio
