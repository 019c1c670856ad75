"""A step of ControlVAE's controller in one launch, in float64: some thirty operations on scalars otherwise."""

import triton
import triton.language as tl


@triton.jit
def moved(
    kl,  # float64
    step,  # int64
    integral,  # these are float64, as pyvae.control.Control
    last_output,
    last_beta,
    reference,
    capacity,
    settings_ptr,  # [11] float64, as pyvae.engine.controller.settings
    SCHEDULE: tl.constexpr,
    LINEAR: tl.constexpr,
    ANTI_WINDUP: tl.constexpr,
    LIMITED_ABOVE: tl.constexpr,
    COMPARE_LIMITED: tl.constexpr,
    TIE_HOLDS: tl.constexpr,
    SMOOTHED: tl.constexpr,
):
    """The state after a step with this KL."""
    kp = tl.load(settings_ptr)
    ki = tl.load(settings_ptr + 1)
    beta_min = tl.load(settings_ptr + 2)
    beta_max = tl.load(settings_ptr + 3)
    start = tl.load(settings_ptr + 4)
    stop = tl.load(settings_ptr + 5)
    steps = tl.load(settings_ptr + 6)
    increment = tl.load(settings_ptr + 7)
    period = tl.load(settings_ptr + 8)
    window = tl.load(settings_ptr + 9)
    smoothing = tl.load(settings_ptr + 10)
    at = step.to(tl.float64)

    if SCHEDULE == "stepwise":
        raised = ((step + 1) // period.to(tl.int64)).to(tl.float64)
        capacity = tl.minimum(raised * increment + start, stop)
    if SCHEDULE == "linear":
        capacity = start + (stop - start) * tl.minimum(at / steps, 1.0)
    error = capacity - kl
    proportional = error * -kp if LINEAR else 1.0 / (tl.exp(error) + 1.0) * kp
    watched = last_beta if ANTI_WINDUP == "paper" else last_output
    frozen = watched < beta_min
    if ANTI_WINDUP == "conditional":
        frozen = frozen & (error > 0)
    if LIMITED_ABOVE:
        above = watched > beta_max
        if ANTI_WINDUP == "conditional":
            above = above & (error < 0)
        frozen = frozen | above
    integral = tl.where(frozen, integral, integral - error * ki)
    output = proportional + beta_min + integral
    beta = tl.maximum(output, beta_min)
    if LIMITED_ABOVE:
        beta = tl.minimum(beta, beta_max)

    if SCHEDULE == "adaptive":
        compared = beta if COMPARE_LIMITED else output
        holds = (compared >= reference) if TIE_HOLDS else (compared > reference)
        between = (step + 1) % window.to(tl.int64) != 0
        next_reference = reference * smoothing + compared * (1.0 - smoothing) if SMOOTHED else compared
        reference = tl.where(between, reference, next_reference)
        left = (steps + window - 1.0 - at) / window
        raised = tl.where(left <= 1.0, stop, capacity + (stop - capacity) / tl.maximum(left, 1.0))
        capacity = tl.where((holds | between) & (at < steps), capacity, raised)
    return integral, output, beta, reference, capacity


@triton.jit
def controller_kernel(
    kl_ptr,  # [] float32
    step_ptr,  # [] int64
    state,  # tuple of 5 [] float64, as pyvae.control.Control
    settings_ptr,  # [11] float64, as pyvae.engine.controller.settings
    out_ptr,  # [5] float64
    SCHEDULE: tl.constexpr,
    LINEAR: tl.constexpr,
    ANTI_WINDUP: tl.constexpr,
    LIMITED_ABOVE: tl.constexpr,
    COMPARE_LIMITED: tl.constexpr,
    TIE_HOLDS: tl.constexpr,
    SMOOTHED: tl.constexpr,
):
    integral, output, beta, reference, capacity = moved(
        tl.load(kl_ptr).to(tl.float64), tl.load(step_ptr), tl.load(state[0]), tl.load(state[1]),
        tl.load(state[2]), tl.load(state[3]), tl.load(state[4]), settings_ptr,
        SCHEDULE, LINEAR, ANTI_WINDUP, LIMITED_ABOVE, COMPARE_LIMITED, TIE_HOLDS, SMOOTHED,
    )  # fmt: skip
    tl.store(out_ptr, integral)
    tl.store(out_ptr + 1, output)
    tl.store(out_ptr + 2, beta)
    tl.store(out_ptr + 3, reference)
    tl.store(out_ptr + 4, capacity)
