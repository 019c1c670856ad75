"""All weight gradients but those of the ends in one launch: a table says where the operands of each tile lie.

A tile [128, 32] is the sum over positions of a row of 128 numbers times a row of 32. Of a convolution pair, the
positions are those of the small maps and the 128 numbers are some taps of a row of the kernel, side by side in the
big maps; of a dense layer, positions are images. A tile sums over a *part* of the positions: neither the number of
members nor the order in which programs run changes any sum.
"""

import triton
import triton.language as tl

from .operands import begin, flag, multiply_transposed, not_finite


@triton.jit
def tile_gradient(
    tile, activations_ptr, gradients_ptr, flags_ptr, member, BK: tl.constexpr, TF32: tl.constexpr
):
    """The tile that a row of the table describes."""
    # numbers that a table holds say nothing of themselves, without which nothing is read 16 bytes at a time
    a_ptr = activations_ptr + tl.multiple_of(tl.load(tile), 16)
    b_ptr = activations_ptr + tl.multiple_of(tl.load(tile + 1), 16)
    out_ptr = gradients_ptr + tl.multiple_of(tl.load(tile + 2), 16)
    first = tl.load(tile + 3)
    count = tl.load(tile + 4)
    log_side = tl.load(tile + 5)
    stride_y = tl.load(tile + 6)
    start_y = tl.load(tile + 7)
    height = tl.load(tile + 8)
    # along a row of the big maps, in units of 32 channels
    stride_x = tl.load(tile + 9)
    start_x = tl.load(tile + 10)
    width = tl.load(tile + 11)
    units = tl.load(tile + 12)
    a_image = tl.multiple_of(tl.load(tile + 13), 16)
    a_row = tl.multiple_of(tl.load(tile + 14), 16)
    b_row = tl.multiple_of(tl.load(tile + 15), 16)
    k = tl.arange(0, 128)
    c = tl.arange(0, 32)
    side = (1 << log_side) - 1
    acc = tl.zeros((128, 32), tl.float32)
    for p0 in range(0, count, BK):
        p = p0 + tl.arange(0, BK)
        ok = p < count
        p = first + p
        y = stride_y * ((p >> log_side) & side) + start_y
        x = stride_x * (p & side) + start_x
        xs = x[:, None] + (k // 32)[None, :]
        inside = (ok & (y >= 0) & (y < height))[:, None] & (xs >= 0) & (xs < width)
        inside &= (k // 32 < units)[None, :]
        start = (p >> (2 * log_side)) * a_image + y * a_row + x * 32
        a = tl.load(a_ptr + start[:, None] + k[None, :], mask=inside, other=0.0)
        b = tl.load(b_ptr + p[:, None] * b_row + c[None, :], mask=ok[:, None], other=0.0)
        acc = multiply_transposed(a, b, acc, TF32)
    out = out_ptr + k[:, None] * b_row + c[None, :]
    tl.store(out, acc, mask=(k // 32 < units)[:, None])
    flag(flags_ptr, member, tl.max(not_finite(acc)))


@triton.jit
def weight_gradients_kernel(
    activations_ptr,  # [S, ...]
    tiles_ptr,  # [tiles, 16] int32: pyvae.engine.fused.tables.Tile
    gradients_ptr,  # [S, ...] float32
    flags_ptr,  # [S] int32
    first_tile,
    activations_ms,  # strides of members
    gradients_ms,
    BK: tl.constexpr,
    TF32: tl.constexpr,
    PDL: tl.constexpr,
):
    begin(PDL)
    member = tl.program_id(1).to(tl.int64)
    tile = tiles_ptr + (first_tile + tl.program_id(0)) * 16
    tile_gradient(
        tile, activations_ptr + member * activations_ms, gradients_ptr + member * gradients_ms, flags_ptr, member,
        BK, TF32,
    )  # fmt: skip
