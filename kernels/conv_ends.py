"""The two ends of the networks, where images are: the first convolution, the last transposed one with the loss, and the
backward of both. Logits are never stored, nor is the gradient of the first convolution.

Images [S, B] of a batch lie as *batch*: of bits, a word int16 of the 4 x 4 pixels under each output (Y, X) of the first
convolution, [S, B, 32, 32], whose bit 4 r + c is pixel (2Y - 1 + r, 2X - 1 + c); else bytes [S, B, C, 64, 64].

W of the first convolution and of the last transposed one is [S, C, 16 taps, 32]; activations beside images are
[S, B, 32, 32, 32], with a column of zeros at either end of a row if EDGE = 1. Gradients are those of the sum over the
batch.
"""

import triton
import triton.language as tl

from .conv_pair import parity
from .operands import begin, flag, multiply, not_finite, pixel, positive, relu_rounded, rounded


@triton.jit
def gather_batch(
    store_ptr,
    ahead_ptr,
    step,
    member,
    batch_ptr,
    pid,
    images,
    ahead_ms,
    batch_ms,
    WINDOW: tl.constexpr,
    CHANNELS: tl.constexpr,
    BITS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Block ``pid`` of the batch of a step, of BLOCK words or bytes."""
    SIZE: tl.constexpr = 1024 if BITS else CHANNELS * 4096
    image = pid // (SIZE // BLOCK)
    at = pid % (SIZE // BLOCK) * BLOCK + tl.arange(0, BLOCK)
    index = tl.load(ahead_ptr + member * ahead_ms + step % WINDOW * images + image)
    batch_ptr += member * batch_ms + image.to(tl.int64) * SIZE
    if BITS:
        # a row of 64 pixels is an integer
        rows_ptr = store_ptr + index * 64
        Y = at // 32
        X = at % 32
        word = at * 0
        right = tl.maximum(2 * X - 1, 0).to(tl.uint64)
        for r in tl.static_range(4):
            y = 2 * Y - 1 + r
            row = tl.load(rows_ptr + y, mask=(y >= 0) & (y < 64), other=0).to(tl.uint64, bitcast=True)
            row = tl.where(X > 0, row >> right, row << 1)
            word |= (row & 15).to(tl.int32) << (4 * r)
        tl.store(batch_ptr + at, word.to(tl.int16))
    else:
        tl.store(batch_ptr + at, tl.load(store_ptr + index * SIZE + at))


@triton.jit
def batch_kernel(
    store_ptr,  # [images of the data set, 64] int64 of bits, or [.., C * 4096] uint8
    ahead_ptr,  # [S, WINDOW, B] int64
    key_ptr,  # [S, 2] int64: seed, step
    batch_ptr,
    images,  # B
    ahead_ms,  # strides of members
    batch_ms,
    WINDOW: tl.constexpr,
    CHANNELS: tl.constexpr,
    BITS: tl.constexpr,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    begin(PDL)
    member = tl.program_id(1).to(tl.int64)
    step = tl.load(key_ptr + member * 2 + 1)
    gather_batch(
        store_ptr, ahead_ptr, step, member, batch_ptr, tl.program_id(0), images, ahead_ms, batch_ms,
        WINDOW, CHANNELS, BITS, BLOCK,
    )  # fmt: skip


@triton.jit
def patch(batch_ptr, n, Y, X, channel, like, CHANNELS: tl.constexpr, BITS: tl.constexpr):
    """The 16 pixels under each output (Y, X) of the first convolution, times 255 where images are bytes: [BM, 16]."""
    k = tl.arange(0, 16)
    if BITS:
        word = tl.load(batch_ptr + (n * 32 + Y) * 32 + X).to(tl.int32)
        # a choice between two constants takes the fewest instructions; 0 and 1 are exact
        return tl.where(((word[:, None] >> k[None, :]) & 1) != 0, 1.0, 0.0).to(like.dtype.element_ty)
    y = (2 * Y - 1)[:, None] + (k // 4)[None, :]
    x = (2 * X - 1)[:, None] + (k % 4)[None, :]
    inside = (y >= 0) & (y < 64) & (x >= 0) & (x < 64)
    at = ((n * CHANNELS + channel)[:, None] * 64 + y) * 64 + x
    # up to 255 exact in 16 bits, too
    return tl.load(batch_ptr + at, mask=inside, other=0).to(tl.float32).to(like.dtype.element_ty)


@triton.jit
def first_conv(
    batch_ptr,
    n,
    Y,
    X,
    w_ptr,
    b_ptr,
    CHANNELS: tl.constexpr,
    BITS: tl.constexpr,
    BM: tl.constexpr,
    TF32: tl.constexpr,
):
    """The first convolution at (Y, X) of images n, before its ReLU: float32 [BM, 32]."""
    k = tl.arange(0, 16)
    c = tl.arange(0, 32)
    h = tl.zeros((BM, 32), tl.float32)
    for channel in tl.static_range(CHANNELS):
        w = tl.load(w_ptr + (channel * 16 + k)[:, None] * 32 + c[None, :])
        h = multiply(patch(batch_ptr, n, Y, X, channel, w_ptr, CHANNELS, BITS), w, h, TF32)
    if not BITS:
        h *= 1.0 / 255.0
    return h + tl.load(b_ptr + c)[None, :]


@triton.jit
def first_conv_kernel(
    batch_ptr,
    w_ptr,  # [S, C, 16, 32]
    b_ptr,  # [S, 32] float32
    h_ptr,  # [S, B, 32, 32, 32]
    batch_ms,  # strides of members
    w_ms,
    b_ms,
    h_ms,
    CHANNELS: tl.constexpr,
    BITS: tl.constexpr,
    EDGE: tl.constexpr,
    BM: tl.constexpr,
    TF32: tl.constexpr,
    PDL: tl.constexpr,
):
    begin(PDL)
    member = tl.program_id(1).to(tl.int64)
    at = tl.program_id(0) * BM + tl.arange(0, BM)
    h = first_conv(
        batch_ptr + member * batch_ms, at // 1024, at // 32 % 32, at % 32, w_ptr + member * w_ms,
        b_ptr + member * b_ms, CHANNELS, BITS, BM, TF32,
    )  # fmt: skip
    out = h_ptr + member * h_ms
    at = out + pixel(at, 32, EDGE)[:, None] * 32 + tl.arange(0, 32)[None, :]
    tl.store(at, relu_rounded(h, out, TF32))


@triton.jit
def up_first_conv_kernel(
    batch_ptr,
    w1_ptr,  # [S, C, 16, 32], of the first convolution
    b1_ptr,  # [S, 32] float32
    w2_ptr,  # [S, 16, 32, 32], of the second
    g2_ptr,  # [S, B, 16, 16, 32], gradient at the second's product
    g1w_ptr,  # [S, programs, C, 16, 32] float32
    g1b_ptr,  # [S, programs, 32] float32
    flags_ptr,  # [S] int32
    rows,  # B * 256
    batch_ms,  # strides of members
    w1_ms,
    b1_ms,
    w2_ms,
    g2_ms,
    g1w_ms,
    g1b_ms,
    CHANNELS: tl.constexpr,
    BITS: tl.constexpr,
    EDGE: tl.constexpr,
    BM: tl.constexpr,
    TF32: tl.constexpr,
    PDL: tl.constexpr,
):
    """Data gradient of the second convolution, and the weight gradient of the first, which is computed again."""
    begin(PDL)
    member = tl.program_id(1).to(tl.int64)
    pid = tl.program_id(0)
    batch_ptr += member * batch_ms
    w1_ptr += member * w1_ms
    m = pid * BM + tl.arange(0, BM)
    n = m // 256
    i = m // 16 % 16
    j = m % 16
    k = tl.arange(0, 16)
    c = tl.arange(0, 32)
    gw = ()
    for _ in tl.static_range(CHANNELS):
        gw = gw + (tl.zeros((16, 32), tl.float32),)  # noqa: RUF005 - Triton has no other way
    gb = tl.zeros((BM, 32), tl.float32)
    for p in range(4):
        a = p // 2
        b = p % 2
        g = parity(
            g2_ptr + member * g2_ms, w2_ptr + member * w2_ms, n, i, j, m < rows, a, b, 16, 32, 32, 4, EDGE, BM, TF32
        )  # fmt: skip
        Y = 2 * i + a
        X = 2 * j + b
        h = first_conv(batch_ptr, n, Y, X, w1_ptr, b1_ptr + member * b1_ms, CHANNELS, BITS, BM, TF32)
        # a NaN there has flagged the step before this
        g = tl.where(h > 0, g, 0.0)
        gb += g
        operand = rounded(g, w1_ptr, TF32)
        sums = ()
        for channel in tl.static_range(CHANNELS):
            pixels = patch(batch_ptr, n, Y, X, channel, w1_ptr, CHANNELS, BITS)
            sums = sums + (multiply(tl.trans(pixels), operand, gw[channel], TF32),)  # noqa: RUF005
        gw = sums
    sums_b = tl.sum(gb, 0)
    bad = tl.max(not_finite(sums_b), 0)
    for channel in tl.static_range(CHANNELS):
        out = gw[channel] if BITS else gw[channel] * (1.0 / 255.0)
        bad |= tl.max(not_finite(out))
        tl.store(
            g1w_ptr + member * g1w_ms + (pid * CHANNELS + channel) * 512 + k[:, None] * 32 + c[None, :], out
        )
    tl.store(g1b_ptr + member * g1b_ms + pid * 32 + c, sums_b)
    flag(flags_ptr, member, bad)


@triton.jit
def bernoulli(logit, x):
    """Negative log-likelihood in nats of x in [0, 1] and its derivative, which is exact in the tails."""
    e = tl.exp(-tl.abs(logit))
    u = 1.0 + e
    tail = tl.fdiv(e, u)
    nll = tl.maximum(logit, 0.0, propagate_nan=tl.PropagateNan.ALL) - logit * x + tl.log(u)
    return nll, tl.where(logit >= 0.0, (1.0 - x) - tail, tail - x)


@triton.jit
def loss_kernel(
    batch_ptr,
    h_ptr,  # [S, B, 32, 32, 32]
    w_ptr,  # [S, C, 16, 32]
    b_ptr,  # [S, C] float32
    dl_ptr,  # [S, B, C, 64, 64]: gradient at the logits
    nll_ptr,  # [S, tiles, C] float32
    gb_ptr,  # [S, tiles, 16] float32, zero behind C
    flags_ptr,  # [S] int32
    rows,  # B * 256
    batch_ms,  # strides of members
    h_ms,
    w_ms,
    b_ms,
    dl_ms,
    nll_ms,
    gb_ms,
    CHANNELS: tl.constexpr,
    BITS: tl.constexpr,
    EDGE: tl.constexpr,
    BM: tl.constexpr,
    TF32: tl.constexpr,
    PDL: tl.constexpr,
):
    """Logits of BM blocks of 4 x 4 pixels of a channel, their loss and its gradient.

    A block depends on the 4 x 4 window of its 2 x 2 inputs, so that this is conv_down of 16 outputs, one for each of
    its pixels, to which a tap that does not reach it adds nothing.
    """
    begin(PDL)
    member = tl.program_id(1).to(tl.int64)
    channel = tl.program_id(0) % CHANNELS
    tile = tl.program_id(0) // CHANNELS
    h_ptr += member * h_ms
    w_ptr += member * w_ms + channel * 512
    pixel = tl.arange(0, 16)
    k = tl.arange(0, 128)
    m = tile * BM + tl.arange(0, BM)
    ok = m < rows
    j = m % 16
    i = m // 16 % 16
    n = m // 256
    x = (2 * j - 1)[:, None] + (k // 32)[None, :]
    inside = ok[:, None] & (x >= 0) & (x < 32)
    qy = pixel // 4
    qx = pixel % 4
    kx = (qx + 3)[None, :] - 2 * (k // 32)[:, None]
    acc = tl.zeros((BM, 16), tl.float32) + tl.load(b_ptr + member * b_ms + channel)
    for kh in range(4):
        y = 2 * i - 1 + kh
        start = ((n * 32 + y) * (32 + 2 * EDGE) + 2 * j - 1 + EDGE) * 32
        v = tl.load(
            h_ptr + start[:, None] + k[None, :], mask=inside & ((y >= 0) & (y < 32))[:, None], other=0.0
        )
        ky = qy + 3 - 2 * kh
        reached = ((ky >= 0) & (ky < 4))[None, :] & (kx >= 0) & (kx < 4)
        w = tl.load(w_ptr + (ky[None, :] * 4 + kx) * 32 + (k % 32)[:, None], mask=reached, other=0.0)
        acc = multiply(v, w, acc, TF32)
    py = 4 * i[:, None] + qy[None, :]
    px = 4 * j[:, None] + qx[None, :]
    batch_ptr += member * batch_ms
    if BITS:
        words = batch_ptr + n[:, None] * 1024 + py // 2 * 32 + px // 2
        word = tl.load(words, mask=ok[:, None], other=0).to(tl.int32)
        target = ((word >> ((py % 2 + 1) * 4 + px % 2 + 1)) & 1).to(tl.float32)
    else:
        at = (n * CHANNELS + channel)[:, None] * 4096 + py * 64 + px
        target = tl.load(batch_ptr + at, mask=ok[:, None], other=0).to(tl.float32) * (1.0 / 255.0)
    nll, d = bernoulli(acc, target)
    nll = tl.where(ok[:, None], nll, 0.0)
    d = tl.where(ok[:, None], d, 0.0)
    total = tl.sum(nll)
    tl.store(nll_ptr + member * nll_ms + tile * CHANNELS + channel, total)
    mine = (pixel == channel) | ((pixel >= CHANNELS) & (channel == 0))
    tl.store(
        gb_ptr + member * gb_ms + tile * 16 + pixel, tl.where(pixel == channel, tl.sum(d), 0.0), mask=mine
    )
    out = dl_ptr + member * dl_ms + (n * CHANNELS + channel)[:, None] * 4096 + py * 64 + px
    tl.store(out, rounded(d, dl_ptr, TF32), mask=ok[:, None])
    flag(flags_ptr, member, not_finite(total))


@triton.jit
def loss_backward_kernel(
    h_ptr,  # [S, B, 32, 32, 32]
    w_ptr,  # [S, C, 16, 32]
    dl_ptr,  # [S, B, C, 64, 64]
    g_ptr,  # as h: gradient at its product
    gw_ptr,  # [S, programs, C, 16, 32] float32
    sums_ptr,  # [S, programs, 32] float32
    flags_ptr,  # [S] int32
    h_ms,  # strides of members
    w_ms,
    dl_ms,
    gw_ms,
    sums_ms,
    CHANNELS: tl.constexpr,
    EDGE: tl.constexpr,
    BM: tl.constexpr,
    TF32: tl.constexpr,
    PDL: tl.constexpr,
):
    begin(PDL)
    member = tl.program_id(1).to(tl.int64)
    pid = tl.program_id(0)
    c = tl.arange(0, 32)
    k = tl.arange(0, 16)
    at = pid * BM + tl.arange(0, BM)
    y = (2 * (at // 32 % 32) - 1)[:, None] + (k // 4)[None, :]
    x = (2 * (at % 32) - 1)[:, None] + (k % 4)[None, :]
    inside = (y >= 0) & (y < 64) & (x >= 0) & (x < 64)
    out = pixel(at, 32, EDGE)[:, None] * 32 + c[None, :]
    h = tl.load(h_ptr + member * h_ms + out)
    g = tl.zeros((BM, 32), tl.float32)
    bad = 0
    for channel in tl.static_range(CHANNELS):
        image = dl_ptr + member * dl_ms + (at // 1024 * CHANNELS + channel)[:, None] * 4096
        dl = tl.load(image + y * 64 + x, mask=inside, other=0.0)
        gw = multiply(tl.trans(dl), h, tl.zeros((16, 32), tl.float32), TF32)
        bad |= tl.max(tl.max(not_finite(gw), 1), 0)
        tl.store(
            gw_ptr + member * gw_ms + (pid * CHANNELS + channel) * 512 + k[:, None] * 32 + c[None, :], gw
        )
        # last, when the registers of the weight gradient are free
        w = tl.load(w_ptr + member * w_ms + (channel * 16 + k)[:, None] * 32 + c[None, :])
        g = multiply(dl, w, g, TF32)
    g = tl.where(positive(h), g, 0.0)
    tl.store(g_ptr + member * h_ms + out, rounded(g, g_ptr, TF32))
    tl.store(sums_ptr + member * sums_ms + pid * 32 + c, tl.sum(g, 0))
    flag(flags_ptr, member, bad)
