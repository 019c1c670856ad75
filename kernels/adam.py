"""The end of a backward pass in two launches, whatever the number of tensors: the norm of all gradients, then Adam.

A program has BLOCK elements of one tensor, and a chain of selects over the pointers says of which. An element's step
reads 16 bytes and writes 12, or 14 with its rounded copy; half a million weights are five hundred programs.

Moments and rounded copies lie end to end, each tensor's in whole blocks: a program has the block of its own number.
"""

import triton
import triton.language as tl


@triton.jit
def _of_tensor(values, program, STARTS: tl.constexpr):
    """That of ``values`` which belongs to the tensor of a program, the last that starts no later."""
    found = values[0]
    for i in tl.static_range(1, len(STARTS)):
        found = tl.where(program >= STARTS[i], values[i], found)
    return found


@triton.jit
def _gradient_of(gradients, program, STARTS: tl.constexpr):
    """Address of the gradient of a program's tensor, as if of float32, and whether it is one of bfloat16."""
    found = gradients[0].to(tl.pointer_type(tl.float32))
    half = tl.full((), False, tl.int1)
    for i in tl.static_range(len(STARTS)):
        here = program >= STARTS[i]
        found = tl.where(here, gradients[i].to(tl.pointer_type(tl.float32)), found)
        half = tl.where(here, gradients[i].dtype.element_ty == tl.bfloat16, half)
    return found, half


@triton.jit
def _elements(BLOCK: tl.constexpr):
    # 4 to a thread, which are 128 bits of float32: with 8, as bfloat16 would have it, layouts would be converted
    return tl.max_contiguous(tl.arange(0, BLOCK), 4)


@triton.jit
def _load(pointer, at, left, WHOLE: tl.constexpr):
    # a mask that is not known to hold for four elements at once would cost the 128-bit loads
    return tl.load(pointer + at) if WHOLE else tl.load(pointer + at, mask=at < left, other=0.0)


@triton.jit
def _store(pointer, at, value, left, WHOLE: tl.constexpr):
    if WHOLE:
        tl.store(pointer + at, value)
    else:
        tl.store(pointer + at, value, mask=at < left)


@triton.jit
def _load_gradient(pointer, half, base, at, left, WHOLE: tl.constexpr):
    if half:
        found = _load(pointer.to(tl.pointer_type(tl.bfloat16)) + base, at, left, WHOLE).to(tl.float32)
    else:
        found = _load(pointer + base, at, left, WHOLE)
    return found


@triton.jit
def _squares(gradient, half, base, at, left, WHOLE: tl.constexpr):
    found = _load_gradient(gradient, half, base, at, left, WHOLE)
    return tl.sum(found * found, 0)


@triton.jit
def norm_kernel(
    gradients,  # tuple of float32 or bfloat16
    norm_ptr,  # [] float32
    partials_ptr,  # [programs] float32
    arrived_ptr,  # [] int32, 0 before and after
    steps_ptr,  # [tensors] float32
    attempts_ptr,  # [3, tensors] float32: the next step, and what it corrects the moments by
    first,  # programs of the launches before
    programs,  # of all launches
    tensors,
    STARTS: tl.constexpr,  # the first program of each tensor
    SIZES: tl.constexpr,  # 0 where there is no gradient
    LOG_BETA1: tl.constexpr,
    LOG_BETA2: tl.constexpr,
    BLOCK: tl.constexpr,
    NUMBERS: tl.constexpr,  # a power of two, at least tensors
):
    program = tl.program_id(0)
    base = (program - _of_tensor(STARTS, program, STARTS)).to(tl.int64) * BLOCK
    left = _of_tensor(SIZES, program, STARTS) - base
    gradient, half = _gradient_of(gradients, program, STARTS)
    at = _elements(BLOCK)
    if left >= BLOCK:
        squares = _squares(gradient, half, base, at, left, True)
    else:
        squares = _squares(gradient, half, base, at, left, False)
    tl.store(partials_ptr + first + program, squares)
    if first + program == 0:
        number = tl.arange(0, NUMBERS)
        held = number < tensors
        step = tl.load(steps_ptr + number, mask=held, other=0.0) + 1.0
        # in double precision, since 1 - beta^step cancels; here once, and not in every program of the next launch
        done = step.to(tl.float64)
        first_moment = 1.0 / (1.0 - tl.exp(done * tl.full((), LOG_BETA1, tl.float64)))
        second_moment = 1.0 / tl.sqrt(1.0 - tl.exp(done * tl.full((), LOG_BETA2, tl.float64)))
        tl.store(attempts_ptr + number, step, mask=held)
        tl.store(attempts_ptr + tensors + number, first_moment.to(tl.float32), mask=held)
        tl.store(attempts_ptr + 2 * tensors + number, second_moment.to(tl.float32), mask=held)
    # Whoever arrives last sees every partial: the barrier puts a program's store before its arrival; the arrival is a
    # release, and each next one, an acquire of the same chain of read-modify-writes, happens after it; the integer
    # that it returns is handed to the other threads through a second barrier, behind which they read. The
    # acquire drops this multiprocessor's L1, which is not coherent; .cg reads past it in any case.
    tl.debug_barrier()
    if tl.atomic_add(arrived_ptr, 1, sem="acq_rel", scope="gpu") == programs - 1:
        total = tl.zeros((BLOCK,), tl.float64)
        for start in range(0, programs, BLOCK):
            part = tl.load(
                partials_ptr + start + at, mask=start + at < programs, other=0.0, cache_modifier=".cg"
            )
            total += part.to(tl.float64)
        tl.store(norm_ptr, tl.sqrt(tl.sum(total, 0)).to(tl.float32))
        tl.store(arrived_ptr, 0)


