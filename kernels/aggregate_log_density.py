"""log q(z) and log q(z_j) of a minibatch's aggregate posterior: the B x B x D log-densities, reduced and never stored.

With l_imj = log N(z_ij; mu_mj, exp(logvar_mj)) and weights W_im:
log q(z_i) = log sum_m W_im exp(sum_j l_imj) and log q(z_ij) = log sum_m W_im exp(l_imj).
"""

import triton
import triton.language as tl


@triton.jit
def _log_weight(i, m, B, own, successor, other):
    """log W [rows, columns]: one value for m = i, one for the index after i, one for the others."""
    follows = m[None, :] == ((i + 1) % B)[:, None]
    return tl.where(m[None, :] == i[:, None], own, tl.where(follows, successor, other))


@triton.jit
def _log_density(z, mu, logvar):
    """l [rows, columns] of one dimension, and its standardised distance (z - mu) / sigma."""
    distance = (z[:, None] - mu[None, :]) * tl.exp(-0.5 * logvar)[None, :]
    half_log_2pi = 0.9189385332046727
    return -0.5 * (distance * distance + logvar[None, :]) - half_log_2pi, distance


@triton.jit
def _joint(z_ptr, mu_ptr, logvar_ptr, i, m, B, D, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """sum_j l_imj [rows, columns]."""
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    d = 0
    while d < D:
        z = tl.load(z_ptr + i * D + d, mask=i < B, other=0.0).to(tl.float32)
        mu = tl.load(mu_ptr + m * D + d, mask=m < B, other=0.0).to(tl.float32)
        logvar = tl.load(logvar_ptr + m * D + d, mask=m < B, other=0.0).to(tl.float32)
        density, _ = _log_density(z, mu, logvar)
        total += density
        d += 1
    return total


@triton.jit
def aggregate_log_density_fwd_kernel(
    z_ptr,  # [members, B, D]
    mu_ptr,  # [members, B, D]
    logvar_ptr,  # [members, B, D]
    log_q_ptr,  # [members, B, D + 1]: log q(z_ij), and log q(z_i) in the last column
    B,
    D,
    own,
    successor,
    other,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    pid = tl.program_id(0).to(tl.int64)
    blocks = tl.cdiv(B, ROWS)
    d = pid % (D + 1)
    member = pid // ((D + 1) * blocks)
    i = ((pid // (D + 1)) % blocks) * ROWS + tl.arange(0, ROWS)
    base = member * B * D

    highest = tl.full((ROWS,), float("-inf"), tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    start = 0
    while start < B:
        m = start + tl.arange(0, COLUMNS)
        if d == D:
            density = _joint(z_ptr + base, mu_ptr + base, logvar_ptr + base, i, m, B, D, ROWS, COLUMNS)
        else:
            z = tl.load(z_ptr + base + i * D + d, mask=i < B, other=0.0).to(tl.float32)
            mu = tl.load(mu_ptr + base + m * D + d, mask=m < B, other=0.0).to(tl.float32)
            logvar = tl.load(logvar_ptr + base + m * D + d, mask=m < B, other=0.0).to(tl.float32)
            density, _ = _log_density(z, mu, logvar)
        term = density + _log_weight(i, m, B, own, successor, other)
        term = tl.where((m < B)[None, :], term, float("-inf"))
        raised = tl.maximum(highest, tl.max(term, 1))
        # where all densities overflow, exp(-inf) and not the NaN of -inf less itself
        shift = tl.where(raised == float("-inf"), 0.0, raised)
        total = total * tl.exp(highest - shift) + tl.sum(tl.exp(term - shift[:, None]), 1)
        highest = raised
        start += COLUMNS
    out = log_q_ptr + (member * B + i) * (D + 1) + d
    tl.store(out, highest + tl.log(total), mask=i < B)


@triton.jit
def _responsibility(
    z_ptr,
    mu_ptr,
    logvar_ptr,
    log_q_ptr,  # [B, D + 1]
    grad_ptr,  # [B, D + 1]
    i,
    m,
    d,
    B,
    D,
    own,
    successor,
    other,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """d loss / d l_imd [rows, columns], and the standardised distance and log-variance of dimension d."""
    z = tl.load(z_ptr + i * D + d, mask=i < B, other=0.0).to(tl.float32)
    mu = tl.load(mu_ptr + m * D + d, mask=m < B, other=0.0).to(tl.float32)
    logvar = tl.load(logvar_ptr + m * D + d, mask=m < B, other=0.0).to(tl.float32)
    density, distance = _log_density(z, mu, logvar)
    weight = _log_weight(i, m, B, own, successor, other)
    joint = _joint(z_ptr, mu_ptr, logvar_ptr, i, m, B, D, ROWS, COLUMNS)
    row = i * (D + 1)
    log_q = tl.load(log_q_ptr + row + D, mask=i < B, other=0.0)
    log_q_d = tl.load(log_q_ptr + row + d, mask=i < B, other=0.0)
    grad = tl.load(grad_ptr + row + D, mask=i < B, other=0.0)
    grad_d = tl.load(grad_ptr + row + d, mask=i < B, other=0.0)
    share = grad[:, None] * tl.exp(joint + weight - log_q[:, None])
    share += grad_d[:, None] * tl.exp(density + weight - log_q_d[:, None])
    inside = (i < B)[:, None] & (m < B)[None, :]
    return tl.where(inside, share, 0.0), distance, logvar


@triton.jit
def _place(B, D, BLOCK: tl.constexpr):
    """This program's dimension, offset of its member's [B, D] and [B, D + 1] tables, and its block of images."""
    pid = tl.program_id(0).to(tl.int64)
    blocks = tl.cdiv(B, BLOCK)
    member = pid // (D * blocks)
    index = ((pid // D) % blocks) * BLOCK + tl.arange(0, BLOCK)
    return pid % D, member * B * D, member * B * (D + 1), index


@triton.jit
def aggregate_log_density_bwd_z_kernel(
    z_ptr,  # [members, B, D]
    mu_ptr,  # [members, B, D]
    logvar_ptr,  # [members, B, D]
    log_q_ptr,  # [members, B, D + 1]
    grad_ptr,  # [members, B, D + 1], of log_q
    grad_z_ptr,  # [members, B, D]
    B,
    D,
    own,
    successor,
    other,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    d, base, table, i = _place(B, D, ROWS)
    grad_z = tl.zeros((ROWS,), tl.float32)
    start = 0
    while start < B:
        m = start + tl.arange(0, COLUMNS)
        share, distance, logvar = _responsibility(
            z_ptr + base, mu_ptr + base, logvar_ptr + base, log_q_ptr + table, grad_ptr + table,
            i, m, d, B, D, own, successor, other, ROWS, COLUMNS,
        )  # fmt: skip
        grad_z -= tl.sum(share * distance * tl.exp(-0.5 * logvar)[None, :], 1)
        start += COLUMNS
    tl.store(grad_z_ptr + base + i * D + d, grad_z, mask=i < B)


@triton.jit
def aggregate_log_density_bwd_posterior_kernel(
    z_ptr,  # [members, B, D]
    mu_ptr,  # [members, B, D]
    logvar_ptr,  # [members, B, D]
    log_q_ptr,  # [members, B, D + 1]
    grad_ptr,  # [members, B, D + 1], of log_q
    grad_mu_ptr,  # [members, B, D]
    grad_logvar_ptr,  # [members, B, D]
    B,
    D,
    own,
    successor,
    other,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    d, base, table, m = _place(B, D, COLUMNS)
    grad_mu = tl.zeros((COLUMNS,), tl.float32)
    grad_logvar = tl.zeros((COLUMNS,), tl.float32)
    start = 0
    while start < B:
        i = start + tl.arange(0, ROWS)
        share, distance, logvar = _responsibility(
            z_ptr + base, mu_ptr + base, logvar_ptr + base, log_q_ptr + table, grad_ptr + table,
            i, m, d, B, D, own, successor, other, ROWS, COLUMNS,
        )  # fmt: skip
        grad_mu += tl.sum(share * distance, 0) * tl.exp(-0.5 * logvar)
        grad_logvar += tl.sum(share * (0.5 * distance * distance - 0.5), 0)
        start += ROWS
    out = base + m * D + d
    tl.store(grad_mu_ptr + out, grad_mu, mask=m < B)
    tl.store(grad_logvar_ptr + out, grad_logvar, mask=m < B)
