"""Adam over the flat weights of all members: sums the parts of each gradient in a fixed order, moves the weights and
rounds them for the next step's products; and makes the next step's batch, which nothing else waits for.

A program has a block of one parameter: WIDE of its elements where there are few parts, COLUMNS of them where there are
many. The squares of the gradient that it has summed are kept, a number for each program, for the norm.
"""

import triton
import triton.language as tl

from .conv_ends import gather_batch
from .operands import begin, not_finite, rounded


@triton.jit
def _one_minus_power(log_beta, t):
    """1 - beta^t, without cancellation where t log beta is small."""
    x = t * log_beta
    p = x * (1.0 / 5040.0) + 1.0 / 720.0
    p = p * x + 1.0 / 120.0
    p = p * x + 1.0 / 24.0
    p = p * x + 1.0 / 6.0
    p = p * x + 0.5
    p = p * x + 1.0
    return tl.where(x > -0.5, -x * p, 1.0 - tl.exp(x))


@triton.jit
def _move(
    g, at, held, hyper_ptr, step, frozen, master_ptr, exp_avg_ptr, exp_avg_sq_ptr, weight_ptr, TF32: tl.constexpr
):  # fmt: skip
    """Move the parameters at ``at`` by their gradient; returns the sum of its squares."""
    t = (step + 1).to(tl.float32)
    rate = tl.load(hyper_ptr) / _one_minus_power(tl.load(hyper_ptr + 4), t)
    scale = 1.0 / tl.sqrt(_one_minus_power(tl.load(hyper_ptr + 5), t))
    squares = tl.sum(tl.where(held, g * g, 0.0), 0)
    # no other parameter is spoilt by one whose parts are finite and whose sum is not: the norm then tells of it
    moves = not_finite(g) == 0
    stored = held & (frozen == 0)
    m = tl.load(exp_avg_ptr + at, mask=stored, other=0.0)
    v = tl.load(exp_avg_sq_ptr + at, mask=stored, other=0.0)
    w = tl.load(master_ptr + at, mask=stored, other=0.0)
    # a mask that says nothing of g leaves loads and stores of 16 bytes
    m = tl.where(moves, m + (g - m) * tl.load(hyper_ptr + 1), m)
    v = tl.where(moves, v + (g * g - v) * tl.load(hyper_ptr + 2), v)
    w = tl.where(moves, w - rate * m / (tl.sqrt(v) * scale + tl.load(hyper_ptr + 3)), w)
    tl.store(exp_avg_ptr + at, m, mask=stored)
    tl.store(exp_avg_sq_ptr + at, v, mask=stored)
    tl.store(master_ptr + at, w, mask=stored)
    tl.store(weight_ptr + at, rounded(w, weight_ptr, TF32), mask=stored)
    return squares


@triton.jit
def flat_adam_kernel(
    gradients_ptr,  # [S, ...] float32: parts of the gradients of the batch's sum
    blocks_ptr,  # [blocks, 8] int32: pyvae.engine.fused.tables.Block
    master_ptr,  # [S, P] float32
    exp_avg_ptr,  # [S, P] float32
    exp_avg_sq_ptr,  # [S, P] float32
    weight_ptr,  # [S, P], operands
    hyper_ptr,  # [S, 8] float32: lr, 1 - beta1, 1 - beta2, epsilon, log beta1, log beta2
    key_ptr,  # [S, 2] int64: seed, step
    flags_ptr,  # [S] int32: nothing is learnt where one is not 0
    squares_ptr,  # [S, blocks] float32
    store_ptr,  # as batch_kernel
    ahead_ptr,
    batch_ptr,
    blocks,
    scale,  # 1 / B
    images,  # B
    gradients_ms,  # strides of members
    weights_ms,
    ahead_ms,
    batch_ms,
    WIDE: tl.constexpr,
    PARTS: tl.constexpr,
    COLUMNS: tl.constexpr,
    WINDOW: tl.constexpr,
    CHANNELS: tl.constexpr,
    BITS: tl.constexpr,
    BLOCK: tl.constexpr,
    TF32: tl.constexpr,
    PDL: tl.constexpr,
):
    begin(PDL)
    pid = tl.program_id(0)
    member = tl.program_id(1).to(tl.int64)
    step = tl.load(key_ptr + member * 2 + 1)
    if pid < blocks:
        block = blocks_ptr + pid * 8
        gradients_ptr += member * gradients_ms + tl.multiple_of(tl.load(block), 16)
        base = member * weights_ms + tl.multiple_of(tl.load(block + 1), 16)
        parts = tl.load(block + 2)
        stride = tl.multiple_of(tl.load(block + 3), 16)
        size = tl.multiple_of(tl.load(block + 4), 16)
        frozen = tl.load(flags_ptr + member)
        hyper_ptr += member * 8
        squares = 0.0
        if parts <= 16:
            e = tl.arange(0, WIDE)
            g = tl.load(gradients_ptr + e, mask=e < size, other=0.0)
            for p in range(1, parts):
                g += tl.load(gradients_ptr + p * stride + e, mask=e < size, other=0.0)
            squares = _move(
                g * scale, base + e, e < size, hyper_ptr, step, frozen,
                master_ptr, exp_avg_ptr, exp_avg_sq_ptr, weight_ptr, TF32,
            )  # fmt: skip
        else:
            f = tl.arange(0, COLUMNS)
            h = tl.zeros((COLUMNS,), tl.float32)
            for p0 in range(0, parts, PARTS):
                q = p0 + tl.arange(0, PARTS)
                held = (q < parts)[:, None] & (f < size)[None, :]
                part = tl.load(gradients_ptr + q[:, None] * stride + f[None, :], mask=held, other=0.0)
                h += tl.sum(part, 0)
            squares = _move(
                h * scale, base + f, f < size, hyper_ptr, step, frozen,
                master_ptr, exp_avg_ptr, exp_avg_sq_ptr, weight_ptr, TF32,
            )  # fmt: skip
        tl.store(squares_ptr + member * blocks + pid, squares)
    else:
        gather_batch(
            store_ptr, ahead_ptr, step + 1, member, batch_ptr, pid - blocks, images, ahead_ms, batch_ms,
            WINDOW, CHANNELS, BITS, BLOCK,
        )  # fmt: skip