@triton.jit
def _move(
    gradient,
    half,
    weight_ptr,
    exp_avg_ptr,
    exp_avg_sq_ptr,
    rounded_ptr,
    rate,
    scale,
    good,
    base,
    at,
    left,
    BETA1: tl.constexpr,
    BETA2: tl.constexpr,
    EPS: tl.constexpr,
    WHOLE: tl.constexpr,
):
    found = _load_gradient(gradient, half, base, at, left, WHOLE)
    weight = _load(weight_ptr, at, left, WHOLE)
    exp_avg = _load(exp_avg_ptr, at, left, WHOLE)
    exp_avg_sq = _load(exp_avg_sq_ptr, at, left, WHOLE)
    exp_avg += (found - exp_avg) * (1.0 - BETA1)
    exp_avg_sq = exp_avg_sq * BETA2 + found * found * (1.0 - BETA2)
    # the approximate root and quotient, of 2 ulp each: an update is a small part of its weight, whose own rounding is
    # hundreds of times theirs, and rounding to nearest would take thrice the instructions
    weight -= rate * exp_avg / (tl.sqrt(exp_avg_sq) * scale + EPS)
    # reading does not wait for the verdict
    if good:
        _store(weight_ptr, at, weight, left, WHOLE)
        _store(exp_avg_ptr, at, exp_avg, left, WHOLE)
        _store(exp_avg_sq_ptr, at, exp_avg_sq, left, WHOLE)
        if rounded_ptr is not None:
            _store(rounded_ptr, at, weight.to(tl.bfloat16), left, WHOLE)


@triton.jit
def adam_kernel(
    gradients,  # tuple of float32 or bfloat16
    weights,  # tuple of float32
    exp_avg_ptr,  # [programs, BLOCK] float32
    exp_avg_sq_ptr,  # [programs, BLOCK] float32
    rounded_ptr,  # [programs, BLOCK] bfloat16, or None
    steps_ptr,  # [tensors] float32
    attempts_ptr,  # [3, tensors] float32, of norm_kernel
    lr_ptr,  # [] float32
    found_inf_ptr,  # [] float32
    tensors,
    STARTS: tl.constexpr,  # the first program of each tensor
    SIZES: tl.constexpr,  # 0 where there is no gradient
    BETA1: tl.constexpr,
    BETA2: tl.constexpr,
    EPS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    program = tl.program_id(0)
    number = program * 0
    for i in tl.static_range(1, len(STARTS)):
        number += (program >= STARTS[i]).to(tl.int32)
    base = (program - _of_tensor(STARTS, program, STARTS)).to(tl.int64) * BLOCK
    size = _of_tensor(SIZES, program, STARTS)
    left = size - base
    gradient, half = _gradient_of(gradients, program, STARTS)
    weight = _of_tensor(weights, program, STARTS) + base
    block = program.to(tl.int64) * BLOCK
    rounded = None if rounded_ptr is None else rounded_ptr + block
    at = _elements(BLOCK)

    attempt = tl.load(attempts_ptr + number)
    rate = tl.load(lr_ptr) * tl.load(attempts_ptr + tensors + number)
    scale = tl.load(attempts_ptr + 2 * tensors + number)
    good = tl.load(found_inf_ptr) == 0.0
    if left >= BLOCK:
        _move(
            gradient, half, weight, exp_avg_ptr + block, exp_avg_sq_ptr + block, rounded, rate, scale, good,
            base, at, left, BETA1, BETA2, EPS, WHOLE=True,
        )  # fmt: skip
    else:
        _move(
            gradient, half, weight, exp_avg_ptr + block, exp_avg_sq_ptr + block, rounded, rate, scale, good,
            base, at, left, BETA1, BETA2, EPS, WHOLE=False,
        )  # fmt: skip
    # nobody reads a step here; all read the attempt
    tl.store(steps_ptr + number, attempt, mask=good & (base == 0) & (size > 0))
