"""Tables that kernels read: the tiles of weight gradients, and the blocks of parameters that Adam moves."""

from collections.abc import Iterator, Mapping
from itertools import product
from typing import NamedTuple

from pyvae.engine.fused.layout import Parameter
from pyvae.engine.fused.network import Pair

_MOST_PARTS = 16
"""Of a gradient that a program of Adam sums for many elements."""


class Tile(NamedTuple):
    """Of a weight gradient; see kernels/weight_gradients.py."""

    a: int
    b: int
    out: int
    first: int
    count: int  # type: ignore[assignment]
    log_side: int
    stride_y: int
    start_y: int
    height: int
    stride_x: int
    start_x: int
    width: int
    units: int
    a_image: int
    a_row: int
    b_row: int


class Block(NamedTuple):
    """Of a parameter; see kernels/flat_adam.py."""

    source: int
    target: int
    parts: int
    stride: int
    size: int
    unused_0: int = 0
    unused_1: int = 0
    unused_2: int = 0


class Gradient(NamedTuple):
    """Where the parts of a parameter's gradient lie."""

    offset: int
    parts: int
    stride: int


def pair_tiles(pair: Pair, *, big: int, small: int, out: int, first: int, positions: int) -> Iterator[Tile]:
    """Of the weight gradient of a pair over ``positions`` of its small maps from ``first`` on, whose part begins at
    ``out``; the maps lie at ``big`` and ``small``."""
    side, taps, run, units = pair.side, pair.taps, pair.taps * pair.big, pair.big // 32
    padding = taps // 2 - 1
    for kh, row, column in product(range(taps), range(0, run, 128), range(0, pair.small, 32)):
        yield Tile(
            a=big,
            b=small + column,
            out=out + (kh * run + row) * pair.small + column,
            first=first,
            count=positions,
            log_side=side.bit_length() - 1,
            stride_y=2,
            start_y=kh - padding,
            height=2 * side,
            stride_x=2 * units,
            start_x=row // 32 - padding * units,
            width=2 * side * units,
            units=min(4, (run - row) // 32),
            a_image=4 * side * side * pair.big,
            a_row=2 * side * pair.big,
            b_row=pair.small,
        )


def dense_tiles(
    inputs: int, outputs: int, *, a: int, b: int, out: int, first: int, images: int
) -> Iterator[Tile]:
    """Of a weight gradient ``[inputs, outputs]`` over ``images`` from ``first`` on, whose part begins at ``out``; its
    operands lie at ``a`` and ``b``."""
    for row, column in product(range(0, inputs, 128), range(0, outputs, 32)):
        yield Tile(
            a=a + row,
            b=b + column,
            out=out + row * outputs + column,
            first=first,
            count=images,
            log_side=0,
            stride_y=0,
            start_y=0,
            height=1,
            stride_x=0,
            start_x=0,
            width=4,
            units=4,
            a_image=inputs,
            a_row=0,
            b_row=outputs,
        )


def blocks_of(
    parameters: Mapping[str, Parameter], gradients: Mapping[str, Gradient], *, wide: int, columns: int
) -> list[Block]:
    """Of all parameters: ``wide`` elements of one with few parts, ``columns`` of one with many."""
    blocks = []
    for name, parameter in parameters.items():
        offset, parts, stride = gradients[name]
        width = wide if parts <= _MOST_PARTS else columns
        for at in range(0, parameter.size, width):
            # in whole units of 16, for loads as wide as can be: what is behind a parameter is zero and stays so
            size = min(width, -(-(parameter.size - at) // 16) * 16)
            blocks.append(Block(offset + at, parameter.offset + at, parts, stride, size))
    return blocks
