"""The weight of the KL in a step, of each member of an ensemble, where it is no constant: of a capacity that rises,
of a controller, of an annealing schedule. In float64, as pyvae.schedules, but for what those objectives have in
float32."""

import triton
import triton.language as tl

from .controller import moved
from .operands import begin


@triton.jit
def total_kl(kl_ptr, blocks, P: tl.constexpr):
    """The KL of each latent [P] from its parts [blocks, P], in a fixed order."""
    d = tl.arange(0, P)
    kl = tl.load(kl_ptr + d)
    for block in range(1, blocks):
        kl += tl.load(kl_ptr + block * P + d)
    return kl


@triton.jit
def kl_weight_kernel(
    kl_ptr,  # [S, blocks, P] float32: parts of the KL
    key_ptr,  # [S, 2] int64: seed, step
    settings_ptr,  # [S, 16] float64: pyvae.engine.fused.weighting
    state_ptr,  # [S, 5] float64: the controller's, before the step
    moved_ptr,  # as state: after it
    weight_ptr,  # [S] float32
    terms_ptr,  # [S, terms] float64: the KL's share of the loss, its weight, the capacity
    blocks,
    kl_ms,  # strides of members
    terms_ms,
    KIND: tl.constexpr,
    P: tl.constexpr,
    SCHEDULE: tl.constexpr,
    LINEAR: tl.constexpr,
    ANTI_WINDUP: tl.constexpr,
    LIMITED_ABOVE: tl.constexpr,
    COMPARE_LIMITED: tl.constexpr,
    TIE_HOLDS: tl.constexpr,
    SMOOTHED: tl.constexpr,
    PDL: tl.constexpr,
):
    begin(PDL)
    member = tl.program_id(1).to(tl.int64)
    kl = tl.sum(total_kl(kl_ptr + member * kl_ms, blocks, P), 0)
    step = tl.load(key_ptr + member * 2 + 1)
    at = step.to(tl.float64)
    settings_ptr += member * 16
    capacity = tl.full((), 0.0, tl.float64)
    if KIND == "capacity":
        gamma = tl.load(settings_ptr)
        capacity = tl.load(settings_ptr + 1) * tl.minimum(at / tl.load(settings_ptr + 2), 1.0)
        excess = kl - capacity.to(tl.float32)
        share = (gamma.to(tl.float32) * tl.abs(excess)).to(tl.float64)
        sign = tl.where(excess > 0, 1.0, tl.where(excess < 0, -1.0, 0.0))
        beta = gamma * tl.where(excess == excess, sign, excess).to(tl.float64)
    elif KIND == "control":
        state = state_ptr + member * 5
        integral, output, beta, reference, capacity = moved(
            kl.to(tl.float64), step, tl.load(state), tl.load(state + 1), tl.load(state + 2),
            tl.load(state + 3), tl.load(state + 4), settings_ptr,
            SCHEDULE, LINEAR, ANTI_WINDUP, LIMITED_ABOVE, COMPARE_LIMITED, TIE_HOLDS, SMOOTHED,
        )  # fmt: skip
        out = moved_ptr + member * 5
        tl.store(out, integral)
        tl.store(out + 1, output)
        tl.store(out + 2, beta)
        tl.store(out + 3, reference)
        tl.store(out + 4, capacity)
        share = (beta.to(tl.float32) * kl).to(tl.float64)
    else:
        steps = tl.load(settings_ptr)
        if SCHEDULE == "linear":
            beta = at / steps
        elif SCHEDULE == "logistic":
            beta = 1.0 / (tl.exp(-((at - steps / 2) / (steps / 10))) + 1.0)
        else:
            # the longest cycle in whole steps, the length of one, the part in which the value rises
            cycle = tl.load(settings_ptr + 1).to(tl.int64)
            beta = (step % cycle).to(tl.float64) / tl.load(settings_ptr + 2) / tl.load(settings_ptr + 3)
        beta = tl.where(at >= steps, 1.0, tl.minimum(beta, 1.0))
        share = (beta.to(tl.float32) * kl).to(tl.float64)
    tl.store(weight_ptr + member, beta.to(tl.float32))
    terms = terms_ptr + member * terms_ms
    tl.store(terms, share)
    tl.store(terms + 1, beta)
    tl.store(terms + 2, capacity)
