"""log q(z) and log q(z_j) of a minibatch's aggregate posterior: the B x B x D log-densities, reduced and never stored.

With l_imj = log N(z_ij; mu_mj, exp(logvar_mj)) and weights W_im:
log q(z_i) = log sum_m W_im exp(sum_j l_imj) and log q(z_ij) = log sum_m W_im exp(l_imj).

Arithmetic bounds it, not memory. Exponentials of a pair of images: D + 1 in the forward, one for each result; D + 1 in
the backward, one for the joint and one for each dimension, beside D / 2 for the sigmas of a tile. (A program for each
dimension would make the joint D times, and one for each side of the pair all of it twice: 95 instead of 16 at D = 10.)
So the backward makes both gradients of a pair at once. The sample's is a sum over posteriors, the posterior's one over
samples; each program writes those over its own span of pairs, and a second kernel adds them, in a fixed order. That is
4 (2 row_spans + column_spans) bytes written and read for an element of z: 136 at B = 64, 640 from B = 2048 on.
"""

import triton
import triton.language as tl


@triton.jit
def _log_weight(i, m, B, own, successor, other):
    """log W [rows, columns]: one value for m = i, one for the index after i, one for the others."""
    follows = m[None, :] == ((i + 1) % B)[:, None]
    return tl.where(m[None, :] == i[:, None], own, tl.where(follows, successor, other))


@triton.jit
def _of(ptr, image, d, images, stride_row, stride_column):
    """Dimension d of the given images, 0 from ``images`` on."""
    return tl.load(ptr + d * stride_column + image * stride_row, mask=image < images, other=0.0).to(
        tl.float32
    )


@triton.jit
def _log_density(z, mu, logvar):
    """l [rows, columns] of one dimension, its standardised distance (z - mu) / sigma, and 1 / sigma [columns]."""
    inverse = tl.exp(-0.5 * logvar)
    distance = (z[:, None] - mu[None, :]) * inverse[None, :]
    half_log_2pi = 0.9189385332046727
    return -0.5 * (distance * distance + logvar[None, :]) - half_log_2pi, distance, inverse


