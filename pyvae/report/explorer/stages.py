"""What a page can compute: the stages that a decoder's layers become, each in torch as the page does it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from pyvae.report.explorer.rounding import Rounded, Rounding, single

Shape: TypeAlias = tuple[int, ...]
"""``(N,)`` of rows, ``(C, H, W)`` of maps."""
Pair: TypeAlias = tuple[int, int]


@dataclass(frozen=True)
class Product:
    """A linear layer, which is a convolution of maps of one pixel, a convolution or a transposed one."""

    weight: Rounded
    """``[outputs, inputs, height, width]``, whichever it is."""
    bias: Tensor
    """``[outputs]``."""
    reads: Shape
    gives: Shape
    transposed: bool = False
    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)
    output_padding: Pair = (0, 0)
    """Rows and columns more of a transposed one."""

    def __call__(self, x: Tensor) -> Tensor:
        weight = self.weight.values
        if len(self.reads) == 1:
            return F.linear(x, weight.flatten(1), self.bias)
        if not self.transposed:
            return F.conv2d(x, weight, self.bias, self.stride, self.padding, self.dilation)
        transposed = weight.transpose(0, 1)
        given = (self.stride, self.padding, self.output_padding, 1, self.dilation)
        return F.conv_transpose2d(x, transposed, self.bias, *given)

    def held(self, rounding: Rounding) -> Product:
        """The same with its weight rounded."""
        return replace(self, weight=rounding(self.weight.values))

    def to_json(self) -> dict[str, Any]:
        """As the page reads it."""
        outputs, inputs, height, width = self.weight.values.shape
        maps = self.reads if len(self.reads) == 3 else (inputs, 1, 1)
        return {
            "kind": "product",
            "transposed": self.transposed,
            "inputs": inputs,
            "outputs": outputs,
            "kernel": [height, width],
            "stride": self.stride,
            "padding": self.padding,
            "dilation": self.dilation,
            "reads": maps[1:],
            "gives": self.gives[1:] if len(self.gives) == 3 else [1, 1],
            "weight": self.weight.to_json(),
            "bias": single(self.bias).to_json(),
        }


@dataclass(frozen=True)
class Affine:
    """A scale and a shift of each channel: batch normalisation by averages that stand still."""

    scale: Tensor
    shift: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        ones = [1] * (x.ndim - 2)
        return x * self.scale.view(-1, *ones) + self.shift.view(-1, *ones)

    def to_json(self) -> dict[str, Any]:
        """As the page reads it."""
        scale, shift = single(self.scale).to_json(), single(self.shift).to_json()
        return {"kind": "affine", "scale": scale, "shift": shift}


@dataclass(frozen=True)
class Activation:
    """A function of each number by itself."""

    name: Literal["relu", "leaky", "elu", "silu", "gelu", "gelu_tanh", "tanh", "sigmoid", "softplus"]
    parameters: tuple[float, ...] = ()

    def __call__(self, x: Tensor) -> Tensor:
        return _FUNCTIONS[self.name](x, *self.parameters)

    def to_json(self) -> dict[str, Any]:
        """As the page reads it."""
        return {"kind": "activation", "name": self.name, "parameters": self.parameters}


_FUNCTIONS: dict[str, Callable[..., Tensor]] = {
    "relu": torch.relu,
    "leaky": F.leaky_relu,
    "elu": F.elu,
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "softplus": F.softplus,
}


@dataclass(frozen=True)
class Resample:
    """Maps of another size, each of whose rows and columns is a weighted sum of some."""

    rows: Tensor
    """``[H of the output, H of the input]``."""
    columns: Tensor
    channels: int

    def __call__(self, x: Tensor) -> Tensor:
        return torch.einsum("yh,xw,bchw->bcyx", self.rows, self.columns, x)

    def to_json(self) -> dict[str, Any]:
        """As the page reads it: of each output row and column, the index and weight of each that it sums."""
        return {
            "kind": "resample",
            "channels": self.channels,
            "width": self.columns.shape[1],
            "rows": _sums(self.rows),
            "columns": _sums(self.columns),
        }


def _sums(matrix: Tensor) -> list[list[float]]:
    return [[n for i in row.nonzero()[:, 0].tolist() for n in (i, float(row[i]))] for row in matrix]


@dataclass(frozen=True)
class Reorder:
    """Rows as maps, or maps as rows: the page holds the channels of a pixel together, which torch does not."""

    reads: Shape
    gives: Shape

    def __call__(self, x: Tensor) -> Tensor:
        return x.reshape(-1, *self.gives)

    def to_json(self) -> dict[str, Any]:
        """As the page reads it."""
        to_maps = len(self.gives) == 3
        channels, height, width = self.gives if to_maps else self.reads
        return {
            "kind": "reorder",
            "to_maps": to_maps,
            "channels": channels,
            "pixels": height * width,
        }


Stage: TypeAlias = Product | Affine | Activation | Resample | Reorder


def run(stages: list[Stage], codes: Tensor) -> Tensor:
    """Logits ``[B, C, H, W]`` of codes ``[B, D]``, by the rounded weights where there are such."""
    for stage in stages:
        codes = stage(codes)
    return codes
