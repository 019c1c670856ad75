"""The operator library ``torch.ops.pyvae`` that torch.compile sees; eager calls do not go through it."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor

from pyvae.base.transforms import transform_of_gradients

LIBRARY = torch.library.Library("pyvae", "DEF")


class Operator(NamedTuple):
    """What a registered operator is made of."""

    signature: str
    """Its schema without the name."""
    run: Callable[..., Any]
    """On real tensors, of any backend."""
    fake: Callable[..., Any]
    """On tensors without values: empty tensors of the shapes and dtypes that ``run`` returns."""


def register_differentiable(
    name: str,
    forward: Operator,
    backward: Operator,
    plain_backward: Callable[..., Any],
    setup_context: Callable[[Any, tuple[Any, ...], Any], None],
    gradient: Callable[..., tuple[Tensor | None, ...]],
) -> type[torch.autograd.Function]:
    """Register ``pyvae::<name>`` and, as its derivative, ``pyvae::<name>_backward``, which has none itself.

    Args:
        name: of the op.
        forward: the op.
        backward: its gradient; an operator too, since torch.compile traces it with tensors without values.
        plain_backward: the same in plain torch, for gradients that are batched or have tangents.
        setup_context: as torch.library.register_autograd takes it.
        gradient: ``gradient(backward_operator, ctx, *grads)``, the gradients of all inputs.

    Returns:
        the same as an autograd function for eager mode, where it costs less than the operator.
    """
    for operator, of in ((name, forward), (f"{name}_backward", backward)):
        LIBRARY.define(operator + of.signature)
        LIBRARY.impl(operator, of.run, "CompositeExplicitAutograd")
        torch.library.register_fake(f"pyvae::{operator}", of.fake, lib=LIBRARY)
    registered = getattr(torch.ops.pyvae, f"{name}_backward")
    torch.library.register_autograd(
        f"pyvae::{name}", partial(gradient, registered), setup_context=setup_context, lib=LIBRARY
    )
    torch.library.register_autograd(f"pyvae::{name}_backward", refuse_double_backward, lib=LIBRARY)

    class Eager(torch.autograd.Function):
        # a setup_context of its own would make apply four times as slow
        @staticmethod
        def forward(ctx: Any, *inputs: Any) -> Any:
            output = forward.run(*inputs)
            setup_context(ctx, inputs, output)
            return output

        @staticmethod
        def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
            return gradient(detour(registered, plain_backward, grads) or backward.run, ctx, *grads)

    return Eager


def detour(
    registered: Callable[..., Any], plain: Callable[..., Any], grads: tuple[Tensor | None, ...]
) -> Callable[..., Any] | None:
    """What an eager backward takes instead of its kernels: plain torch for gradients that are batched or have
    tangents, and under ``create_graph=True`` the operator, which refuses gradients of gradients."""
    if transform_of_gradients(*grads) is not None:
        return plain
    return registered if torch.is_grad_enabled() else None


def as_dtype(x: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """``x.to(dtype)``, but for tensors of that dtype already, where the call alone costs half as much as an op."""
    return x if x.dtype == dtype else x.to(dtype)


def next_power_of_two(n: int) -> int:
    """The smallest power of two that is at least n."""
    return 1 << max(n - 1, 0).bit_length()


def refuse_double_backward(ctx: Any, *grads: Tensor | None) -> NoReturn:
    """Backward of the backward operators: torch would warn and go on with a gradient of zero."""
    raise RuntimeError("pyvae ops differentiate once: use pyvae.reference for gradients of gradients")
