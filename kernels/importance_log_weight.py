"""log w = log p(x|z) + log p(z) - log q(z|x) of importance samples, and its gradients.

log p(x|z) = sum_pixels l x - softplus(l) for logits l, and with d = (z - mu) / sigma
log p(z) - log q(z|x) = 1/2 sum_j d^2 - z^2 + logvar, in which the 2 pi cancel.

Bytes per pixel and sample for logits of s bytes: s forward, 2 s backward, which reads the logits again (see
bernoulli_nll). The target is read from memory once for all samples of an image, t / samples bytes a pixel, and from
the cache by the others. Latents are D / pixels of that.
"""

import triton
import triton.language as tl


@triton.jit
def _place(B, S, E, BLOCK: tl.constexpr):
    """This program's member, image, row of its sample among all samples, block of the row, and blocks in a row."""
    pid = tl.program_id(0).to(tl.int64)
    blocks = tl.cdiv(E, BLOCK)
    row = pid // blocks
    image = row // S
    return image // B, image % B, row, pid % blocks, blocks


@triton.jit
def _load(logits_row, target_row, block, E, target_scale, PACKED: tl.constexpr, BLOCK: tl.constexpr):
    """Column indices, logits and targets of a block: [BLOCK], or [BLOCK / 8, 8] for packed bits."""
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
def importance_log_weight_fwd_kernel(
    logits_ptr,  # [members, B, S, E], samples strided
    target_ptr,  # [members, B, E] or bits [members, B, ceil(E / 8)], rows strided
    z_ptr,  # [members * B, S, D]
    mu_ptr,  # [members * B, D], rows strided
    logvar_ptr,  # [members * B, D], rows strided
    partial_ptr,  # [members * B * S, blocks]: log p(x|z) of each block of pixels
    ratio_ptr,  # [members * B * S]: log p(z) - log q(z|x)
    B,
    S,
    E,
    D,
    logits_stride_member,
    logits_stride_image,
    logits_stride_sample,
    target_stride_member,
    target_stride_image,
    mu_stride,
    logvar_stride,
    target_scale,
    PACKED: tl.constexpr,
    BLOCK: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    member, image, row, block, blocks = _place(B, S, E, BLOCK)
    logits_row = logits_ptr + member * logits_stride_member + image * logits_stride_image
    column, logits, x = _load(
        logits_row + (row % S) * logits_stride_sample,
        target_ptr + member * target_stride_member + image * target_stride_image,
        block,
        E,
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
    log_p = -tl.where(missed == 0.0, 0.0, logits) * missed - log1p
    tl.store(partial_ptr + row * blocks + block, tl.sum(tl.where(column < E, log_p, 0.0)))

    if block == 0:
        posterior = member * B + image
        total = tl.zeros((COLUMNS,), tl.float32)
        start = 0
        while start < D:
            j = start + tl.arange(0, COLUMNS)
            z = tl.load(z_ptr + row * D + j, mask=j < D, other=0.0).to(tl.float32)
            mu = tl.load(mu_ptr + posterior * mu_stride + j, mask=j < D, other=0.0).to(tl.float32)
            logvar = tl.load(logvar_ptr + posterior * logvar_stride + j, mask=j < D, other=0.0).to(tl.float32)
            distance = (z - mu) * tl.exp(-0.5 * logvar)
            # d^2 - z^2 as a fused multiply-add would not vanish where posterior and prior are one
            total += (distance - z) * (distance + z) + logvar
            start += COLUMNS
        tl.store(ratio_ptr + row, 0.5 * tl.sum(total))


@triton.jit
def importance_log_weight_bwd_logits_kernel(
    grad_ptr,  # [members * B * S], of log p(x|z)
    logits_ptr,  # [members, B, S, E], samples strided
    target_ptr,  # [members, B, E] or bits [members, B, ceil(E / 8)], rows strided
    grad_logits_ptr,  # [members * B * S, E]
    B,
    S,
    E,
    logits_stride_member,
    logits_stride_image,
    logits_stride_sample,
    target_stride_member,
    target_stride_image,
    target_scale,
    PACKED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    member, image, row, block, _ = _place(B, S, E, BLOCK)
    logits_row = logits_ptr + member * logits_stride_member + image * logits_stride_image
    column, logits, x = _load(
        logits_row + (row % S) * logits_stride_sample,
        target_ptr + member * target_stride_member + image * target_stride_image,
        block,
        E,
        target_scale,
        PACKED,
        BLOCK,
    )
    e = tl.exp(-tl.abs(logits))
    tail = e / (1.0 + e)
    # x - sigma(l) from the small tail of the sigmoid, so that a confident right answer keeps its tiny gradient
    grad = tl.where(logits >= 0.0, tail - (1.0 - x), x - tail) * tl.load(grad_ptr + row)
    tl.store(grad_logits_ptr + row * E + column, grad, mask=column < E)


@triton.jit
def importance_log_weight_bwd_latents_kernel(
    grad_ptr,  # [members * B, S], of log p(z) - log q(z|x)
    z_ptr,  # [members * B, S, D]
    mu_ptr,  # [members * B, D], rows strided
    logvar_ptr,  # [members * B, D], rows strided
    grad_z_ptr,  # [members * B, S, D]
    grad_mu_ptr,  # [members * B, sample_blocks, D]: sums over each block of samples
    grad_logvar_ptr,  # [members * B, sample_blocks, D]
    S,
    D,
    mu_stride,
    logvar_stride,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    pid = tl.program_id(0).to(tl.int64)
    column_blocks = tl.cdiv(D, COLUMNS)
    sample_blocks = tl.cdiv(S, ROWS)
    sample_block = (pid // column_blocks) % sample_blocks
    posterior = pid // (column_blocks * sample_blocks)
    sample = sample_block * ROWS + tl.arange(0, ROWS)
    column = (pid % column_blocks) * COLUMNS + tl.arange(0, COLUMNS)
    inside = (sample < S)[:, None] & (column < D)[None, :]

    grad = tl.load(grad_ptr + posterior * S + sample, mask=sample < S, other=0.0)[:, None]
    at = (posterior * S + sample[:, None]) * D + column[None, :]
    z = tl.load(z_ptr + at, mask=inside, other=0.0).to(tl.float32)
    mu = tl.load(mu_ptr + posterior * mu_stride + column, mask=column < D, other=0.0).to(tl.float32)
    logvar = tl.load(logvar_ptr + posterior * logvar_stride + column, mask=column < D, other=0.0).to(
        tl.float32
    )
    precise = tl.exp(-0.5 * logvar)[None, :]
    # a sample that is not there is infinitely far from a sharp posterior, and 0 times infinity is NaN
    distance = tl.where(inside, (z - mu[None, :]) * precise, 0.0)
    tl.store(grad_z_ptr + at, grad * (distance * precise - z), mask=inside)

    out = (posterior * sample_blocks + sample_block) * D + column
    tl.store(grad_mu_ptr + out, tl.sum(-grad * distance * precise, 0), mask=column < D)
    tl.store(grad_logvar_ptr + out, tl.sum(grad * (0.5 - 0.5 * distance * distance), 0), mask=column < D)
