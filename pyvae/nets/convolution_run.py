"""Convolutions, linear layers and the activations behind them, one after another, by compiled operators: one autograd
function.

Inside, maps are float32 ``[B, H, W, C]`` and weights ``[S, k, k, G]``, contiguous: those of torch with channels last,
and no copies of them. Convolutions that follow one another are one call, which takes a few images at a time through all
of them, so that each layer finds in the cache what the one before it wrote. Linear layers have rows ``[B, N]`` between
them; where nn.Flatten or nn.Unflatten stands beside one, it reads or writes maps.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

from pyvae.base.transforms import transform_of_gradients
from pyvae.nets.bias_activation import Activation, plain_backward

Parameters: TypeAlias = Sequence[Tensor | None]
"""Weights and biases by turns, as layers have them."""


class Stage(NamedTuple):
    """A layer and the activation behind it."""

    compiled: bool
    """Whether it is a convolution of the compiled operators for these; else it is a matrix product: of a linear layer,
    or of a convolution of a kernel as large as the map."""
    transposed: bool = False
    slope: float | None = None
    """Of the activation on the negative side: 0 of ReLU; ``None`` without one."""
    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] = ()
    flattened: int = 1
    """Pixels of the maps that a linear layer reads as rows."""
    unflattened: tuple[int, ...] | None = None
    """``C, H, W`` of maps that a linear layer's rows become."""
    channels_last: bool = False
    """Memory order that the layer would give to its maps, and to its gradients."""

    @property
    def settings(self) -> tuple[Any, ...]:
        """As torch's operators of convolutions take them."""
        return self.stride, self.padding, (1, 1), self.transposed, (0, 0), 1


class Wanted(NamedTuple):
    """Which gradients are."""

    x: bool
    weights: list[bool]
    biases: list[bool]

    def below(self, stage: int) -> bool:
        """Whether any is of the input or of stages before this one."""
        return self.x or any(self.weights[:stage]) or any(self.biases[:stage])


class _RoundedProduct(NamedTuple):
    """A convolution of a kernel as large as the map, of operands rounded to bfloat16."""

    stage: Stage

    def forward(self, x: Tensor, weights: list[Tensor], biases: Parameters, keep: bool) -> list[Tensor]:
        (weight,), (bias,) = weights, biases
        matrix = _rounded_rows(weight)
        y = _rounded_rows(x).mm(matrix if self.stage.transposed else matrix.t()).float()
        y = y.view(_maps_above(self.stage, len(x), weight))
        y = y if bias is None else y.add_(bias)
        slope = self.stage.slope
        if slope is not None:
            y = nn.functional.leaky_relu_(y, slope) if slope else y.relu_()
        return [y]

    def backward(
        self, grad: Tensor, maps: list[Tensor], y: Tensor | None, weights: list[Tensor], wanted: Wanted
    ) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        (x,), (weight,), transposed = maps, weights, self.stage.transposed
        if y is not None:
            grad = _masked(grad, y, self.stage.slope)
        rows, matrix, upper = map(_rounded_rows, (x, weight, grad))
        grad_x = grad_weight = grad_bias = grad
        if wanted.weights[0]:
            left, right = (rows, upper) if transposed else (upper, rows)
            grad_weight = left.t().mm(right).float().view(weight.shape)
        if wanted.biases[0]:
            grad_bias = grad.sum((0, 1, 2))
        if wanted.x:
            grad_x = upper.mm(matrix.t() if transposed else matrix).float().view(x.shape)
        return grad_x, [grad_weight], [grad_bias]


