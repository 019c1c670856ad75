"""The end of a step in one launch: its row, whether all of it is finite, the controller's state, the step counter.

Some sixty operations on scalars otherwise; each is a launch of a microsecond or more in a CUDA graph, against a step of
three hundred.
"""

import triton
import triton.language as tl


@triton.jit
def infinite_or_nan(x):
    return (x != x) | (tl.abs(x) == float("inf"))


@triton.jit
def ledger_kernel(
    values,  # tuple of [], float32 or float64
    kl_ptr,  # [latents] float32
    found_inf_ptr,  # [] float32
    bad_step_ptr,  # [] int64
    key_ptr,  # [2] int64: seed, step
    row_ptr,  # [fields] float64
    bad_row_ptr,  # [fields] float64
    ring_ptr,  # [capacity + 1, fields] float64
    old_control,  # tuple of [] float64
    new_control,  # tuple of [] float64
    latents,
    every,
    capacity,
    VALUES: tl.constexpr,
    CONTROLS: tl.constexpr,
    SETTLE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    at = tl.arange(0, BLOCK)
    held = at < latents
    kl = tl.load(kl_ptr + at, mask=held, other=0.0).to(tl.float64)
    bad_before = tl.load(bad_step_ptr)
    bad = (bad_before >= 0) | (tl.max(infinite_or_nan(kl).to(tl.int32), 0) > 0)
    for i in tl.static_range(VALUES):
        bad = bad | infinite_or_nan(tl.load(values[i]).to(tl.float64))
    tl.store(found_inf_ptr, bad.to(tl.float32))
    if SETTLE:
        step = tl.load(key_ptr + 1)
        first = bad & (bad_before < 0)
        # the ring's last row is for steps that are not logged
        slot = tl.where(step % every == 0, step // every % capacity, capacity)
        ring = ring_ptr + slot * (VALUES + latents)
        for i in tl.static_range(VALUES):
            value = tl.load(values[i]).to(tl.float64)
            tl.store(row_ptr + i, value)
            tl.store(ring + i, value)
            tl.store(bad_row_ptr + i, value, mask=first)
        tl.store(row_ptr + VALUES + at, kl, mask=held)
        tl.store(ring + VALUES + at, kl, mask=held)
        tl.store(bad_row_ptr + VALUES + at, kl, mask=held & first)
        for i in tl.static_range(CONTROLS):
            tl.store(old_control[i], tl.load(new_control[i]), mask=bad == 0)
        tl.store(bad_step_ptr, step, mask=first)
        tl.store(key_ptr + 1, step + 1)
