"""``bernoulli_nll``: the reconstruction loss of binary images, from logits."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pyvae import reference
from pyvae.backend import device_of, take
from pyvae.base.checks import PixelLayout, accumulation_dtype, flatten_pixels, pixel_layout
from pyvae.base.transforms import compiled
from pyvae.ops.library import Operator, as_dtype, detour, next_power_of_two, register_differentiable


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


def _native(
    logits: Tensor, target: Tensor, reduction: str, layout: PixelLayout, *, with_grad: bool
) -> tuple[Tensor, Tensor]:
    """Loss, and its gradient for an upstream one of 1, both float32, from one pass.

    Without the gradient, the logits stand in its place.
    """
    rows = layout.members * layout.batch
    if target.numel() != rows * (layout.row_bytes if layout.packed else layout.pixels):
        target = flatten_pixels(logits, target, layout)[1]
    if target.dtype not in (torch.float32, torch.uint8):
        target = target.view(torch.uint8) if target.dtype == torch.bool else target.float()
    scale = 1.0 / layout.batch if reduction == "batchmean" else 1.0
    images = 1 if reduction == "none" else layout.batch
    inputs = (as_dtype(logits), target, 1.0 / layout.target_max, layout.packed, scale, rows, images)
    if with_grad:
        loss, unit = torch.ops.pyvae_native.bernoulli_nll_fwd_bwd.default(*inputs)
    else:
        loss, unit = torch.ops.pyvae_native.bernoulli_nll_fwd.default(*inputs), logits
    return loss.view(*layout.lead, layout.batch) if reduction == "none" else loss.view(layout.lead), unit


def _scaled(unit: Tensor, grad_loss: Tensor, dtype: torch.dtype) -> Tensor:
    """The gradient for an upstream one of 1, times the upstream one; on a CPU, where reading it costs nothing."""
    if grad_loss.ndim or grad_loss.item() != 1.0:
        unit = unit * grad_loss.reshape(*grad_loss.shape, *[1] * (unit.ndim - grad_loss.ndim))
    return as_dtype(unit, dtype)


def _forward(
    logits: Tensor, target: Tensor, reduction: str, event_dims: int, target_max: int | None
) -> Tensor:
    backend = take("bernoulli_nll", logits) if logits.numel() else "reference"
    if backend == "reference":
        return reference.bernoulli_nll(
            logits, target, reduction=reduction, event_dims=event_dims, target_max=target_max
        )
    layout = pixel_layout(logits, target, reduction, event_dims, target_max)
    if backend == "native":
        return _native(logits, target, reduction, layout, with_grad=False)[0]
    return _launch_forward(logits, target, reduction, layout)


def _backward_op(
    grad_loss: Tensor, logits: Tensor, target: Tensor, reduction: str, event_dims: int, target_max: int | None
) -> Tensor:
    backend = take("bernoulli_nll", logits) if logits.numel() else "reference"
    if backend == "reference":
        return reference.bernoulli_nll_backward(grad_loss, logits, target, reduction, event_dims, target_max)
    layout = pixel_layout(logits, target, reduction, event_dims, target_max)
    if backend == "native":
        _, unit = _native(logits, target, reduction, layout, with_grad=True)
        return _scaled(unit, grad_loss, logits.dtype)
    return _launch_backward(grad_loss, logits, target, reduction, layout)


def _fake(logits: Tensor, target: Tensor, reduction: str, event_dims: int, target_max: int | None) -> Tensor:
    kept = logits.ndim - event_dims - (0 if reduction == "none" else 1)
    return torch.empty(logits.shape[:kept], dtype=accumulation_dtype(logits.dtype), device=logits.device)


def _fake_backward(
    grad_loss: Tensor, logits: Tensor, target: Tensor, reduction: str, event_dims: int, target_max: int | None
) -> Tensor:
    return torch.empty(logits.shape, dtype=logits.dtype, device=logits.device)


def _setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, str, int, int | None], output: Tensor) -> None:
    logits, target, *ctx.options = inputs
    ctx.save_for_backward(logits, target)


def _gradient(op: Callable[..., Tensor], ctx: Any, grad_loss: Tensor) -> tuple[Tensor | None, ...]:
    return op(grad_loss, *ctx.saved_tensors[:2], *ctx.options), None, None, None, None


_OPTIONS = "str reduction, int event_dims, int? target_max"
register_differentiable(
    "bernoulli_nll",
    Operator(f"(Tensor logits, Tensor target, {_OPTIONS}) -> Tensor", _forward, _fake),
    Operator(
        f"(Tensor grad_loss, Tensor logits, Tensor target, {_OPTIONS}) -> Tensor",
        _backward_op,
        _fake_backward,
    ),
    reference.bernoulli_nll_backward,
    _setup_context,
    _gradient,
)


class _BernoulliNLL(torch.autograd.Function):
    """In eager mode; the layout is found once, and a CPU takes loss and gradient from one pass."""

    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        target: Tensor,
        reduction: str,
        event_dims: int,
        target_max: int | None,
        layout: PixelLayout,
        native: bool,
    ) -> Tensor:
        ctx.options, ctx.layout, ctx.native = (reduction, event_dims, target_max), layout, native
        if native:
            loss, unit = _native(logits, target, reduction, layout, with_grad=True)
            ctx.save_for_backward(logits, target, unit)
            return loss
        ctx.save_for_backward(logits, target)
        return _launch_forward(logits, target, reduction, layout)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        (grad_loss,) = grads
        if op := detour(torch.ops.pyvae.bernoulli_nll_backward, reference.bernoulli_nll_backward, grads):
            grad = _gradient(op, ctx, grad_loss)[0]
        elif ctx.native:
            logits, _, unit = ctx.saved_tensors
            grad = _scaled(unit, grad_loss, logits.dtype)
        else:
            logits, target = ctx.saved_tensors
            grad = _launch_backward(grad_loss, logits, target, ctx.options[0], ctx.layout)
        return grad, None, None, None, None, None, None


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
    of 4096 (Kingma & Welling 2014, appendix C.1). An infinite logit costs nothing where it is right, else infinitely
    much; its gradient is sigmoid(l) - x as anywhere.

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
    layout = pixel_layout(logits, target, reduction, event_dims, target_max)
    event_dims = logits.ndim - 1 if event_dims is None else event_dims
    options = (reduction, event_dims, target_max)
    if compiled():
        return torch.ops.pyvae.bernoulli_nll(logits, target, *options)
    backend = take("bernoulli_nll", logits, target)
    if backend == "reference" or not logits.numel():
        return reference.bernoulli_nll(
            logits, target, reduction=reduction, event_dims=event_dims, target_max=target_max
        )
    if torch.is_grad_enabled() and logits.requires_grad:
        return _BernoulliNLL.apply(logits, target, *options, layout, backend == "native")
    if backend == "native":
        return _native(logits, target, reduction, layout, with_grad=False)[0]
    return _launch_forward(logits, target, reduction, layout)