class _Convolutions(NamedTuple):
    """Convolutions one after another by one compiled operator."""

    transposed: list[bool]
    slopes: list[float]
    bf16: bool

    def forward(self, x: Tensor, weights: list[Tensor], biases: Parameters, keep: bool) -> list[Tensor]:
        maps: list[Tensor] = torch.ops.pyvae_native.convolutions_fwd.default(
            x, weights, biases, self.transposed, self.slopes, self.bf16, keep
        )
        return maps

    def backward(
        self, grad: Tensor, maps: list[Tensor], y: Tensor | None, weights: list[Tensor], wanted: Wanted
    ) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        grads: tuple[Tensor, list[Tensor], list[Tensor]] = torch.ops.pyvae_native.convolutions_bwd.default(
            grad, maps, y, weights, self.transposed, self.slopes, *wanted, self.bf16
        )
        return grads


class _Products(NamedTuple):
    """Matrix products one after another by one compiled operator."""

    last: Stage
    transposed: list[bool]
    slopes: list[float]
    pixels: tuple[list[int], list[int]]
    """Of maps that stand in the place of rows, below and above."""

    def forward(self, x: Tensor, weights: list[Tensor], biases: Parameters, keep: bool) -> list[Tensor]:
        *made, y = torch.ops.pyvae_native.linears_fwd.default(
            x, weights, biases, self.transposed, self.slopes, *self.pixels
        )
        return [*made, y.view(_maps_above(self.last, len(y), weights[-1]))]

    def backward(
        self, grad: Tensor, maps: list[Tensor], y: Tensor | None, weights: list[Tensor], wanted: Wanted
    ) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        grads: tuple[Tensor, list[Tensor], list[Tensor]] = torch.ops.pyvae_native.linears_bwd.default(
            grad, maps, y, weights, self.transposed, self.slopes, *self.pixels, *wanted
        )
        return grads


_Part: TypeAlias = _Convolutions | _Products | _RoundedProduct


@lru_cache(maxsize=64)
def _parts(stages: tuple[Stage, ...], bf16: bool) -> list[tuple[int, int, _Part]]:
    """Stages [first, stop) that are one call each."""
    parts: list[tuple[int, int, _Part]] = []
    first = 0
    while first < len(stages):
        compiled, stop = stages[first].compiled, first + 1
        while (compiled or not bf16) and stop < len(stages) and stages[stop].compiled == compiled:
            stop += 1
        parts.append((first, stop, _part(stages[first:stop], bf16)))
        first = stop
    return parts


def _part(stages: tuple[Stage, ...], bf16: bool) -> _Part:
    transposed = [stage.transposed for stage in stages]
    slopes = [-1.0 if stage.slope is None else stage.slope for stage in stages]
    if stages[0].compiled:
        return _Convolutions(transposed, slopes, bf16)
    if bf16:
        return _RoundedProduct(stages[0])
    above = [stage.unflattened or (1, 1, 1) for stage in stages]
    pixels = [stage.flattened for stage in stages], [height * width for _, height, width in above]
    return _Products(stages[-1], transposed, slopes, pixels)


