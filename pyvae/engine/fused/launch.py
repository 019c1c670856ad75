"""What the plan of a step is made of: launches, what they are given, and what may be chosen."""

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch

from pyvae.engine.fused.boxes import Descriptor

Operands = Literal["fp16", "bf16", "tf32", "fp32"]
"""Of the networks' products; "fp32", without tensor cores, is there to be compared with."""
DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "tf32": torch.float32, "fp32": torch.float32}
WINDOW = 2048
"""Steps whose images are known, in a ring of two halves."""


class Pointer(NamedTuple):
    """A place in the row that a member has of a buffer; see :attr:`pyvae.engine.fused.plan.Plan.buffers`."""

    buffer: str
    offset: int = 0


class Stride(NamedTuple):
    """From a member's row of a buffer to the next one's, in numbers."""

    buffer: str


class Size(NamedTuple):
    """Of the ring of rows: "every" so many steps one, "capacity" of them."""

    of: str


Argument = Pointer | Stride | Size | Descriptor | int | float


class Launch(NamedTuple):
    """A kernel, launched over ``programs`` of each member."""

    label: str
    kernel: tuple[str, str]
    """Module in kernels/, name."""
    programs: int
    arguments: tuple[Argument, ...]
    """In the order of the kernel's parameters."""
    constants: tuple[tuple[str, Any], ...]
    warps: int = 4
    stages: int = 1
    fused_multiply_add: bool = True
    """False: rounds as Python does, so that a comparison falls as in the reference."""
    branch: int = 0
    """1: it may run beside those that follow, until one of them joins."""
    joins: bool = False
    """Whether it reads what a branch has written."""


@dataclass(frozen=True)
class Tiles:
    """Rows of the tiles of each kernel, what else it is cut into, and how its programs run: one for any number of
    members, since tiles and warps decide the order of sums. As they stand here they are for operands of 16 bits:
    benchmarks/results says what each launch took on an H100, cut so and in other ways."""

    batch: int = 256
    first_conv: int = 64
    down: tuple[int, int, int] = (16, 64, 64)
    """Of small maps of side 4, 8, 16; so are warps."""
    down_warps: tuple[int, int, int] = (2, 4, 4)
    up: tuple[int, int, int] = (64, 128, 256)
    up_warps: tuple[int, int, int] = (4, 4, 8)
    up_first_conv: int = 64
    up_first_conv_stages: int = 2
    loss: int = 64
    loss_stages: int = 1
    loss_backward: int = 256
    dense: int = 64
    dense_columns: int = 32
    dense_k: int = 128
    latents: int = 16
    latents_k: int = 256
    latents_columns: int = 256
    latents_backward_warps: int = 2
    stages: int = 3
    """Of loops over taps or inputs."""
    positions: int = 1024
    """Of a part of a weight gradient."""
    positions_k: int = 64
    positions_stages: int = 3
    boxes_k: int = 64
    """Positions of a box."""
    box_stages: int = 4
    wide: int = 1024
    parts: int = 256
    columns: int = 32


_OF_32_BITS = Tiles(
    first_conv=128,
    down=(16, 32, 64),
    down_warps=(4, 4, 4),
    up=(64, 64, 128),
    up_warps=(4, 4, 4),
    up_first_conv_stages=1,
    loss_stages=2,
    loss_backward=128,
    latents_backward_warps=4,
    stages=2,
    positions_stages=1,
    box_stages=2,
)
"""Smaller, since these take twice the room; no GPU has compared them with others."""


def tiles_of(operands: Operands) -> Tiles:
    """What the kernels cut their work into, unless they are told otherwise."""
    return Tiles() if DTYPES[operands].itemsize == 2 else _OF_32_BITS


class Options(NamedTuple):
    """What may pay on a card. The first two change no result, the third the order of sums."""

    pdl: bool = False
    """Whether a launch may take its place before the one in front of it has ended (compute capability 9.0 and up)."""
    side_branch: bool = False
    """Whether the decoder's weight gradients are a launch of their own, beside the encoder's backward."""
    descriptors: bool = False
    """Whether weight gradients of convolutions read boxes of maps, whose rows then have a column of zeros at either end
    (compute capability 9.0 and up; batches of whole fours)."""


class Buffer(NamedTuple):
    """What a member has of it: numbers, and of which dtype."""

    size: int
    dtype: torch.dtype
