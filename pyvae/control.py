"""Controllers of the KL: float64 state on the device, moved by pure functions that never read it back."""

from typing import Literal, NamedTuple

import torch
from torch import Tensor

Proportional = Literal["sigmoid", "linear"]
AntiWindup = Literal["conditional", "published", "paper"]
Compared = Literal["limited", "unlimited"]
Tie = Literal["raise", "hold"]


class Control(NamedTuple):
    """What a controller carries from step to step: float64 ``[...]``, one entry for each ensemble member."""

    integral: Tensor
    """I(t), the sum of -Ki e."""
    output: Tensor
    """P(t) + I(t), before the limits."""
    beta: Tensor
    """The output within its limits: the weight of the KL in step t."""
    reference: Tensor
    """The weight that adaptive capacity compares the next one with."""
    capacity: Tensor
    """C(t) in nats."""


def initial_control(
    device: torch.device | str, lead: tuple[int, ...] = (), *, beta: float, capacity: float
) -> Control:
    """The state before the first step: no integral, the weight ``beta(0)``, the capacity ``C(0)`` in nats."""

    def full(value: float) -> Tensor:
        return torch.full(lead, value, dtype=torch.float64, device=device)

    return Control(full(0.0), full(beta), full(beta), full(beta), full(capacity))


def pi(
    state: Control,
    error: Tensor,
    *,
    kp: float,
    ki: float,
    beta_min: float,
    beta_max: float | None = None,
    proportional: Proportional = "sigmoid",
    anti_windup: AntiWindup = "conditional",
) -> Control:
    """One step of the PI controller of ControlVAE (Shao et al. 2020, "ControlVAE: controllable variational
    autoencoder", algorithm 1; the authors' P_PID.py and Linear_PID.py)::

        P(t) = kp / (1 + exp(e(t)))     or, linear, -kp e(t)
        I(t) = I(t-1) - ki e(t)         or I(t-1) where anti-windup freezes it
        beta(t) = P(t) + beta_min + I(t)   within [beta_min, beta_max]

    Args:
        state: after the step before.
        error: e(t) = C(t) - KL(t) in nats, float64 ``[...]``.
        kp, ki: gains, not negative.
        beta_min, beta_max: limits of beta; None is no upper one, as the authors' code.
        anti_windup: when the integral stays. "published", the authors' code: while the output before it was limited
            was outside the limits. One step with ``ki e > kp`` near ``beta_min`` then freezes it for good, since P
            alone never leads back. "paper", algorithm 1 to the letter: while the *limited* beta was outside, so never
            after the first step. "conditional": while the output was outside and the error pushes further out,
            which any error of the other sign ends.

    Raises:
        ValueError: an option is not one of its values, or a gain is negative, or the limits cross.
    """
    for name, gain in (("kp", kp), ("ki", ki)):
        if not gain >= 0:
            raise ValueError(f"{name}: expected a gain of at least 0, got {gain}")
    if beta_max is not None and not beta_max >= beta_min:
        raise ValueError(f"beta_max: expected at least beta_min {beta_min}, got {beta_max}")
    if proportional == "sigmoid":
        p = (error.exp() + 1.0).reciprocal() * kp
    elif proportional == "linear":
        p = error * -kp
    else:
        raise ValueError(f'proportional: expected "sigmoid" or "linear", got {proportional!r}')
    if anti_windup not in ("conditional", "published", "paper"):
        raise ValueError(f'anti_windup: expected "conditional", "published" or "paper", got {anti_windup!r}')
    watched = state.beta if anti_windup == "paper" else state.output
    frozen = watched < beta_min
    if anti_windup == "conditional":
        frozen = frozen & (error > 0)
    if beta_max is not None:
        above = watched > beta_max
        frozen = frozen | (above & (error < 0) if anti_windup == "conditional" else above)
    integral = torch.where(frozen, state.integral, state.integral - error * ki)
    output = p + beta_min + integral
    return state._replace(integral=integral, output=output, beta=output.clamp(beta_min, beta_max))


def adapt_capacity(
    state: Control,
    step: Tensor,
    *,
    stop: float,
    steps: int,
    compared: Compared = "limited",
    tie: Tie = "raise",
    window: int = 1,
    smoothing: float = 0.0,
) -> Control:
    """Adaptive capacity, after the controller's step t against the set point C(t-1)::

        C(t) = C(t-1)                                          if beta(t) > beta(t-1)
               C(t-1) + (stop - C(t-1)) / (steps - (t - 1))    otherwise

    C never falls and never exceeds ``stop``; past ``steps`` it is ``stop``. If a share p of the steps raise it, the gap
    to ``stop`` shrinks as ``(1 - t / steps)^p``: a straight ramp for p = 1.

    Taking the sign from the step before instead is the same recursion one step later, so that is no option.

    Args:
        state: what :func:`pi` gave for this step, with the capacity and the reference of the step before.
        step: int64, counted from 0: t - 1.
        stop: final C in nats, not below the first.
        steps: t at which C ends; the length of the run in the published comparison.
        compared: beta within its limits, or the output before them.
        tie: what an unchanged beta, as at a limit, means.
        window: compare, and raise C by as many steps' share, every so many steps.
        smoothing: compare with the moving average of beta that keeps this share of itself, 0 for beta(t-1).

    Raises:
        ValueError: an option is not one of its values, a length is below 1, or ``smoothing`` is not in [0, 1).
    """
    for name, length in (("steps", steps), ("window", window)):
        if not length >= 1:
            raise ValueError(f"{name}: at least 1 needed, got {length}")
    if not 0 <= smoothing < 1:
        raise ValueError(f"smoothing: expected a number in [0, 1), got {smoothing}")
    if compared not in ("limited", "unlimited"):
        raise ValueError(f'compared: expected "limited" or "unlimited", got {compared!r}')
    if tie not in ("raise", "hold"):
        raise ValueError(f'tie: expected "raise" or "hold", got {tie!r}')
    beta = state.beta if compared == "limited" else state.output
    holds = beta > state.reference if tie == "raise" else beta >= state.reference
    # cloned, because two names of one memory cannot be saved
    reference = beta.clone() if smoothing == 0 else state.reference * smoothing + beta * (1.0 - smoothing)
    if window > 1:
        between = (step + 1).remainder(window) != 0
        holds = holds | between
        reference = torch.where(between, state.reference, reference)
    # an integer tensor over a Python number would be float32
    left = (steps + window - 1 - step).to(torch.float64) / window
    raised = (state.capacity + (stop - state.capacity) / left).masked_fill(left <= 1.0, stop)
    capacity = torch.where(holds & (step < steps), state.capacity, raised)
    return state._replace(reference=reference, capacity=capacity)