class Run(NamedTuple):
    """Stages one after another, with their parameters."""

    stages: tuple[Stage, ...]
    parameters: Parameters
    bf16: bool
    """Whether products are of bfloat16, as under autocast; maps between layers are float32 even so."""

    def __call__(self, x: Tensor) -> Tensor:
        """``[B, C, H, W]`` or ``[B, N]`` of such, in bfloat16 with ``bf16``."""
        wanted = [t is not None and t.requires_grad for t in (x, *self.parameters)]
        if not (torch.is_grad_enabled() and any(wanted)):
            return self.given(self.maps(_last(x), keep=False)[-1])
        # of stages that no gradient goes through, nothing is kept
        first = max(wanted.index(True) - 1, 0) // 2
        run = self
        if first > 0:
            front = self._replace(stages=self.stages[:first], parameters=self.parameters[: 2 * first])
            x = _first(front.maps(_last(x), keep=False)[-1])
            run = self._replace(stages=self.stages[first:], parameters=self.parameters[2 * first :])
        y: Tensor = PyvaeConvolutions.apply(x, run, *run.parameters)
        return y

    def given(self, maps: Tensor) -> Tensor:
        """Maps as the layers would give them."""
        y = _laid_out(maps, self.stages[-1])
        y = y.bfloat16() if self.bf16 else y
        return y.detach()  # a view of what is made here could not be written to

    def maps(self, x: Tensor, *, keep: bool) -> list[Tensor]:
        """What stages make of maps ``x``: those of every stage, or of the last and perhaps of some before it."""
        made: list[Tensor] = []
        for first, stop, part in _parts(self.stages, self.bf16):
            weights, biases = self._weights(first, stop), self.parameters[2 * first + 1 : 2 * stop : 2]
            made += part.forward(made[-1] if made else x, weights, biases, keep)
        return made

    def gradients(
        self, grad: Tensor, maps: list[Tensor], wanted: Wanted
    ) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """Of the input, of the weights and of the biases, from that of the output; what is not wanted is anything.

        Args:
            maps: inputs of all stages, and the last one's output if an activation is behind it.
        """
        grad_weights, grad_biases = [grad] * len(self.stages), [grad] * len(self.stages)
        for first, stop, part in reversed(_parts(self.stages, self.bf16)):
            own = Wanted(wanted.below(first), wanted.weights[first:stop], wanted.biases[first:stop])
            y = None if self.stages[stop - 1].slope is None else maps[stop]
            grad, grad_weights[first:stop], grad_biases[first:stop] = part.backward(
                grad, maps[first:stop], y, self._weights(first, stop), own
            )
            if not own.x:
                break
        return grad, grad_weights, grad_biases

    def _weights(self, first: int, stop: int) -> list[Tensor]:
        return [_last(weight) for weight in self.parameters[2 * first : 2 * stop : 2]]  # type: ignore[arg-type]


class PyvaeConvolutions(torch.autograd.Function):
    """By this name users meet it, in errors and in graphs."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, run: Run, *parameters: Tensor | None) -> Tensor:
        maps = run._replace(parameters=parameters).maps(_last(x), keep=True)
        y = run.given(maps.pop())
        weights, biases = parameters[::2], parameters[1::2]
        # biases are for gradients of gradients alone: who changes one in place meanwhile need not hear of it
        ctx.biases = [(bias, 0 if bias is None else bias._version) for bias in biases]
        ctx.run = run._replace(parameters=())
        ctx.save_for_backward(x, None if run.stages[-1].slope is None else y, *maps, *weights)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        if torch.is_autocast_enabled("cpu"):  # of which a backward has none: products are what they were
            with torch.autocast("cpu", enabled=False):
                return _gradients(ctx, grads[0])
        return _gradients(ctx, grads[0])


def _gradients(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, y, *saved = ctx.saved_tensors
    count = len(ctx.run.stages)
    maps, weights = saved[: count - 1], saved[count - 1 :]
    parameters = [tensor for pair in zip(weights, (b for b, _ in ctx.biases), strict=True) for tensor in pair]
    run = ctx.run._replace(parameters=parameters)
    wants_x, _, *wants = ctx.needs_input_grad
    wanted = Wanted(wants_x, wants[::2], wants[1::2])
    # create_graph=True, batches and tangents: through operators that know them, and have gradients in turn
    if torch.is_grad_enabled() or transform_of_gradients(grad) is not None:
        if any(bias is not None and bias._version != version for bias, version in ctx.biases):
            raise RuntimeError(
                "a bias was changed in place since the forward pass, and gradients of gradients need it as it was: "
                "change it after them"
            )
        grad_x, grad_weights, grad_biases = _plainly(run, x, grad, wanted)
    else:
        inputs = [_last(x), *maps, *([] if y is None else [_last(y)])]
        grad_x, grad_weights, grad_biases = run.gradients(_last(grad), inputs, wanted)
        grad_x = _laid_out(grad_x, run.stages[0]) if wants_x else grad_x
        of = zip(grad_weights, wants[::2], run.stages, strict=True)
        grad_weights = [_laid_out(g, stage) if wanted else g for g, wanted, stage in of]
    found: list[Tensor | None] = [None] * len(wants)
    for i in range(count):
        found[2 * i] = grad_weights[i] if wants[2 * i] else None
        found[2 * i + 1] = grad_biases[i] if wants[2 * i + 1] else None
    return grad_x.to(x.dtype) if wants_x else None, None, *found


def _plainly(run: Run, x: Tensor, grad: Tensor, wanted: Wanted) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """The same by torch's operators; the maps are made once more, with what they were made of."""
    maps = [x.float()]
    for stage, weight, bias in zip(run.stages, run.parameters[::2], run.parameters[1::2], strict=True):
        if stage.stride:
            y = torch.convolution(maps[-1], weight, bias, *stage.settings)  # type: ignore[arg-type]
        else:
            y = nn.functional.linear(_rows(maps[-1]), weight, bias)  # type: ignore[arg-type]
            y = y if stage.unflattened is None else y.unflatten(1, stage.unflattened)
        if stage.slope is not None:
            y = nn.functional.leaky_relu(y, stage.slope) if stage.slope else y.relu()
        maps.append(y)
    grad = grad.float()
    grad_weights, grad_biases = [grad] * len(run.stages), [grad] * len(run.stages)
    for i in reversed(range(len(run.stages))):
        stage, weight, made = run.stages[i], run.parameters[2 * i], maps[i + 1]
        kind = Activation()
        if stage.slope is not None:
            kind = Activation("leaky_relu" if stage.slope else "relu", stage.slope)
        if not stage.stride:
            grad, made = _rows(grad), _rows(made)
        grad, grad_biases[i] = plain_backward(
            grad, None if stage.slope is None else made, kind, grad.shape[1]
        )
        below = wanted.below(i)
        if not stage.stride:
            grad_weights[i] = grad.mT @ _rows(maps[i])
            grad = (grad @ weight).reshape(maps[i].shape)  # type: ignore[operator]
        elif below or wanted.weights[i]:
            upper = grad
            grad, grad_weights[i], _ = torch.ops.aten.convolution_backward.default(
                upper, maps[i], weight, None, *stage.settings, [below, wanted.weights[i], False]
            )
        if not below:
            break
    return grad, grad_weights, grad_biases


