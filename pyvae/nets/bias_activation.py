"""The bias and the activation behind a product, and the gradients of both, each in one launch where Triton runs.

A product's output is ``[B, N]`` with a bias ``[N]``, or maps ``[B, C, H, W]`` with a bias for each channel, ``[C]``,
or for each pixel of each channel, ``[C * H * W]``.
"""

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from pyvae.backend import device_of
from pyvae.base.checks import accumulation_dtype
from pyvae.ops.library import next_power_of_two


class Activation(NamedTuple):
    """What follows the bias; its derivative is a function of its output."""

    kind: Literal["identity", "relu", "leaky_relu", "tanh"] = "identity"
    slope: float = 0.0
    """Of the leaky ReLU on the negative side; positive, so that the output has the sign of the input."""


class Tile(NamedTuple):
    """Elements of a program."""

    rows: int
    columns: int


FORWARD = {columns: Tile(1024 // columns, columns) for columns in (1, 2, 4, 8, 16, 32)}
"""Tile by columns, rounded up to a power of two: eight elements for each thread of four warps."""
BACKWARD = {columns: Tile(2 * tile.rows, columns) for columns, tile in FORWARD.items()}
"""The same for eight warps, which each go through several tiles: fewer programs leave fewer partial sums."""
_PROGRAMS = 256
"""That a large gradient is shared between, whatever the device, so that sums are the same everywhere."""
_ALONE = 4
"""Tiles that one program goes through sooner than to share the sums of their columns."""


def plain_forward(x: Tensor, bias: Tensor, activation: Activation) -> Tensor:
    """``activation(x + bias)`` in plain torch, of the shape of ``x``."""
    per_pixel = bias.numel() != x.shape[1]
    y = x + bias.view(x.shape[1:] if per_pixel else (-1, *[1] * (x.ndim - 2)))
    if activation.kind == "relu":
        return y.relu()
    if activation.kind == "leaky_relu":
        return torch.nn.functional.leaky_relu(y, activation.slope)
    return y.tanh() if activation.kind == "tanh" else y


def plain_backward(
    grad_y: Tensor, y: Tensor | None, activation: Activation, biases: int
) -> tuple[Tensor, Tensor]:
    """Gradients of ``x`` and of the bias from that of the output ``y``, in plain torch, differentiable in turn.

    Args:
        grad_y: ``[B, N]`` or ``[B, C, H, W]``.
        y: of that shape; ``None`` without an activation.
        activation: behind the bias.
        biases: numbers in it: N, C or C * H * W.

    Returns:
        a tensor of the shape of ``grad_y``, and ``[biases]`` in float32, float64 for float64.
    """
    grad = grad_y
    if y is not None and activation.kind == "relu":
        grad = grad_y.masked_fill(y <= 0, 0.0)
    if y is not None and activation.kind == "leaky_relu":
        grad = torch.where(y <= 0, grad_y * activation.slope, grad_y)
    if y is not None and activation.kind == "tanh":
        grad = grad_y * (1 - y * y)
    maps = grad.reshape(*grad.shape[:2], -1)
    sums = maps.sum((0, 2) if biases == maps.shape[1] else 0, dtype=accumulation_dtype(grad.dtype))
    return grad, sums.reshape(-1)


def forward(x: Tensor, bias: Tensor, activation: Activation, out: Tensor) -> Tensor:
    """``activation(x + bias)``, written to ``out``.

    Args:
        x: ``[B, N]`` or ``[B, C, H, W]``, float32, bfloat16 or float16, not empty.
        bias: ``[N]``, ``[C]`` or ``[C * H * W]``.
        activation: any but "tanh", which costs no less than torch's.
        out: of the shape of ``x``, in any memory order; it may be ``x``.
    """
    from pyvae.kernels.bias_activation import bias_activation_fwd_kernel

    grid = _grid([_maps(x), out.view(*out.shape[:2], -1)], bias.numel())
    tile = _tile(FORWARD, grid)
    programs = grid.images * -(-grid.rows // tile.rows) * -(-grid.columns // tile.columns)
    with device_of(x):
        bias_activation_fwd_kernel[(programs,)](
            _maps(x), bias, out, grid.rows, grid.columns, activation.slope, *grid.strides,
            ACTIVATION=activation.kind, INNER=grid.inner, ROWS=tile.rows, COLUMNS=tile.columns,
        )  # fmt: skip
    return out


def backward(
    grad_y: Tensor,
    y: Tensor | None,
    activation: Activation,
    grad_x: Tensor | None,
    grad_bias: Tensor | None,
    tickets: Tensor | None,
) -> None:
    """Gradients of ``x`` and of the bias, equal bit for bit from run to run.

    Args:
        grad_y: ``[B, N]`` or ``[B, C, H, W]``, float32, bfloat16 or float16, not empty, in any memory order.
        y: the output, of that shape; ``None`` without an activation.
        activation: behind the bias.
        grad_x: written to: of that shape, dense or channels last; ``None`` where it is not wanted.
        grad_bias: written to: ``[N]``, ``[C]`` or ``[C * H * W]``; ``None`` where it is not wanted.
        tickets: with ``grad_bias``: :func:`ticket_count` zeros, int32, for the launches of one layer alone, which
            follow one another on a stream. They are zeros again behind each.
    """
    from pyvae.kernels.bias_activation import bias_activation_bwd_kernel

    maps = _maps(grad_y)
    # where a pointer is neither read nor written to, any will do
    y_maps = maps if y is None else _maps(y)
    grad_x_maps = maps if grad_x is None else grad_x.view(maps.shape)
    grid = _grid([maps, y_maps, grad_x_maps], maps.shape[1] if grad_bias is None else grad_bias.numel())
    tile = _tile(BACKWARD, grid)
    row_blocks, column_blocks = -(-grid.rows // tile.rows), -(-grid.columns // tile.columns)
    programs = _programs(grid.images * row_blocks, column_blocks)
    split = grad_bias is not None and programs > 1
    partial = torch.empty((programs, grid.columns), device=maps.device) if split else maps
    with device_of(grad_y):
        bias_activation_bwd_kernel[(programs * column_blocks,)](
            maps, y_maps, grad_x_maps, partial, maps if tickets is None else tickets,
            maps if grad_bias is None else grad_bias,
            grid.images, grid.rows, grid.columns, activation.slope, *grid.strides,
            ACTIVATION=activation.kind, WRITES=grad_x is not None, SUMS=grad_bias is not None, SPLIT=split,
            INNER=grid.inner, ROWS=tile.rows, COLUMNS=tile.columns,
            num_warps=8 if tile.rows * tile.columns > 1024 else 4,
        )  # fmt: skip


def ticket_count(biases: int) -> int:
    """How many tickets :func:`backward` takes: one for each block of columns."""
    return -(-biases // max(BACKWARD))


class _Grid(NamedTuple):
    """Tensors as the kernels read them."""

    images: int
    rows: int
    columns: int
    inner: int
    strides: tuple[int, ...]
    """Of images, rows, columns and what is within a column, tensor by tensor."""


def _maps(x: Tensor) -> Tensor:
    """``[B, C, pixels]``: a view, but for gradients of a strange memory order."""
    return x.reshape(*x.shape[:2], -1)


def _grid(maps: list[Tensor], biases: int) -> _Grid:
    images, channels, pixels = maps[0].shape
    if biases != channels:
        strides = [n for x in maps for n in (0, x.stride(0), x.stride(1), x.stride(2))]
        return _Grid(1, images, biases, pixels, tuple(strides))
    if pixels == 1 or all(x.stride(0) == pixels * x.stride(2) for x in maps):
        strides = [n for x in maps for n in (0, x.stride(0 if pixels == 1 else 2), x.stride(1), 0)]
        return _Grid(1, images * pixels, channels, 1, tuple(strides))
    strides = [n for x in maps for n in (x.stride(0), x.stride(2), x.stride(1), 0)]
    return _Grid(images, pixels, channels, 1, tuple(strides))


def _tile(table: dict[int, Tile], grid: _Grid) -> Tile:
    rows, columns = table[min(next_power_of_two(grid.columns), max(table))]
    return Tile(min(rows, next_power_of_two(grid.rows)), columns)


def _programs(tiles: int, column_blocks: int) -> int:
    """Programs that share a block of columns."""
    return 1 if tiles <= _ALONE else min(tiles, max(_PROGRAMS // column_blocks, 1))
