"""``bernoulli_nll``: the reconstruction loss of binary images, from logits."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pyvae import reference
from pyvae.backend import device_of, use_triton
from pyvae.checks import PixelLayout, accumulation_dtype, flatten_pixels, pixel_layout
from pyvae.ops.library import LIBRARY, next_power_of_two, refuse_double_backward


def block(pixels: int) -> int:
    """Pixels of one program: eight for each thread of four warps; more programs fill the device better."""
    return min(max(next_power_of_two(pixels), 16), 1024)


def _rows(logits: Tensor, target: Tensor, layout: PixelLayout) -> tuple[Tensor, Tensor]:
    """Flattened logits and target whose pixels are dense; a bool target is read as its bytes."""
    logits, target = flatten_pixels(logits, target, layout)
    target = target.view(torch.uint8) if target.dtype == torch.bool else target
    return (
        logits if logits.stride(-1) == 1 else logits.contiguous(),
        target if target.stride(-1) == 1 else target.contiguous(),
    )


def _launch_forward(logits: Tensor, target: Tensor, reduction: str, layout: PixelLayout) -> Tensor:
    from pyvae.kernels.bernoulli_nll import bernoulli_nll_fwd_kernel

    flat_logits, flat_target = _rows(logits, target, layout)
    size = block(layout.pixels)
    blocks = -(-layout.pixels // size)
    shape = (layout.members, layout.batch, blocks)
    partial = torch.empty(shape, dtype=torch.float32, device=logits.device)
    with device_of(logits):
        bernoulli_nll_fwd_kernel[(partial.numel(),)](
            flat_logits, flat_target, partial, layout.batch, layout.pixels,
            *flat_logits.stride()[:2], *flat_target.stride()[:2],
            1.0 / layout.target_max, 1.0 / layout.batch if reduction == "batchmean" else 1.0,
            PACKED=layout.packed, BLOCK=size,
        )  # fmt: skip
    if reduction == "none":
        return partial.sum(-1).reshape(*layout.lead, layout.batch)
    return partial.flatten(1).sum(-1).reshape(layout.lead)


def _launch_backward(
    grad_loss: Tensor, logits: Tensor, target: Tensor, reduction: str, layout: PixelLayout
) -> Tensor:
    from pyvae.kernels.bernoulli_nll import bernoulli_nll_bwd_kernel

    flat_logits, flat_target = _rows(logits, target, layout)
    size = block(layout.pixels)
    per_image = (
        grad_loss if reduction == "none" else grad_loss.unsqueeze(-1).expand(*layout.lead, layout.batch)
    )
    per_image = per_image.reshape(layout.members, layout.batch)
    grad_logits = torch.empty(logits.shape, dtype=logits.dtype, device=logits.device)
    with device_of(logits):
        bernoulli_nll_bwd_kernel[(layout.members * layout.batch * -(-layout.pixels // size),)](
            per_image, flat_logits, flat_target, grad_logits, layout.batch, layout.pixels,
            *per_image.stride(), *flat_logits.stride()[:2], *flat_target.stride()[:2],
            1.0 / layout.target_max, 1.0 / layout.batch if reduction == "batchmean" else 1.0,
            PACKED=layout.packed, BLOCK=size,
        )  # fmt: skip
    return grad_logits


def _forward(
    logits: Tensor, target: Tensor, reduction: str, event_dims: int, target_max: int | None
) -> Tensor:
    if logits.numel() and use_triton(logits):
        layout = pixel_layout(logits, target, reduction, event_dims, target_max)
        return _launch_forward(logits, target, reduction, layout)
    return reference.bernoulli_nll(
        logits, target, reduction=reduction, event_dims=event_dims, target_max=target_max
    )


def _backward_op(
    grad_loss: Tensor, logits: Tensor, target: Tensor, reduction: str, event_dims: int, target_max: int | None
) -> Tensor:
    if logits.numel() and use_triton(logits):
        layout = pixel_layout(logits, target, reduction, event_dims, target_max)
        return _launch_backward(grad_loss, logits, target, reduction, layout)
    return reference.bernoulli_nll_backward(grad_loss, logits, target, reduction, event_dims, target_max)


LIBRARY.define(
    "bernoulli_nll(Tensor logits, Tensor target, str reduction, int event_dims, int? target_max) -> Tensor"
)
LIBRARY.define(
    "bernoulli_nll_backward(Tensor grad_loss, Tensor logits, Tensor target, str reduction, int event_dims,"
    " int? target_max) -> Tensor"
)
LIBRARY.impl("bernoulli_nll", _forward, "CompositeExplicitAutograd")
LIBRARY.impl("bernoulli_nll_backward", _backward_op, "CompositeExplicitAutograd")


@torch.library.register_fake("pyvae::bernoulli_nll")
def _(logits: Tensor, target: Tensor, reduction: str, event_dims: int, target_max: int | None) -> Tensor:
    kept = logits.ndim - event_dims - (0 if reduction == "none" else 1)
    return torch.empty(logits.shape[:kept], dtype=accumulation_dtype(logits.dtype), device=logits.device)


@torch.library.register_fake("pyvae::bernoulli_nll_backward")
def _(
    grad_loss: Tensor, logits: Tensor, target: Tensor, reduction: str, event_dims: int, target_max: int | None
) -> Tensor:
    return torch.empty(logits.shape, dtype=logits.dtype, device=logits.device)


def _setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, str, int, int | None], output: Tensor) -> None:
    logits, target, *ctx.options = inputs
    ctx.save_for_backward(logits, target)


def _backward(op: Callable[..., Tensor], ctx: Any, grad_loss: Tensor) -> tuple[Tensor | None, ...]:
    return op(grad_loss, *ctx.saved_tensors, *ctx.options), None, None, None, None


# traced with fake tensors, so its backward must be an operator too
torch.library.register_autograd(
    "pyvae::bernoulli_nll",
    partial(_backward, torch.ops.pyvae.bernoulli_nll_backward),
    setup_context=_setup_context,
    lib=LIBRARY,
)
torch.library.register_autograd("pyvae::bernoulli_nll_backward", refuse_double_backward, lib=LIBRARY)


class _BernoulliNLL(torch.autograd.Function):
    forward = staticmethod(_forward)
    setup_context = staticmethod(_setup_context)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        # under create_graph=True the slower operator, which refuses gradients of gradients
        op = torch.ops.pyvae.bernoulli_nll_backward if torch.is_grad_enabled() else _backward_op
        return _backward(op, ctx, *grads)


def bernoulli_nll(
    logits: Tensor,
    target: Tensor,
    *,
    reduction: str = "batchmean",
    event_dims: int | None = None,
    target_max: int | None = None,
) -> Tensor:
    """Bernoulli negative log-likelihood of images, in nats, summed over pixels.

    ``sum_pixels softplus(l) - l x``, averaged over the batch, never over pixels: that would change beta by a factor
    of 4096 (Kingma & Welling 2014, appendix C.1).

    Args:
        logits: ``[..., B, *image]``, float32, bfloat16, float16 or float64.
        target: the images: float in [0, 1] or bool, of the shape of ``logits``; uint8 of that shape with
            ``target_max``; or uint8 bits ``[..., B, ceil(pixels / 8)]``, eight pixels to a byte in little bit order
            (:func:`pyvae.reference.pack_bits`). Ensemble dimensions may be missing: every member then sees the same
            images. Its gradient is not implemented and is refused.
        reduction: "batchmean", "sum" (over the batch) or "none".
        event_dims: how many trailing dimensions of ``logits`` make one image: 3 for ``[members, B, C, H, W]``.
            ``None``: the first dimension is the batch.
        target_max: 1 or 255: what a lit pixel of a uint8 target is. ``None``: uint8 targets are bits.

    Returns:
        ``[...]`` (``[..., B]`` for "none") in float32, float64 for float64. The mean of an empty batch is NaN, as
        torch.mean's.

    Raises:
        TypeError: wrong dtype. ValueError: wrong shape, device or option.

    >>> import torch
    >>> round(float(bernoulli_nll(torch.zeros(2, 1, 64, 64), torch.ones(2, 1, 64, 64))), 2)
    2839.13
    """
    pixel_layout(logits, target, reduction, event_dims, target_max)
    event_dims = logits.ndim - 1 if event_dims is None else event_dims
    if torch.compiler.is_compiling():
        return torch.ops.pyvae.bernoulli_nll(logits, target, reduction, event_dims, target_max)
    if not use_triton(logits):
        return reference.bernoulli_nll(
            logits, target, reduction=reduction, event_dims=event_dims, target_max=target_max
        )
    if torch.is_grad_enabled() and logits.requires_grad:
        return _BernoulliNLL.apply(logits, target, reduction, event_dims, target_max)
    return _forward(logits, target, reduction, event_dims, target_max)