def _masked(grad: Tensor, y: Tensor, slope: float | None) -> Tensor:
    """The gradient before an activation of output ``y``."""
    if slope:
        return torch.ops.aten.leaky_relu_backward.default(grad, y, slope, True)
    return torch.ops.aten.threshold_backward.default(grad, y, 0)


def _maps_above(stage: Stage, batch: int, weight: Tensor) -> tuple[int, ...]:
    """Shape of what a matrix product makes."""
    if stage.unflattened is not None:
        channels, height, width = stage.unflattened
        return batch, height, width, channels
    if stage.transposed:
        return batch, *weight.shape[1:]
    return (batch, 1, 1, len(weight)) if stage.stride else (batch, len(weight))


def _rows(maps: Tensor) -> Tensor:
    return maps.reshape(len(maps), -1)


def _rounded_rows(maps: Tensor) -> Tensor:
    return maps.view(len(maps), -1).bfloat16()


def _last(x: Tensor) -> Tensor:
    """Channels last, float32; rows stay rows."""
    maps = x if x.ndim == 2 else x.permute(0, 2, 3, 1)
    return (maps if maps.dtype == torch.float32 else maps.float()).contiguous()


def _laid_out(maps: Tensor, stage: Stage) -> Tensor:
    """``[B, C, H, W]`` in the memory order that the layer would give to it: to maps, or to gradients of them or of
    weights; rows as they are."""
    y = _first(maps)
    if stage.channels_last or y.ndim == 2:
        return y
    # strides of one pixel or one channel say the order too
    return (y if maps.shape[1:3] == (1, 1) else y.contiguous()).flatten(1).view(y.shape)


def _first(maps: Tensor) -> Tensor:
    return maps if maps.ndim == 2 else maps.permute(0, 3, 1, 2)
