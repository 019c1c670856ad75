"""Convolutions and the activations behind them, one after another, by compiled operators: one autograd function.

Inside, maps are float32 ``[B, H, W, C]`` and weights ``[S, k, k, G]``, contiguous: those of torch with channels last,
and no copies of them. A gradient comes masked: it goes from layer to layer as that of an output before its activation,
so that the operators apply the mask of the layer below, and sum for the bias there, while they have it at hand.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

from pyvae.bias_activation import Activation, plain_backward
from pyvae.transforms import transform_of_gradients

CHUNK = 64
"""Images whose maps are computed together where no gradient is wanted, so that they stay in the cache."""

Parameters: TypeAlias = Sequence[Tensor | None]
"""Weights and biases by turns, as layers have them."""


class Stage(NamedTuple):
    """A convolution and the activation behind it."""

    compiled: bool
    """Else it is a matrix product: the kernel is as large as the map."""
    transposed: bool
    slope: float | None
    """Of the activation on the negative side: 0 of ReLU; ``None`` without one."""
    stride: tuple[int, ...]
    padding: tuple[int, ...]

    @property
    def settings(self) -> tuple[Any, ...]:
        """As torch's operators take them."""
        return self.stride, self.padding, (1, 1), self.transposed, (0, 0), 1

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None, bf16: bool) -> Tensor:
        """The maps that it makes of ``x``."""
        if self.compiled:
            maps: Tensor = torch.ops.pyvae_native.convolution_fwd.default(
                x, weight, bias, self.transposed, self.slope, bf16
            )
            return maps
        rows, matrix = _rows(x, bf16), _rows(weight, bf16)
        if not self.transposed:
            matrix = matrix.t()
        elif bias is not None:
            bias = bias.repeat(weight.shape[1] * weight.shape[2])
        if bias is None or bf16:
            y = rows.mm(matrix).float()
            y = y if bias is None else y.add_(bias)
        else:
            y = torch.addmm(bias, rows, matrix)
        if self.slope is not None:
            y = nn.functional.leaky_relu_(y, self.slope) if self.slope else y.relu_()
        return y.view(len(x), *(weight.shape[1:] if self.transposed else (1, 1, len(weight))))

    def backward(
        self,
        grad: Tensor,
        x: Tensor,
        weight: Tensor,
        below: float | None,
        wanted: tuple[bool, bool],
        bf16: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients from that of what it makes before its activation.

        Args:
            below: slope of the activation whose output ``x`` is; ``None`` if it is no activation's.
            wanted: whether those of ``x`` and of the weight are.

        Returns:
            that of what the layer below makes before its activation, of the weight, and the first one's sums ``[C]``,
            which are those of the bias there. What is not wanted is anything.
        """
        if self.compiled:
            grads: tuple[Tensor, Tensor, Tensor] = torch.ops.pyvae_native.convolution_bwd.default(
                grad, x, weight, self.transposed, below, *wanted, bf16
            )
            return grads
        rows, matrix, upper = _rows(x, bf16), _rows(weight, bf16), _rows(grad, bf16)
        grad_x = grad_weight = sums = grad
        if wanted[1]:
            left, right = (rows, upper) if self.transposed else (upper, rows)
            grad_weight = left.t().mm(right).float().view(weight.shape)
        if wanted[0]:
            maps = upper.mm(matrix.t() if self.transposed else matrix).float().view(x.shape)
            grad_x, sums = _masked(maps, None if below is None else x, below)
        return grad_x, grad_weight, sums


class Run(NamedTuple):
    """Stages one after another, with their parameters."""

    stages: tuple[Stage, ...]
    parameters: Parameters
    bf16: bool
    """Whether products are of bfloat16, as under autocast; maps between layers are float32 even so."""
    channels_last: bool
    """Of the output, as the layers would give it."""

    def __call__(self, x: Tensor) -> Tensor:
        """``[B, C, H, W]`` of ``[B, C, H, W]``, in bfloat16 with ``bf16``."""
        if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, *self.parameters)):
            y: Tensor = _Function.apply(x, self, *self.parameters)
            return y
        return self.given(self._by_chunks(x))

    def given(self, maps: Tensor) -> Tensor:
        """Maps as the layers would give them."""
        y = maps.permute(0, 3, 1, 2)
        y = y.bfloat16() if self.bf16 else y
        if not self.channels_last:
            y = y.contiguous().view(y.shape)  # strides of one channel say the order too
        return y.detach()  # a view of what is made here could not be written to

    def _by_chunks(self, x: Tensor) -> Tensor:
        """Maps of the last layer. Matrix products take the whole batch, on whose size their last bits depend."""
        weights = [_last(weight) for weight in self.parameters[::2] if weight is not None]
        layers = list(zip(self.stages, weights, self.parameters[1::2], strict=True))
        maps, at = x.permute(0, 2, 3, 1), 0
        while at < len(layers):
            end = at + 1
            while layers[at][0].compiled and end < len(layers) and layers[end][0].compiled:
                end += 1
            size = CHUNK if layers[at][0].compiled else len(x)
            chunks = []
            for chunk in maps.split(size):
                y = _dense(chunk)
                for stage, weight, bias in layers[at:end]:
                    y = stage.forward(y, weight, bias, self.bf16)
                chunks.append(y)
            maps, at = chunks[0] if len(chunks) == 1 else torch.cat(chunks), end
        return maps


class _Function(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, run: Run, *parameters: Tensor | None) -> Tensor:
        maps = [_last(x)]
        for stage, weight, bias in zip(run.stages, parameters[::2], parameters[1::2], strict=True):
            maps.append(stage.forward(maps[-1], _last(weight), bias, run.bf16))  # type: ignore[arg-type]
        y = run.given(maps.pop())
        ctx.run = run._replace(parameters=())
        ctx.save_for_backward(x, None if run.stages[-1].slope is None else y, *maps, *parameters)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        if torch.is_autocast_enabled("cpu"):  # of which a backward has none: products are what they were
            with torch.autocast("cpu", enabled=False):
                return _gradients(ctx, grads[0])
        return _gradients(ctx, grads[0])


def _gradients(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    run: Run = ctx.run
    x, y, *saved = ctx.saved_tensors
    count = len(run.stages)
    maps, run = saved[:count], run._replace(parameters=saved[count:])
    wants_x, _, *wanted = ctx.needs_input_grad
    # create_graph=True, batches and tangents: through operators that know them, and have gradients in turn
    plain = torch.is_grad_enabled() or transform_of_gradients(grad) is not None
    going = _Plainly(run, x, grad) if plain else _Compiled(run, maps, y, grad)
    found: list[Tensor | None] = [None] * len(wanted)
    for i in reversed(range(count)):
        found[2 * i + 1] = going.sums if wanted[2 * i + 1] else None
        wants = (wants_x or any(wanted[: 2 * i]), wanted[2 * i])
        if any(wants):
            weight = going.through(i, wants)
            found[2 * i] = weight if wants[1] else None
        if not wants[0]:
            break
    return going.grad_x.to(x.dtype) if wants_x else None, None, *found


class _Compiled:
    """Gradients on their way down a run, by the operators."""

    def __init__(self, run: Run, maps: list[Tensor], y: Tensor | None, grad: Tensor) -> None:
        self._run, self._maps = run, maps
        slope = run.stages[-1].slope
        self._grad, self.sums = _masked(_last(grad), None if y is None else _last(y), slope)

    def through(self, i: int, wanted: tuple[bool, bool]) -> Tensor:
        """Go through a layer: what it gives is the gradient of its weight."""
        weight: Tensor = self._run.parameters[2 * i]  # type: ignore[assignment]
        below = self._run.stages[i - 1].slope if i else None
        self._grad, grad_weight, self.sums = self._run.stages[i].backward(
            self._grad, self._maps[i], _last(weight), below, wanted, self._run.bf16
        )
        return grad_weight.permute(0, 3, 1, 2) if wanted[1] else grad_weight

    @property
    def grad_x(self) -> Tensor:
        return self._grad.permute(0, 3, 1, 2)


class _Plainly:
    """The same by torch's operators; the maps are made once more, with what they were made of."""

    def __init__(self, run: Run, x: Tensor, grad: Tensor) -> None:
        self._run, self._maps = run, [x.float()]
        for stage, weight, bias in zip(run.stages, run.parameters[::2], run.parameters[1::2], strict=True):
            y = torch.convolution(self._maps[-1], weight, bias, *stage.settings)  # type: ignore[arg-type]
            if stage.slope is not None:
                y = nn.functional.leaky_relu(y, stage.slope) if stage.slope else y.relu()
            self._maps.append(y)
        self._mask(grad.float(), len(run.stages))

    def through(self, i: int, wanted: tuple[bool, bool]) -> Tensor:
        """Go through a layer: what it gives is the gradient of its weight."""
        weight, settings = self._run.parameters[2 * i], self._run.stages[i].settings
        grad, grad_weight, _ = torch.ops.aten.convolution_backward.default(
            self.grad_x, self._maps[i], weight, None, *settings, [*wanted, False]
        )
        if wanted[0]:
            self._mask(grad, i)
        return grad_weight

    def _mask(self, grad: Tensor, i: int) -> None:
        slope = self._run.stages[i - 1].slope if i else None
        kind = Activation() if slope is None else Activation("leaky_relu" if slope else "relu", slope)
        y = None if slope is None else self._maps[i]
        self.grad_x, self.sums = plain_backward(grad, y, kind, grad.shape[1])


def _masked(grad: Tensor, y: Tensor | None, slope: float | None) -> tuple[Tensor, Tensor]:
    """The gradient before an activation of output ``y``, if there is one, and its sums over batch and pixels."""
    masked, sums = torch.ops.pyvae_native.activation_bwd.default(grad, y, slope)
    return grad if y is None else masked, sums


def _last(x: Tensor) -> Tensor:
    return _dense(x.permute(0, 2, 3, 1))


def _dense(maps: Tensor) -> Tensor:
    return (maps if maps.dtype == torch.float32 else maps.float()).contiguous()


def _rows(maps: Tensor, bf16: bool) -> Tensor:
    """What stands in a matrix product."""
    rows = maps.view(len(maps), -1)
    return rows.bfloat16() if bf16 else rows
