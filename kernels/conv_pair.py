"""Convolutions of stride 2 and their transposes, each the other's data gradient, over all members of an ensemble.

A pair is small [S, B, H, H, CS], big [S, B, 2H, 2H, CB] and W [S, TAPS * TAPS, CB, CS], whose kernel is 4 x 4 with a
padding of 1, or 2 x 2 with none:

down   small[i, j] = sum over taps of big[2i - PAD + kh, 2j - PAD + kw] W[kh, kw]
up     its adjoint: each of the four parities of a pixel of big has its own half of the rows and columns of taps

With EDGE = 1 rows of maps larger than 4 x 4 have a column of zeros at either end, [H, H + 2, C], which nobody writes:
of them descriptor_gradients.py reads windows as boxes.

With channels last, the taps of a row are one run of TAPS * CB numbers: what ``down`` multiplies by W is read as rows
of a matrix, never made.
"""

import triton
import triton.language as tl

from .operands import begin, multiply, pixel, positive, relu_rounded, rounded


@triton.jit
def finish(
    acc,
    c,
    bias_ptr,
    gate_ptr,
    out_ptr,
    at,
    ok,
    sums_ptr,
    GATED: tl.constexpr,
    FEATURES: tl.constexpr,
    TF32: tl.constexpr,
):
    """Store acc [BM, C] with bias and ReLU; or, of a gradient, where the activation at the gate is above 0, and with it
    the sums of its columns [C] or, with FEATURES, of the columns of its rows of FEATURES: a part of a bias gradient."""
    if GATED:
        gate = tl.load(gate_ptr + at, mask=ok[:, None], other=0.0)
        acc = tl.where(positive(gate), acc, 0.0)
        if FEATURES:
            BM: tl.constexpr = acc.shape[0]
            C: tl.constexpr = acc.shape[1]
            sums = tl.sum(tl.reshape(acc, (BM * C // FEATURES, FEATURES)), 0)
            tl.store(sums_ptr + tl.arange(0, FEATURES), sums)
        else:
            tl.store(sums_ptr + c, tl.sum(acc, 0))
        tl.store(out_ptr + at, rounded(acc, out_ptr, TF32), mask=ok[:, None])
    else:
        acc += tl.load(bias_ptr + c)[None, :]
        tl.store(out_ptr + at, relu_rounded(acc, out_ptr, TF32), mask=ok[:, None])


@triton.jit
def conv_down_kernel(
    big_ptr,  # [S, B, 2H, 2H, CB]
    w_ptr,  # [S, TAPS * TAPS, CB, CS]
    bias_ptr,  # [S, CS] float32
    gate_ptr,  # as small
    small_ptr,  # [S, B, H, H, CS]
    sums_ptr,  # [S, programs, CS or H * H * CS] float32
    rows,  # B * H * H
    big_ms,  # strides of members
    w_ms,
    bias_ms,
    small_ms,
    sums_ms,
    H: tl.constexpr,
    CB: tl.constexpr,
    CS: tl.constexpr,
    TAPS: tl.constexpr,
    BM: tl.constexpr,
    BK: tl.constexpr,
    GATED: tl.constexpr,
    FEATURES: tl.constexpr,
    EDGE: tl.constexpr,
    TF32: tl.constexpr,
    PDL: tl.constexpr,
):
    begin(PDL)
    member = tl.program_id(1).to(tl.int64)
    pid = tl.program_id(0)
    big_ptr += member * big_ms
    w_ptr += member * w_ms
    PAD: tl.constexpr = TAPS // 2 - 1
    RUN: tl.constexpr = TAPS * CB
    m = pid * BM + tl.arange(0, BM)
    ok = m < rows
    ox = m % H
    oy = m // H % H
    n = m // (H * H)
    k = tl.arange(0, BK)
    c = tl.arange(0, CS)
    acc = tl.zeros((BM, CS), tl.float32)
    for q in range(TAPS * (RUN // BK)):
        kh = q // (RUN // BK)
        k0 = q % (RUN // BK) * BK
        y = 2 * oy - PAD + kh
        x = (2 * ox - PAD + k0 // CB)[:, None] + (k // CB)[None, :]
        inside = (ok & (y >= 0) & (y < 2 * H))[:, None] & (x >= 0) & (x < 2 * H)
        start = ((n * (2 * H) + y) * (2 * H + 2 * EDGE) + 2 * ox - PAD + EDGE) * CB + k0
        a = tl.load(big_ptr + start[:, None] + k[None, :], mask=inside, other=0.0)
        w = tl.load(w_ptr + (q * BK + k)[:, None] * CS + c[None, :])
        acc = multiply(a, w, acc, TF32)
    at = pixel(m, H, EDGE if H > 4 else 0)[:, None] * CS + c[None, :]
    width = FEATURES if FEATURES else CS
    finish(
        acc, c, bias_ptr + member * bias_ms, gate_ptr + member * small_ms, small_ptr + member * small_ms,
        at, ok, sums_ptr + member * sums_ms + pid * width, GATED, FEATURES, TF32,
    )  # fmt: skip


@triton.jit
def conv_up_kernel(
    small_ptr,  # [S, B, H, H, CS]
    w_ptr,  # [S, TAPS * TAPS, CB, CS]
    bias_ptr,  # [S, CB] float32
    gate_ptr,  # as big
    big_ptr,  # [S, B, 2H, 2H, CB]
    sums_ptr,  # [S, programs, CB] float32
    rows,  # B * H * H
    small_ms,
    w_ms,
    bias_ms,
    big_ms,
    sums_ms,
    H: tl.constexpr,
    CB: tl.constexpr,
    CS: tl.constexpr,
    TAPS: tl.constexpr,
    BM: tl.constexpr,
    GATED: tl.constexpr,
    EDGE: tl.constexpr,
    TF32: tl.constexpr,
    PDL: tl.constexpr,
):
    begin(PDL)
    member = tl.program_id(1).to(tl.int64)
    pid = tl.program_id(0)
    # the parities of a block lie side by side, to share what they read
    a = pid // 2 % 2
    b = pid % 2
    m = pid // 4 * BM + tl.arange(0, BM)
    ok = m < rows
    j = m % H
    i = m // H % H
    n = m // (H * H)
    c = tl.arange(0, CB)
    acc = parity(
        small_ptr + member * small_ms, w_ptr + member * w_ms, n, i, j, ok, a, b, H, CB, CS, TAPS, EDGE, BM, TF32
    )  # fmt: skip
    at = ((n * (2 * H) + 2 * i + a) * (2 * H + 2 * EDGE) + 2 * j + b + EDGE)[:, None] * CB + c[None, :]
    finish(
        acc, c, bias_ptr + member * bias_ms, gate_ptr + member * big_ms, big_ptr + member * big_ms,
        at, ok, sums_ptr + member * sums_ms + pid * CB, GATED, 0, TF32,
    )  # fmt: skip


@triton.jit
def parity(
    small_ptr,
    w_ptr,
    n,
    i,
    j,
    ok,
    a,
    b,
    H: tl.constexpr,
    CB: tl.constexpr,
    CS: tl.constexpr,
    TAPS: tl.constexpr,
    EDGE: tl.constexpr,
    BM: tl.constexpr,
    TF32: tl.constexpr,
):
    """What ``up`` gives at (2i + a, 2j + b) of images n, before anything is added: float32 [BM, CB]."""
    SIDE: tl.constexpr = TAPS // 2
    BESIDE: tl.constexpr = EDGE if H > 4 else 0
    k = tl.arange(0, SIDE * CS)
    c = tl.arange(0, CB)
    if SIDE == 2:
        first_x = j - 1 + b
        kw = 3 - b - 2 * (k // CS)
    else:
        first_x = j
        kw = b + k * 0
    x = first_x[:, None] + (k // CS)[None, :]
    inside = ok[:, None] & (x >= 0) & (x < H)
    acc = tl.zeros((BM, CB), tl.float32)
    for t in tl.static_range(SIDE):
        if SIDE == 2:
            y = i - 1 + a + t
            kh = 3 - a - 2 * t
        else:
            y = i
            kh = a
        start = ((n * H + y) * (H + 2 * BESIDE) + first_x + BESIDE) * CS
        v = tl.load(
            small_ptr + start[:, None] + k[None, :],
            mask=inside & ((y >= 0) & (y < H))[:, None],
            other=0.0,
        )
        w = tl.load(w_ptr + ((kh * TAPS + kw)[None, :] * CB + c[:, None]) * CS + (k % CS)[None, :])
        acc = multiply(v, tl.trans(w), acc, TF32)
    return acc
