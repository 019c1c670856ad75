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
    """Rows of the tiles of each kernel, and what else it is cut into: one for any number of members, since they decide
    the order of sums."""

    batch: int = 256
    first_conv: int = 128
    down: tuple[int, int, int] = (16, 32, 64)
    """Of small maps of side 4, 8, 16."""
    up: tuple[int, int, int] = (64, 64, 128)
    up_first_conv: int = 64
    loss: int = 64
    loss_backward: int = 128
    dense: int = 64
    dense_columns: int = 32
    dense_k: int = 128
    latents: int = 16
    latents_k: int = 256
    latents_columns: int = 256
    positions: int = 1024
    """Of a part of a weight gradient."""
    positions_k: int = 64
    boxes_k: int = 128
    """Positions of a box, of operands of 16 bits; half of them of 32."""
    wide: int = 1024
    parts: int = 64
    columns: int = 32


class Options(NamedTuple):
    """What may pay on a card. The first two change no result, the third the order of sums."""

    pdl: bool = False
    """Whether a launch may take its place before the one in front of it has ended (compute capability 9.0 and up)."""
    side_branch: bool = False
    """Whether the decoder's weight gradients are a launch of their own, beside the encoder's backward."""
    descriptors: bool = False
    """Whether weight gradients of convolutions read boxes of maps, whose rows then have a column of zeros at either end
    (compute capability 9.0 and up; batches of whole eights)."""


class Buffer(NamedTuple):
    """What a member has of it: numbers, and of which dtype."""

    size: int
    dtype: torch.dtype
