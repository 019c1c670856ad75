"""Bernoulli negative log-likelihood of logits, summed over pixels: softplus(l) - l x, and its gradient.

Bytes per pixel for logits of s bytes and a target of t bytes (fp32 4, uint8 1, bits 1/8), forward and backward
together. Storing sigma(l) - x in the forward: (2 s + t) + 2 s. Reading both again in the backward: (s + t) +
(2 s + t). The second is cheaper for every target narrower than the logits (12.25 against 16.1 for fp32 logits and
bits) and equal for fp32 and fp32. Only half-precision logits with an fp32 target would gain from storing (12 against
14), at the price of rounding the gradient twice. So the forward stores nothing.
"""

import triton
import triton.language as tl


@triton.jit
def _locate(E, BLOCK: tl.constexpr):
    """This program's row (member * batch + image), block of the row, and blocks in a row."""
    pid = tl.program_id(0).to(tl.int64)
    blocks = tl.cdiv(E, BLOCK)
    return pid // blocks, pid % blocks, blocks


@triton.jit
def _load(
    logits_ptr,
    target_ptr,
    row,
    block,
    B,
    E,
    logits_stride_member,
    logits_stride_row,
    target_stride_member,
    target_stride_row,
    target_scale,
    PACKED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Column indices, logits and targets of a block: [BLOCK], or [BLOCK / 8, 8] for packed bits."""
    member = row // B
    image = row % B
    logits_row = logits_ptr + member * logits_stride_member + image * logits_stride_row
    target_row = target_ptr + member * target_stride_member + image * target_stride_row
    if PACKED:
        byte = block * (BLOCK // 8) + tl.arange(0, BLOCK // 8)[:, None]
        bit = tl.arange(0, 8)[None, :]
        column = byte * 8 + bit
        word = tl.load(target_row + byte, mask=byte * 8 < E, other=0).to(tl.int32)
        x = ((word >> bit) & 1).to(tl.float32)
    else:
        column = block * BLOCK + tl.arange(0, BLOCK)
        x = tl.load(target_row + column, mask=column < E, other=0).to(tl.float32) * target_scale
        if target_row.dtype.element_ty == tl.uint8:
            # 1 - x as a fused multiply-add would not vanish at 255 / 255
            x = tl.minimum(x, 1.0)
    logits = tl.load(logits_row + column, mask=column < E, other=0.0).to(tl.float32)
    return column, logits, x


@triton.jit
def bernoulli_nll_fwd_kernel(
    logits_ptr,  # [members, B, E], rows strided
    target_ptr,  # [members, B, E] or bits [members, B, ceil(E / 8)], rows strided
    partial_ptr,  # [members, B, blocks]: scale * loss of each block of pixels
    B,
    E,
    logits_stride_member,
    logits_stride_row,
    target_stride_member,
    target_stride_row,
    target_scale,
    scale,
    PACKED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row, block, blocks = _locate(E, BLOCK)
    column, logits, x = _load(
        logits_ptr,
        target_ptr,
        row,
        block,
        B,
        E,
        logits_stride_member,
        logits_stride_row,
        target_stride_member,
        target_stride_row,
        target_scale,
        PACKED,
        BLOCK,
    )
    e = tl.exp(-tl.abs(logits))
    # log1p(e), exact where 1 + e rounds (Kahan): e * log(u) / (u - 1) with u = fl(1 + e)
    u = 1.0 + e
    d = u - 1.0
    log1p = tl.where(d == 0.0, e, tl.log(u) * (e / tl.where(d == 0.0, 1.0, d)))
    # 0 where nothing is missed, also by an infinite logit: infinity times 0 is NaN
    missed = tl.where(logits >= 0.0, 1.0 - x, -x)
    loss = tl.where(missed == 0.0, 0.0, logits) * missed + log1p
    loss = tl.where(column < E, loss, 0.0)
    tl.store(partial_ptr + row * blocks + block, tl.sum(loss) * scale)


@triton.jit
def bernoulli_nll_bwd_kernel(
    grad_loss_ptr,  # [members, B], strided
    logits_ptr,  # [members, B, E], rows strided
    target_ptr,  # [members, B, E] or bits [members, B, ceil(E / 8)], rows strided
    grad_logits_ptr,  # [members, B, E]
    B,
    E,
    grad_loss_stride_member,
    grad_loss_stride_row,
    logits_stride_member,
    logits_stride_row,
    target_stride_member,
    target_stride_row,
    target_scale,
    scale,
    PACKED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row, block, _ = _locate(E, BLOCK)
    column, logits, x = _load(
        logits_ptr,
        target_ptr,
        row,
        block,
        B,
        E,
        logits_stride_member,
        logits_stride_row,
        target_stride_member,
        target_stride_row,
        target_scale,
        PACKED,
        BLOCK,
    )
    upstream = tl.load(
        grad_loss_ptr + (row // B) * grad_loss_stride_member + (row % B) * grad_loss_stride_row
    )
    e = tl.exp(-tl.abs(logits))
    tail = e / (1.0 + e)
    # sigma(l) - x from the small tail of the sigmoid, so that a confident right answer keeps its tiny gradient
    grad = tl.where(logits >= 0.0, (1.0 - x) - tail, tail - x)
    grad = grad * (upstream.to(tl.float32) * scale)
    tl.store(grad_logits_ptr + row * E + column, grad, mask=column < E)
