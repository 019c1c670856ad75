"""Weight gradients with those of convolution pairs by tensor descriptors: whole boxes of the maps come to shared
memory with neither masks nor addresses (compute capability 9.0 and up). Those of dense layers are as in
weight_gradients.py.

Output (i, j) of a pair reads rows 2i - 1 .. 2i + 2 of its big maps and, behind a column of zeros, columns 2j .. 2j +
3 of what is stored. So rows are taken in pairs, and columns too: big maps are [S, 2B, H, 2 (H + 1), 2 CB], whose last
dimension but one runs over the pairs of columns of one row, then of the other. Rows outside an image read as zeros.
Kernels of 2 x 2 without padding are the middle of these windows.

Maps of one side lie next to each other, the encoder's first: hence 2B images, and six descriptors in all. What they
read was stored by kernels before this one; what a kernel itself has stored they may not see.
"""

import triton
import triton.language as tl

from .operands import begin, flag, multiply_transposed, not_finite
from .weight_gradients import tile_gradient


@triton.jit
def box_gradient(
    big,  # boxes [1, images, rows, H, 64] of [S, 2B, H, 2 (H + 1), 2 CB], of BOX positions
    small,  # boxes [1, images, rows, H, 32] of [S, 2B, H, H, CS]
    tile,
    gradients_ptr,
    flags_ptr,
    member,
    H: tl.constexpr,
    BOX: tl.constexpr,
    STAGES: tl.constexpr,
    TF32: tl.constexpr,
):
    """A tile [128, 32] as in weight_gradients.py, of which rows come from two boxes of 64 numbers."""
    ROWS: tl.constexpr = H if H * H <= BOX else BOX // H
    IMAGES: tl.constexpr = BOX // (ROWS * H)
    out_ptr = gradients_ptr + tl.multiple_of(tl.load(tile), 16)
    out_row = tl.multiple_of(tl.load(tile + 1), 16)
    image = tl.load(tile + 2)
    first = tl.load(tile + 3)
    blocks = tl.load(tile + 4)
    row = tl.load(tile + 5)
    column_0 = tl.load(tile + 6)
    channel_0 = tl.load(tile + 7)
    column_1 = tl.load(tile + 8)
    channel_1 = tl.load(tile + 9)
    channel = tl.load(tile + 10)
    # of the tile's rows, in units of 32
    begins = tl.load(tile + 11)
    ends = tl.load(tile + 12)
    s = member.to(tl.int32)
    acc_0 = tl.zeros((64, 32), tl.float32)
    acc_1 = tl.zeros((64, 32), tl.float32)
    for block in tl.range(first, first + blocks, num_stages=STAGES):
        n = image + block // (H // ROWS) * IMAGES
        i = block % (H // ROWS) * ROWS
        g = small.load([s, n, i, 0, channel]).reshape(BOX, 32)
        a = big.load([s, n, i + row, column_0, channel_0]).reshape(BOX, 64)
        b = big.load([s, n, i + row, column_1, channel_1]).reshape(BOX, 64)
        acc_0 = multiply_transposed(a, g, acc_0, TF32)
        acc_1 = multiply_transposed(b, g, acc_1, TF32)
    k = tl.arange(0, 64)
    unit = (k // 32)[:, None]
    out = out_ptr + k[:, None] * out_row + tl.arange(0, 32)[None, :]
    tl.store(out, acc_0, mask=(unit >= begins) & (unit < ends))
    tl.store(out + 64 * out_row, acc_1, mask=(unit + 2 >= begins) & (unit + 2 < ends))
    bad = tl.maximum(not_finite(acc_0), not_finite(acc_1))
    flag(flags_ptr, member, tl.max(bad))


@triton.jit
def descriptor_gradients_kernel(
    big_16,  # of pairs whose small maps have a side of 16, of 8, of 4
    small_16,
    big_8,
    small_8,
    big_4,
    small_4,
    activations_ptr,  # [S, ...]
    tiles_ptr,  # [tiles, 16] int32: pyvae.engine.fused.plan.BoxTile, then Tile
    gradients_ptr,  # [S, ...] float32
    flags_ptr,  # [S] int32
    first_tile,
    until_16,  # tiles of this launch of side 16, of 16 or 8, of any pair
    until_8,
    until_4,
    activations_ms,  # strides of members
    gradients_ms,
    BK: tl.constexpr,
    BOX: tl.constexpr,
    STAGES: tl.constexpr,
    TF32: tl.constexpr,
    PDL: tl.constexpr,
):
    begin(PDL)
    member = tl.program_id(1).to(tl.int64)
    pid = tl.program_id(0)
    tile = tiles_ptr + (first_tile + pid) * 16
    gradients_ptr += member * gradients_ms
    if pid < until_16:
        box_gradient(big_16, small_16, tile, gradients_ptr, flags_ptr, member, 16, BOX, STAGES, TF32)
    elif pid < until_8:
        box_gradient(big_8, small_8, tile, gradients_ptr, flags_ptr, member, 8, BOX, STAGES, TF32)
    elif pid < until_4:
        box_gradient(big_4, small_4, tile, gradients_ptr, flags_ptr, member, 4, BOX, STAGES, TF32)
    else:
        tile_gradient(
            tile, activations_ptr + member * activations_ms, gradients_ptr, flags_ptr, member, BK, TF32
        )
