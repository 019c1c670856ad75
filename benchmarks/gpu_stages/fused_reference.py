"""A step in float64 whose operands are rounded where the kernels round them.

Against plain float64 every rounding errs by a percent and more, which would hide a wrong kernel; against this one, what
is left are values that fall on the other side of a tie.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from pyvae.engine.fused.launch import Operands
from pyvae.engine.fused.members import rounded
from pyvae.nets import Autoencoder
from pyvae.random import make_key, normal

Round = Callable[[Tensor], Tensor]


class Reference(NamedTuple):
    """Of a step: averages over the batch."""

    nll: Tensor
    """float64 ``[]``."""
    kl: Tensor
    """float64 ``[D]``."""
    gradients: dict[str, Tensor]
    """By name of the parameter."""

    def to(self, device: torch.device) -> "Reference":
        """The same on a device."""
        return Reference(
            self.nll.to(device),
            self.kl.to(device),
            {name: gradient.to(device) for name, gradient in self.gradients.items()},
        )


def rounded_step(
    net: Autoencoder, seed: int, images: Tensor, weight: float, operands: Operands, step: int = 0
) -> Reference:
    """One step.

    Args:
        net: float64.
        images: float64 ``[B, C, 64, 64]``.
        weight: of the KL.
    """

    def to_operand(x: Tensor) -> Tensor:
        return rounded(x.float(), operands).double()

    parameters = dict(net.named_parameters())
    mu, logvar = _through(
        net.encoder.head, _through(net.encoder.trunk, images, to_operand), to_operand
    ).chunk(2, -1)
    eps = normal(make_key(seed, step, images.device), len(images), mu.shape[1], 0, torch.float64)
    z = mu + torch.exp(0.5 * logvar) * eps
    logits = _through(net.decoder, _Value.apply(z, to_operand), to_operand)
    nll = F.binary_cross_entropy_with_logits(logits, images, reduction="none").sum((1, 2, 3))
    kl = 0.5 * (mu.square() + logvar.exp() - 1 - logvar)
    # gradients of the batch's sum: where they are rounded is of no scale
    total = nll.sum() + weight * kl.sum()
    gradients = torch.autograd.grad(total, list(parameters.values()))
    return Reference(
        nll.mean().detach(),
        kl.mean(0).detach(),
        {name: g / len(images) for name, g in zip(parameters, gradients, strict=True)},
    )


class _Value(torch.autograd.Function):
    """Rounds a value and passes its gradient."""

    @staticmethod
    def forward(ctx, x, to_operand):  # type: ignore[no-untyped-def]
        return to_operand(x)

    @staticmethod
    def backward(ctx, g):  # type: ignore[no-untyped-def]
        return g, None


class _Gradient(torch.autograd.Function):
    """Passes a value and rounds its gradient."""

    @staticmethod
    def forward(ctx, x, to_operand):  # type: ignore[no-untyped-def]
        ctx.to_operand = to_operand
        return x.clone()

    @staticmethod
    def backward(ctx, g):  # type: ignore[no-untyped-def]
        return ctx.to_operand(g), None


def _through(layers: nn.Module, x: Tensor, to_operand: Round) -> Tensor:
    """Layers that end in a product or in a ReLU."""
    for layer in layers if isinstance(layers, nn.Sequential) else [layers]:
        if isinstance(layer, nn.ReLU):
            x = _Value.apply(F.relu(x), to_operand)
        elif isinstance(layer, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            assert layer.bias is not None
            operands = {
                "weight": _Value.apply(layer.weight, to_operand),
                "bias": torch.zeros_like(layer.bias),
            }
            # a bias is never rounded, and its gradient is summed before that is
            bias = layer.bias.view(-1, *(1,) * (0 if isinstance(layer, nn.Linear) else 2))
            x = _Gradient.apply(functional_call(layer, operands, (x,)), to_operand) + bias
        else:
            x = layer(x)
    return x
