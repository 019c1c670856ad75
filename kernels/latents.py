"""Between encoder and decoder of all members: the head, noise and KL, and the decoder's first layer; and their
backward.

Programs have BM rows each. Mean and log-variance are padded from D to P latents, each in its half of the head's 2 P
outputs; z is padded to Z = max(P, 32), that its weight gradient is made of whole tiles.
"""

import triton
import triton.language as tl

from .operands import begin, flag, multiply, not_finite, positive, relu_rounded, rounded
from .philox import normal_rows


@triton.jit
def latents_kernel(
    x_ptr,  # [S, B, K]
    wh_ptr,  # [S, K, 2 P]
    bh_ptr,  # [S, 2 P] float32
    wd_ptr,  # [S, N, Z]
    bd_ptr,  # [S, N] float32
    key_ptr,  # [S, 2] int64: seed, step
    stats_ptr,  # [S, 3, B, P] float32: mu, logvar, z
    z_ptr,  # [S, B, Z]
    kl_ptr,  # [S, programs, P] float32: parts of the KL of each latent, averaged over the batch
    y_ptr,  # [S, B, N]
    flags_ptr,  # [S] int32
    rows,  # B
    D,
    x_ms,  # strides of members
    wh_ms,
    bh_ms,
    wd_ms,
    bd_ms,
    stats_ms,
    z_ms,
    kl_ms,
    y_ms,
    BM: tl.constexpr,
    K: tl.constexpr,
    N: tl.constexpr,
    P: tl.constexpr,
    Z: tl.constexpr,
    BK: tl.constexpr,
    BN: tl.constexpr,
    STREAM: tl.constexpr,
    DECODES: tl.constexpr,
    TF32: tl.constexpr,
    PDL: tl.constexpr,
):
    """x -> mu, logvar -> z -> relu(z W + b), the last with DECODES alone."""
    begin(PDL)
    block = tl.program_id(0)
    member = tl.program_id(1).to(tl.int64)
    x_ptr += member * x_ms
    wh_ptr += member * wh_ms
    bh_ptr += member * bh_ms
    m = block * BM + tl.arange(0, BM)
    ok = m < rows
    k = tl.arange(0, BK)
    d = tl.arange(0, P)
    mu = tl.zeros((BM, P), tl.float32)
    logvar = tl.zeros((BM, P), tl.float32)
    for k0 in range(0, K, BK):
        x = tl.load(x_ptr + m[:, None] * K + k0 + k[None, :], mask=ok[:, None], other=0.0)
        w = wh_ptr + (k0 + k)[:, None] * (2 * P) + d[None, :]
        mu = multiply(x, tl.load(w), mu, TF32)
        logvar = multiply(x, tl.load(w + P), logvar, TF32)
    held = ok[:, None] & (d < D)[None, :]
    mu = tl.where(held, mu + tl.load(bh_ptr + d)[None, :], 0.0)
    logvar = tl.where(held, logvar + tl.load(bh_ptr + P + d)[None, :], 0.0)
    key = key_ptr + member * 2
    eps = normal_rows(tl.load(key), tl.load(key + 1), m, tl.arange(0, P // 4), D, STREAM, BM, P)
    z = tl.where(held, mu + tl.exp(0.5 * logvar) * eps, 0.0)
    kl = tl.sum(0.5 * (mu * mu + tl.exp(logvar) - 1.0 - logvar), 0) / rows
    tl.store(kl_ptr + member * kl_ms + block * P + d, kl)
    at = m[:, None] * P + d[None, :]
    stats_ptr += member * stats_ms
    tl.store(stats_ptr + at, mu, mask=ok[:, None])
    tl.store(stats_ptr + rows * P + at, logvar, mask=ok[:, None])
    tl.store(stats_ptr + 2 * rows * P + at, z, mask=ok[:, None])
    if DECODES:
        operand = rounded(z, z_ptr, TF32)
        z_ptr += member * z_ms
        tl.store(z_ptr + m[:, None] * Z + d[None, :], operand, mask=ok[:, None])
        for p0 in tl.static_range(P, Z, P):
            tl.store(z_ptr + m[:, None] * Z + p0 + d[None, :], operand * 0, mask=ok[:, None])
        wd_ptr += member * wd_ms
        bd_ptr += member * bd_ms
        y_ptr += member * y_ms
        for n0 in range(0, N, BN):
            c = n0 + tl.arange(0, BN)
            w = tl.trans(tl.load(wd_ptr + c[:, None] * Z + d[None, :]))
            y = multiply(operand, w, tl.zeros((BM, BN), tl.float32), TF32) + tl.load(bd_ptr + c)[None, :]
            tl.store(y_ptr + m[:, None] * N + c[None, :], relu_rounded(y, y_ptr, TF32), mask=ok[:, None])
        flag(flags_ptr, member, tl.max(not_finite(kl), 0))


@triton.jit
def latents_backward_kernel(
    gy_ptr,  # [S, B, N]: gradient at the product of the decoder's first layer
    wd_ptr,  # [S, N, Z]
    wh_ptr,  # [S, K, 2 P]
    stats_ptr,  # [S, 3, B, P] float32: mu, logvar, z
    extra_ptr,  # [S, 3, B, P] float32: gradients at them beside those of reconstruction and weighted KL
    key_ptr,  # [S, 2] int64: seed, step
    weight_ptr,  # [S] float32, of the KL
    x_ptr,  # [S, B, K]
    gstats_ptr,  # [S, B, 2 P]: gradient at mu and logvar
    gx_ptr,  # [S, B, K]: gradient at the product whose ReLU x is
    gbh_ptr,  # [S, programs, 2 P] float32
    gbx_ptr,  # [S, programs, K] float32
    rows,  # B
    D,
    gy_ms,  # strides of members
    wd_ms,
    wh_ms,
    stats_ms,
    x_ms,
    gstats_ms,
    gbh_ms,
    gbx_ms,
    BM: tl.constexpr,
    K: tl.constexpr,
    N: tl.constexpr,
    P: tl.constexpr,
    Z: tl.constexpr,
    BK: tl.constexpr,
    BN: tl.constexpr,
    STREAM: tl.constexpr,
    EXTRA: tl.constexpr,
    TF32: tl.constexpr,
    PDL: tl.constexpr,
):
    begin(PDL)
    block = tl.program_id(0)
    member = tl.program_id(1).to(tl.int64)
    gy_ptr += member * gy_ms
    wd_ptr += member * wd_ms
    m = block * BM + tl.arange(0, BM)
    ok = m < rows
    k = tl.arange(0, BK)
    d = tl.arange(0, P)
    gz = tl.zeros((BM, P), tl.float32)
    for k0 in range(0, N, BK):
        g = tl.load(gy_ptr + m[:, None] * N + k0 + k[None, :], mask=ok[:, None], other=0.0)
        gz = multiply(g, tl.load(wd_ptr + (k0 + k)[:, None] * Z + d[None, :]), gz, TF32)
    at = m[:, None] * P + d[None, :]
    held = ok[:, None] & (d < D)[None, :]
    stats_ptr += member * stats_ms
    mu = tl.load(stats_ptr + at, mask=ok[:, None], other=0.0)
    logvar = tl.load(stats_ptr + rows * P + at, mask=ok[:, None], other=0.0)
    weight = tl.load(weight_ptr + member)
    gmu = weight * mu
    glogvar = 0.5 * weight * (tl.exp(logvar) - 1.0)
    if EXTRA:
        extra_ptr += member * stats_ms
        gmu += tl.load(extra_ptr + at, mask=held, other=0.0)
        glogvar += tl.load(extra_ptr + rows * P + at, mask=held, other=0.0)
        gz += tl.load(extra_ptr + 2 * rows * P + at, mask=held, other=0.0)
    key = key_ptr + member * 2
    eps = normal_rows(tl.load(key), tl.load(key + 1), m, tl.arange(0, P // 4), D, STREAM, BM, P)
    gmu = tl.where(held, gmu + gz, 0.0)
    glogvar = tl.where(held, glogvar + 0.5 * gz * tl.exp(0.5 * logvar) * eps, 0.0)
    bias = gbh_ptr + member * gbh_ms + block * (2 * P) + d
    tl.store(bias, tl.sum(gmu, 0))
    tl.store(bias + P, tl.sum(glogvar, 0))
    gmu = rounded(gmu, gstats_ptr, TF32)
    glogvar = rounded(glogvar, gstats_ptr, TF32)
    out = gstats_ptr + member * gstats_ms + m[:, None] * (2 * P) + d[None, :]
    tl.store(out, gmu, mask=ok[:, None])
    tl.store(out + P, glogvar, mask=ok[:, None])
    wh_ptr += member * wh_ms
    x_ptr += member * x_ms
    gx_ptr += member * x_ms
    for n0 in range(0, K, BN):
        c = n0 + tl.arange(0, BN)
        w = wh_ptr + c[:, None] * (2 * P) + d[None, :]
        g = multiply(gmu, tl.trans(tl.load(w)), tl.zeros((BM, BN), tl.float32), TF32)
        g = multiply(glogvar, tl.trans(tl.load(w + P)), g, TF32)
        columns = m[:, None] * K + c[None, :]
        x = tl.load(x_ptr + columns, mask=ok[:, None], other=0.0)
        g = tl.where(positive(x), g, 0.0)
        tl.store(gbx_ptr + member * gbx_ms + block * K + c, tl.sum(g, 0))
        tl.store(gx_ptr + columns, rounded(g, gx_ptr, TF32), mask=ok[:, None])
