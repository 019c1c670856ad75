"""Sample z = mu + exp(logvar / 2) eps and KL(N(mu, exp(logvar)) || N(0, 1)) per latent, in one pass."""

import triton
import triton.language as tl

from .philox import normal_rows


@triton.jit
def _expm1_minus(x):
    """e^x - 1 - x without the cancellation at small x: its Taylor series for |x| < 1/2, within 1e-7 relative."""
    p = x * (1.0 / 40320.0) + 1.0 / 5040.0
    p = p * x + 1.0 / 720.0
    p = p * x + 1.0 / 120.0
    p = p * x + 1.0 / 24.0
    p = p * x + 1.0 / 6.0
    p = p * x + 0.5
    return tl.where(tl.abs(x) < 0.5, p * x * x, tl.exp(x) - 1.0 - x)


@triton.jit
def _tile(B, D, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """This program's member, row block, rows [ROWS], counters of a row [COLUMNS / 4] and columns [COLUMNS]."""
    pid = tl.program_id(0).to(tl.int64)
    column_blocks = tl.cdiv(D, COLUMNS)
    row_blocks = tl.cdiv(B, ROWS)
    column_block = pid % column_blocks
    row_block = (pid // column_blocks) % row_blocks
    member = pid // (column_blocks * row_blocks)
    row = row_block * ROWS + tl.arange(0, ROWS)
    quad = column_block * (COLUMNS // 4) + tl.arange(0, COLUMNS // 4)
    column = column_block * COLUMNS + tl.arange(0, COLUMNS)
    return member, row_block, row, quad, column


@triton.jit
def _noise(
    key_ptr,  # [keys, 2] (seed, step)
    member,
    row,
    quad,
    B,
    D,
    sharing,  # consecutive members under one key: their rows count on
    STREAM: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    key = key_ptr + 2 * (member // sharing)
    first = (member % sharing) * B
    return normal_rows(tl.load(key), tl.load(key + 1), first + row, quad, D, STREAM, ROWS, COLUMNS)


@triton.jit
def reparameterize_kl_fwd_kernel(
    mu_ptr,  # [members, B, D], strided
    logvar_ptr,  # [members, B, D], strided
    key_ptr,  # [keys, 2]
    z_ptr,  # [members, B, D]
    partial_ptr,  # [members, row_blocks, D]: sums of kl / B over each block of rows
    B,
    D,
    sharing,
    mu_stride_member,
    mu_stride_row,
    mu_stride_column,
    logvar_stride_member,
    logvar_stride_row,
    logvar_stride_column,
    STREAM: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    member, row_block, row, quad, column = _tile(B, D, ROWS, COLUMNS)
    mask = (row < B)[:, None] & (column < D)[None, :]
    mu_at = member * mu_stride_member + row[:, None] * mu_stride_row + column[None, :] * mu_stride_column
    mu = tl.load(mu_ptr + mu_at, mask=mask, other=0.0).to(tl.float32)
    logvar_at = (
        member * logvar_stride_member
        + row[:, None] * logvar_stride_row
        + column[None, :] * logvar_stride_column
    )
    logvar = tl.load(logvar_ptr + logvar_at, mask=mask, other=0.0).to(tl.float32)

    noise = _noise(key_ptr, member, row, quad, B, D, sharing, STREAM, ROWS, COLUMNS)
    z = mu + tl.exp(0.5 * logvar) * noise
    tl.store(z_ptr + (member * B + row[:, None]) * D + column[None, :], z, mask=mask)

    kl = 0.5 * (mu * mu + _expm1_minus(logvar))
    partial = tl.sum(kl, 0) * (1.0 / B)
    row_blocks = tl.cdiv(B, ROWS)
    tl.store(partial_ptr + (member * row_blocks + row_block) * D + column, partial, mask=column < D)


@triton.jit
def reparameterize_kl_bwd_kernel(
    grad_z_ptr,  # [members, B, D], strided; read if HAS_GRAD_Z
    grad_kl_ptr,  # [members, D], strided; read if HAS_GRAD_KL
    mu_ptr,  # [members, B, D], strided
    logvar_ptr,  # [members, B, D], strided
    key_ptr,  # [keys, 2]
    grad_mu_ptr,  # [members, B, D]
    grad_logvar_ptr,  # [members, B, D]
    B,
    D,
    sharing,
    grad_z_stride_member,
    grad_z_stride_row,
    grad_z_stride_column,
    grad_kl_stride_member,
    grad_kl_stride_column,
    mu_stride_member,
    mu_stride_row,
    mu_stride_column,
    logvar_stride_member,
    logvar_stride_row,
    logvar_stride_column,
    HAS_GRAD_Z: tl.constexpr,
    HAS_GRAD_KL: tl.constexpr,
    STREAM: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    member, _, row, quad, column = _tile(B, D, ROWS, COLUMNS)
    mask = (row < B)[:, None] & (column < D)[None, :]
    logvar_at = (
        member * logvar_stride_member
        + row[:, None] * logvar_stride_row
        + column[None, :] * logvar_stride_column
    )
    logvar = tl.load(logvar_ptr + logvar_at, mask=mask, other=0.0).to(tl.float32)
    grad_mu = tl.zeros((ROWS, COLUMNS), tl.float32)
    grad_logvar = tl.zeros((ROWS, COLUMNS), tl.float32)

    if HAS_GRAD_Z:
        grad_z_at = (
            member * grad_z_stride_member
            + row[:, None] * grad_z_stride_row
            + column[None, :] * grad_z_stride_column
        )
        grad_z = tl.load(grad_z_ptr + grad_z_at, mask=mask, other=0.0).to(tl.float32)
        # drawing the noise again costs arithmetic that the memory traffic hides; storing it would cost 8 bytes
        noise = _noise(key_ptr, member, row, quad, B, D, sharing, STREAM, ROWS, COLUMNS)
        grad_mu += grad_z
        grad_logvar += 0.5 * grad_z * tl.exp(0.5 * logvar) * noise

    if HAS_GRAD_KL:
        mu_at = member * mu_stride_member + row[:, None] * mu_stride_row + column[None, :] * mu_stride_column
        mu = tl.load(mu_ptr + mu_at, mask=mask, other=0.0).to(tl.float32)
        grad_kl_at = member * grad_kl_stride_member + column * grad_kl_stride_column
        grad_kl = tl.load(grad_kl_ptr + grad_kl_at, mask=column < D, other=0.0).to(tl.float32)
        per_row = (grad_kl * (1.0 / B))[None, :]
        grad_mu += per_row * mu
        grad_logvar += 0.5 * per_row * (_expm1_minus(logvar) + logvar)

    out = (member * B + row[:, None]) * D + column[None, :]
    tl.store(grad_mu_ptr + out, grad_mu, mask=mask)
    tl.store(grad_logvar_ptr + out, grad_logvar, mask=mask)
