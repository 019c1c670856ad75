"""Fully connected layers of all members of an ensemble, and their data gradients."""

import triton
import triton.language as tl

from .conv_pair import finish
from .operands import begin, multiply


@triton.jit
def dense_kernel(
    x_ptr,  # [S, rows, K]
    w_ptr,  # [S, K, N], or, transposed, [S, N, K]
    bias_ptr,  # [S, PERIOD] float32, PERIOD after PERIOD
    gate_ptr,  # as y
    y_ptr,  # [S, rows, N]
    sums_ptr,  # [S, blocks of rows, N] float32
    rows,
    x_ms,  # strides of members
    w_ms,
    bias_ms,
    y_ms,
    sums_ms,
    K: tl.constexpr,
    N: tl.constexpr,
    PERIOD: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    GATED: tl.constexpr,
    TF32: tl.constexpr,
    PDL: tl.constexpr,
):
    begin(PDL)
    member = tl.program_id(1).to(tl.int64)
    x_ptr += member * x_ms
    w_ptr += member * w_ms
    block = tl.program_id(0) // (N // BN)
    m = block * BM + tl.arange(0, BM)
    ok = m < rows
    c0 = tl.program_id(0) % (N // BN) * BN
    c = c0 + tl.arange(0, BN)
    k = tl.arange(0, BK)
    acc = tl.zeros((BM, BN), tl.float32)
    for k0 in range(0, K, BK):
        x = tl.load(x_ptr + m[:, None] * K + k0 + k[None, :], mask=ok[:, None], other=0.0)
        if TRANSPOSED:
            w = tl.trans(tl.load(w_ptr + c[:, None] * K + k0 + k[None, :]))
        else:
            w = tl.load(w_ptr + (k0 + k)[:, None] * N + c[None, :])
        acc = multiply(x, w, acc, TF32)
    at = m[:, None] * N + c[None, :]
    finish(
        acc, tl.arange(0, BN), bias_ptr + member * bias_ms + c0 % PERIOD, gate_ptr + member * y_ms,
        y_ptr + member * y_ms, at, ok, sums_ptr + member * sums_ms + block * N + c0, GATED, 0, TF32,
    )  # fmt: skip
