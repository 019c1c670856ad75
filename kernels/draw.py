"""All that a step of a generator against a critic draws, in one launch: some four hundred in plain torch.

The generator's input of every row of the step is written as it is read: noise, continuous codes, and the category as
one of K. Nothing is read but the key.
"""

import triton
import triton.language as tl

from .philox import normal_rows, philox_at, uniform, uniform_rows


@triton.jit
def draw_kernel(
    key_ptr,  # [2] int64: seed, step
    input_ptr,  # [rows, noise + continuous + categories] float32
    category_ptr,  # [rows] int64
    point_ptr,  # [points] float32: uniform
    rows,
    points,
    noise,
    continuous,
    categories,
    NOISE: tl.constexpr,  # streams
    CODE: tl.constexpr,
    CATEGORY: tl.constexpr,
    POINT: tl.constexpr,
    HAS_NOISE: tl.constexpr,
    HAS_CONTINUOUS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,  # of each part of the input; a power of two, at least 4
):
    seed, step = tl.load(key_ptr), tl.load(key_ptr + 1)
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    block = tl.program_id(1)
    column = block * COLUMNS + tl.arange(0, COLUMNS)
    quad = block * (COLUMNS // 4) + tl.arange(0, COLUMNS // 4)
    held = row < rows
    at = input_ptr + row[:, None] * (noise + continuous + categories) + column[None, :]
    if HAS_NOISE:
        normal = normal_rows(seed, step, row, quad, noise, NOISE, ROWS, COLUMNS)
        tl.store(at, normal, mask=held[:, None] & (column < noise)[None, :])
    if HAS_CONTINUOUS:
        code = 2.0 * uniform_rows(seed, step, row, quad, continuous, CODE, ROWS, COLUMNS) - 1.0
        tl.store(at + noise, code, mask=held[:, None] & (column < continuous)[None, :])
    # rows of one value: a counter each
    word, _, _, _ = philox_at(seed, step, row, CATEGORY)
    # the high half of a 64-bit product
    category = (word.to(tl.int64) * categories) >> 32
    tl.store(category_ptr + row, category, mask=held & (block == 0))
    one_of = (category[:, None] == column[None, :]).to(tl.float32)
    tl.store(at + noise + continuous, one_of, mask=held[:, None] & (column < categories)[None, :])
    word, _, _, _ = philox_at(seed, step, row, POINT)
    tl.store(point_ptr + row, uniform(word), mask=(row < points) & (block == 0))
