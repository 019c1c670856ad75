"""Black and white images drawn from grey ones, in one pass: some two hundred launches in plain torch."""

import triton
import triton.language as tl

from .philox import philox_at, uniform


@triton.jit
def binarise_kernel(
    grey_ptr,  # [rows, pixels] float32 in [0, 1]
    seed_ptr,  # [] int64
    step_ptr,  # [] int64
    white_ptr,  # [rows, pixels] float32
    counters,  # rows * quads
    quads,  # counters of a row
    pixels,
    STREAM: tl.constexpr,
    WHOLE: tl.constexpr,  # four divides pixels
    BLOCK: tl.constexpr,  # counters of a program
):
    first = tl.program_id(0).to(tl.int64) * BLOCK
    counter = first + tl.arange(0, BLOCK)
    w0, w1, w2, w3 = philox_at(tl.load(seed_ptr), tl.load(step_ptr), counter, STREAM)
    even = tl.join(uniform(w0), uniform(w2))
    draw = tl.join(even, tl.join(uniform(w1), uniform(w3))).reshape(4 * BLOCK)
    at = 4 * first + tl.arange(0, 4 * BLOCK)
    held = at // 4 < counters
    if not WHOLE:
        column = at % (4 * quads)
        held = held & (column < pixels)
        at = at // (4 * quads) * pixels + column
    grey = tl.load(grey_ptr + at, mask=held, other=0.0)
    tl.store(white_ptr + at, (draw < grey).to(tl.float32), mask=held)
