"""A convolution or a matrix product with the bias, the activation and the change of shape behind it: one autograd
function, of fewer launches where Triton runs."""

from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

from pyvae.base.transforms import transform_of_gradients
from pyvae.nets import bias_activation
from pyvae.nets.bias_activation import Activation

Layer: TypeAlias = nn.Conv2d | nn.ConvTranspose2d | nn.Linear


class Behind(NamedTuple):
    """What follows a product and its bias."""

    activation: Activation = Activation()
    flattens: bool = False
    """Whether the maps of a convolution come out as rows ``[B, C * H * W]``."""
    maps: tuple[int, ...] | None = None
    """(C, H, W) of the maps that rows of a linear layer come out as."""
    channels_last: bool = False
    """Whether those maps come out with channels last."""


def product(
    x: Tensor, weight: Tensor, bias: Tensor, layer: Layer, behind: Behind, tickets: Tensor | None
) -> Tensor:
    """What ``layer`` makes of ``x`` with this weight and bias, and of that, what is behind it.

    Args:
        x: ``[B, N]`` or ``[B, C, H, W]`` in float32, bfloat16 or float16, not empty.
        weight: in the dtype of ``x``.
        bias: in any of those.
        layer: says what kind of product it is.
        behind: activation and shape.
        tickets: the layer's own, as :func:`pyvae.nets.bias_activation.backward` takes them, where the bias needs a
            gradient.
    """
    output: Tensor = _Product.apply(x, weight, bias, layer, behind, tickets)
    return output


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        layer: Layer,
        behind: Behind,
        tickets: Tensor | None,
    ) -> Tensor:
        if isinstance(layer, nn.Linear):
            y = _linear(x, weight, bias, behind)
            ctx.shape = (
                (len(x), *behind.maps) if behind.channels_last and behind.maps else (len(x), len(weight))
            )
            ctx.order = torch.contiguous_format
        else:
            y = torch.convolution(x, weight, None, *_settings(layer))
            ctx.shape, ctx.order = y.shape, _order(y)
            y = y.contiguous(memory_format=ctx.order)
            moves = behind.flattens and not y.is_contiguous()
            out = torch.empty(y.shape, dtype=y.dtype, device=y.device) if moves else y
            y = _activated(y, bias, behind.activation, out)
            y = y.flatten(1) if behind.flattens else y
        ctx.layer, ctx.behind, ctx.tickets, ctx.bias = layer, behind, tickets, (bias.shape, bias.dtype)
        ctx.save_for_backward(x, weight, None if behind.activation.kind == "identity" else y)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        x, weight, y = ctx.saved_tensors
        wants_x, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        grad = grads[0].reshape(ctx.shape)
        y = None if y is None else y.reshape(ctx.shape)
        if torch.is_grad_enabled() or transform_of_gradients(*grads) is not None:
            # create_graph=True, batches and tangents: through operators that know them, and have gradients in turn
            grad, sums = bias_activation.plain_backward(grad, y, ctx.behind.activation, ctx.bias[0].numel())
            grad_bias = sums.to(ctx.bias[1]) if wants_bias else None
        else:
            grad, grad_bias = _launch_backward(ctx, grad, y)
        if not (wants_x or wants_weight):
            return None, None, grad_bias, None, None, None
        if isinstance(ctx.layer, nn.Linear):
            rows = grad.reshape(len(x), len(weight))
            grad_x = rows.mm(weight) if wants_x else None
            grad_weight = rows.t().mm(x) if wants_weight else None
        else:
            wanted = [wants_x, wants_weight, False]
            grad_x, grad_weight, _ = torch.ops.aten.convolution_backward.default(
                grad, x, weight, None, *_settings(ctx.layer), wanted
            )
        return grad_x, grad_weight, grad_bias, None, None, None


def _linear(x: Tensor, weight: Tensor, bias: Tensor, behind: Behind) -> Tensor:
    activation = behind.activation
    if behind.maps and behind.channels_last:
        maps = x.mm(weight.t()).view(-1, *behind.maps)
        out = torch.empty(maps.shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
        return _activated(maps, bias, activation, out)
    if bias.dtype != x.dtype or activation.kind == "leaky_relu":
        y = x.mm(weight.t())
        y = _activated(y, bias, activation, y)
    elif activation.kind == "relu":
        y = torch._addmm_activation(bias, x, weight.t())
    else:
        y = torch.addmm(bias, x, weight.t())
        y = y.tanh_() if activation.kind == "tanh" else y
    return y.view(-1, *behind.maps) if behind.maps else y


def _activated(y: Tensor, bias: Tensor, activation: Activation, out: Tensor) -> Tensor:
    if activation.kind == "tanh":
        return bias_activation.forward(y, bias, Activation(), out).tanh_()
    return bias_activation.forward(y, bias, activation, out)


def _launch_backward(ctx: Any, grad: Tensor, y: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Gradients of the product, in its memory order, and of the bias."""
    wants_x, wants_weight, wants_bias = ctx.needs_input_grad[:3]
    moves = grad.ndim == 4 and not grad.is_contiguous(memory_format=ctx.order)
    writes = (y is not None or (moves and wants_bias)) and (wants_x or wants_weight)
    new = (
        torch.empty(ctx.shape, dtype=grad.dtype, device=grad.device, memory_format=ctx.order)
        if writes
        else None
    )
    shape, dtype = ctx.bias
    grad_bias = torch.empty(shape, dtype=dtype, device=grad.device) if wants_bias else None
    if writes or wants_bias:
        bias_activation.backward(grad, y, ctx.behind.activation, new, grad_bias, ctx.tickets)
    return (grad if new is None else new), grad_bias


def _settings(layer: nn.Conv2d | nn.ConvTranspose2d) -> tuple[Any, ...]:
    """Of a convolution, as torch's operators take them."""
    return (
        layer.stride, layer.padding, layer.dilation, layer.transposed, layer.output_padding, layer.groups,
    )  # fmt: skip


def _order(y: Tensor) -> torch.memory_format:
    last = y.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if last else torch.contiguous_format