@triton.jit
def _joint(
    z_ptr,
    mu_ptr,
    logvar_ptr,
    i,
    m,
    samples,
    posteriors,
    D,
    z_row,
    z_column,
    mu_row,
    mu_column,
    logvar_row,
    logvar_column,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """sum_j l_imj [rows, columns]."""
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    d = 0
    while d < D:
        z = _of(z_ptr, i, d, samples, z_row, z_column)
        mu = _of(mu_ptr, m, d, posteriors, mu_row, mu_column)
        logvar = _of(logvar_ptr, m, d, posteriors, logvar_row, logvar_column)
        density, _, _ = _log_density(z, mu, logvar)
        total += density
        d += 1
    return total


@triton.jit
def aggregate_log_density_fwd_kernel(
    z_ptr,  # [members, B, D], strided
    mu_ptr,  # [members, B, D], strided
    logvar_ptr,  # [members, B, D], strided
    log_q_ptr,  # [members, B, D + 1]: log q(z_ij), and log q(z_i) in the last column
    B,
    D,
    own,
    successor,
    other,
    z_member,  # strides
    z_row,
    z_column,
    mu_member,
    mu_row,
    mu_column,
    logvar_member,
    logvar_row,
    logvar_column,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    pid = tl.program_id(0).to(tl.int64)
    blocks = tl.cdiv(B, ROWS)
    d = pid % (D + 1)
    member = pid // ((D + 1) * blocks)
    i = ((pid // (D + 1)) % blocks) * ROWS + tl.arange(0, ROWS)
    z_ptr += member * z_member
    mu_ptr += member * mu_member
    logvar_ptr += member * logvar_member

    highest = tl.full((ROWS,), float("-inf"), tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    start = tl.full((), 0, tl.int64)
    while start < B:
        m = start + tl.arange(0, COLUMNS)
        if d == D:
            density = _joint(
                z_ptr, mu_ptr, logvar_ptr, i, m, B, B, D,
                z_row, z_column, mu_row, mu_column, logvar_row, logvar_column, ROWS, COLUMNS,
            )  # fmt: skip
        else:
            z = _of(z_ptr, i, d, B, z_row, z_column)
            mu = _of(mu_ptr, m, d, B, mu_row, mu_column)
            logvar = _of(logvar_ptr, m, d, B, logvar_row, logvar_column)
            density, _, _ = _log_density(z, mu, logvar)
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
def _add(ptr, at, value, left, first):
    """Add to what this program has written before, or write, the first time."""
    tl.store(ptr + at, value + tl.load(ptr + at, mask=(at < left) & (first == 0), other=0.0), mask=at < left)


@triton.jit
def aggregate_log_density_bwd_pairs_kernel(
    z_ptr,  # [members, B, D], strided
    mu_ptr,  # [members, B, D], strided
    logvar_ptr,  # [members, B, D], strided
    log_q_ptr,  # [members, B, D + 1]
    grad_ptr,  # [members, B, D + 1], of log_q
    sample_ptr,  # [members, column_spans, D, B]: gradient of z over the posteriors of a span
    posterior_ptr,  # [members, row_spans, 2, D, B]: gradients of mu and logvar over the samples of a span
    B,
    D,
    own,
    successor,
    other,
    row_spans,
    column_spans,
    row_span,  # samples of a program, a multiple of ROWS
    column_span,  # posteriors of a program, a multiple of COLUMNS
    z_member,  # strides
    z_row,
    z_column,
    mu_member,
    mu_row,
    mu_column,
    logvar_member,
    logvar_row,
    logvar_column,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    pid = tl.program_id(0).to(tl.int64)
    columns_of = (pid % column_spans).to(tl.int32)
    rows_of = (pid // column_spans % row_spans).to(tl.int32)
    member = pid // (column_spans * row_spans)
    z_ptr += member * z_member
    mu_ptr += member * mu_member
    logvar_ptr += member * logvar_member
    log_q_ptr += member * B * (D + 1)
    grad_ptr += member * B * (D + 1)
    sample_ptr += (member * column_spans + columns_of) * D * B
    posterior_ptr += (member * row_spans + rows_of) * 2 * D * B

    first_row = rows_of * row_span
    last_row = tl.minimum(first_row + row_span, B)
    first_column = columns_of * column_span
    last_column = tl.minimum(first_column + column_span, B)
    r = tl.arange(0, ROWS)
    c = tl.arange(0, COLUMNS)
    row = first_row
    column = first_column
    while row < last_row:
        i = row + r
        m = column + c
        z_at = z_ptr + row.to(tl.int64) * z_row
        mu_at = mu_ptr + column.to(tl.int64) * mu_row
        logvar_at = logvar_ptr + column.to(tl.int64) * logvar_row
        log_q_at = log_q_ptr + row * (D + 1)
        grad_at = grad_ptr + row * (D + 1)
        weight = _log_weight(i, m, B, own, successor, other)
        # the exponentials of pairs beyond the batch are 0
        weight = tl.where((i < B)[:, None] & (m < B)[None, :], weight, float("-inf"))
        joint = _joint(
            z_at, mu_at, logvar_at, r, c, B - row, B - column, D,
            z_row, z_column, mu_row, mu_column, logvar_row, logvar_column, ROWS, COLUMNS,
        )  # fmt: skip
        log_q = _of(log_q_at, r, D, B - row, D + 1, 1)
        grad = _of(grad_at, r, D, B - row, D + 1, 1)
        joint = grad[:, None] * tl.exp(joint + weight - log_q[:, None])
        d = 0
        while d < D:
            z = _of(z_at, r, d, B - row, z_row, z_column)
            mu = _of(mu_at, c, d, B - column, mu_row, mu_column)
            logvar = _of(logvar_at, c, d, B - column, logvar_row, logvar_column)
            density, distance, inverse = _log_density(z, mu, logvar)
            log_q = _of(log_q_at, r, d, B - row, D + 1, 1)
            grad = _of(grad_at, r, d, B - row, D + 1, 1)
            # d loss / d l_imd
            share = joint + grad[:, None] * tl.exp(density + weight - log_q[:, None])
            pull = share * distance
            of_z = -tl.sum(pull * inverse[None, :], 1)
            of_mu = tl.sum(pull, 0) * inverse
            of_logvar = tl.sum(share * (0.5 * distance * distance - 0.5), 0)
            _add(sample_ptr + d * B + row, r, of_z, B - row, column == first_column)
            _add(posterior_ptr + d * B + column, c, of_mu, B - column, row == first_row)
            _add(posterior_ptr + (D + d) * B + column, c, of_logvar, B - column, row == first_row)
            d += 1
        # the next tile reads what this one has written, perhaps in other threads
        tl.debug_barrier()
        column += COLUMNS
        if column >= last_column:
            column = first_column
            row += ROWS


@triton.jit
def _sum(ptr, span, image, spans, stride, B):
    """Sum over the spans [SPANS] of partial sums of images [BLOCK]."""
    held = (span < spans)[:, None] & (image < B)[None, :]
    return tl.sum(tl.load(ptr + span[:, None] * stride + image[None, :], mask=held, other=0.0), 0)


@triton.jit
def aggregate_log_density_bwd_sum_kernel(
    sample_ptr,  # [members, column_spans, D, B]
    posterior_ptr,  # [members, row_spans, 2, D, B]
    grad_z_ptr,  # [members, B, D]
    grad_mu_ptr,  # [members, B, D]
    grad_logvar_ptr,  # [members, B, D]
    B,
    D,
    row_spans,
    column_spans,
    ROW_SPANS: tl.constexpr,  # a power of two, at least row_spans
    COLUMN_SPANS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    pid = tl.program_id(0).to(tl.int64)
    blocks = tl.cdiv(B, BLOCK)
    member = pid // (D * blocks)
    d = (pid // blocks) % D
    image = (pid % blocks) * BLOCK + tl.arange(0, BLOCK)
    of_z = sample_ptr + member * column_spans * D * B + d * B
    of_mu = posterior_ptr + member * row_spans * 2 * D * B + d * B
    out = (member * B + image) * D + d
    held = image < B
    span = tl.arange(0, ROW_SPANS)
    tl.store(grad_mu_ptr + out, _sum(of_mu, span, image, row_spans, 2 * D * B, B), mask=held)
    tl.store(grad_logvar_ptr + out, _sum(of_mu + D * B, span, image, row_spans, 2 * D * B, B), mask=held)
    span = tl.arange(0, COLUMN_SPANS)
    tl.store(grad_z_ptr + out, _sum(of_z, span, image, column_spans, D * B, B), mask=held)
