"""The end of a step of each member of an ensemble: its row, whether all of it is finite, the controller's state, the
step counter. A row is as pyvae.engine.ledger has it."""

import triton
import triton.language as tl

from .kl_weight import total_kl
from .ledger import infinite_or_nan
from .operands import begin


@triton.jit
def member_rows_kernel(
    nll_ptr,  # [S, nlls] float32: parts of the batch's sum
    kl_ptr,  # [S, blocks, P] float32: parts of the batch's average
    squares_ptr,  # [S, squares] float32
    weight_ptr,  # [S] float32, of the KL
    terms_ptr,  # [S, 3 + EXTRA + BEHIND] float64: what is added to the reconstruction, beta, capacity, and others
    flags_ptr,  # [S] int32
    found_inf_ptr,  # [S] float32
    bad_step_ptr,  # [S] int64
    key_ptr,  # [S, 2] int64: seed, step
    row_ptr,  # [S, fields] float64
    bad_row_ptr,  # [S, fields] float64
    ring_ptr,  # [S, capacity + 1, fields] float64
    state_ptr,  # [S, 5] float64: the controller's
    moved_ptr,  # as state: what it becomes, unless the step is bad
    nlls,
    blocks,
    squares,
    images,  # B
    latents,
    every,
    capacity,
    nll_ms,  # strides of members
    kl_ms,
    squares_ms,
    P: tl.constexpr,
    CONSTANT: tl.constexpr,  # the weight of the KL: what is added is that times KL
    CONTROLLED: tl.constexpr,
    EXTRA: tl.constexpr,  # terms before the norm of the gradient
    BEHIND: tl.constexpr,  # terms behind it
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    begin(PDL)
    member = tl.program_id(1).to(tl.int64)
    e = tl.arange(0, BLOCK)
    recon = tl.zeros((BLOCK,), tl.float64)
    for start in range(0, nlls, BLOCK):
        part = tl.load(nll_ptr + member * nll_ms + start + e, mask=start + e < nlls, other=0.0)
        recon += part.to(tl.float64)
    recon = tl.sum(recon, 0) / images
    norm = tl.zeros((BLOCK,), tl.float64)
    for start in range(0, squares, BLOCK):
        part = tl.load(squares_ptr + member * squares_ms + start + e, mask=start + e < squares, other=0.0)
        norm += part.to(tl.float64)
    norm = tl.sqrt(tl.sum(norm, 0))
    kls = total_kl(kl_ptr + member * kl_ms, blocks, P)
    kl = tl.sum(kls, 0)
    kls = kls.to(tl.float64)
    terms_ptr += member * (3 + EXTRA + BEHIND)
    if CONSTANT:  # noqa: SIM108 - terms are not loaded where there are none
        share = (tl.load(weight_ptr + member) * kl).to(tl.float64)
    else:
        share = tl.load(terms_ptr)
    loss = recon + share
    kl = kl.to(tl.float64)

    flags = tl.load(flags_ptr + member)
    d = tl.arange(0, P)
    held = d < latents
    # an integer first: the interpreter takes what a comparison of floats gives for floats
    bad = (tl.max(infinite_or_nan(kls).to(tl.int32), 0) > 0) | infinite_or_nan(loss) | infinite_or_nan(norm)
    for i in tl.static_range(1, 3 + EXTRA + BEHIND):
        bad = bad | infinite_or_nan(tl.load(terms_ptr + i))
    # a part of a gradient was, if nothing of the row is
    norm = tl.where(((flags & 1) != 0) & (bad == 0), float("inf"), norm)
    bad = bad | ((flags & 1) != 0)
    # of a frozen member all stays as it was
    live = (flags & 2) == 0
    bad_before = tl.load(bad_step_ptr + member)
    first = live & bad & (bad_before < 0)
    step = tl.load(key_ptr + member * 2 + 1)
    # no warp counts the step while another has yet to read it: each has its own columns of the rows
    tl.debug_barrier()
    # the ring's last row is for steps that are not logged
    slot = tl.where(step % every == 0, step // every % capacity, capacity)
    FIXED: tl.constexpr = 6 + EXTRA + BEHIND
    fields = FIXED + latents
    row = row_ptr + member * fields
    bad_row = bad_row_ptr + member * fields
    ring = ring_ptr + (member * (capacity + 1) + slot) * fields
    for i in tl.static_range(FIXED):
        if i == 0:
            value = loss
        elif i == 1:
            value = recon
        elif i == 2:
            value = kl
        elif i < 5 + EXTRA:
            value = tl.load(terms_ptr + i - 2)
        elif i == 5 + EXTRA:
            value = norm
        else:
            value = tl.load(terms_ptr + i - 3)
        tl.store(row + i, value, mask=live)
        tl.store(ring + i, value, mask=live)
        tl.store(bad_row + i, value, mask=first)
    tl.store(row + FIXED + d, kls, mask=held & live)
    tl.store(ring + FIXED + d, kls, mask=held & live)
    tl.store(bad_row + FIXED + d, kls, mask=held & first)
    if CONTROLLED:
        for i in tl.static_range(5):
            tl.store(state_ptr + member * 5 + i, tl.load(moved_ptr + member * 5 + i), mask=live & (bad == 0))
    tl.store(flags_ptr + member, flags | bad.to(tl.int32), mask=live)
    tl.store(found_inf_ptr + member, ((flags != 0) | bad).to(tl.float32))
    tl.store(bad_step_ptr + member, step, mask=first)
    tl.store(key_ptr + member * 2 + 1, step + 1, mask=live)
