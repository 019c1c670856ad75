"""ControlVAE."""

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor

from pyvae.bounds import Nats, Signed, Steps, Weight, Within, refusal
from pyvae.control import (
    AntiWindup,
    Compared,
    Control,
    Proportional,
    Tie,
    adapt_capacity,
    initial_control,
    pi,
)
from pyvae.objectives.objective import Objective, Outputs, weighted_kl
from pyvae.schedules import linear, stepwise


@dataclass(frozen=True)
class ControlVAE(Objective):
    """Shao et al. 2020, "ControlVAE: controllable variational autoencoder": ``recon + beta(t) KL``, where a PI
    controller (algorithm 1) moves beta so that the batch's KL follows the capacity C(t).

    Defaults are those of the authors' code for dSprites, but for the anti-windup; see pyvae.control.pi. The state
    is made by :meth:`initial_control` and moved by :meth:`control` in each step, before :meth:`terms`.
    """

    capacity: Nats = 16.0
    """Final C in nats; the paper has 16 and 18 for dSprites."""
    schedule: Literal["stepwise", "constant", "linear", "adaptive"] = "stepwise"
    """How C gets there: by increments, at once, in a straight line, or only while beta does not rise."""
    capacity_start: Nats = 0.5
    """C in nats before the first step, but for the constant schedule."""
    capacity_increment: Annotated[float, Within(above=0, most=1e9)] = 0.15
    """Nats in each increment of the stepwise schedule."""
    capacity_period: Steps = 5_000
    """Steps between its increments."""
    capacity_steps: Steps = 1_500_000
    """Steps of the linear and the adaptive schedule (tmax); C stays afterwards."""
    adaptive_compared: Compared = "limited"
    """Adaptive: compare beta within its limits, or before them."""
    adaptive_tie: Tie = "raise"
    """Adaptive: what an unchanged beta does to C."""
    adaptive_window: Steps = 1
    """Adaptive: steps between comparisons."""
    adaptive_smoothing: Annotated[float, Within(0, below=1)] = 0.0
    """Adaptive: share that the moving average of beta keeps of itself; 0 compares with the step before."""
    kp: Weight = 0.01
    """Proportional gain."""
    ki: Weight = 0.001
    """Integral gain."""
    beta_min: Signed = 1.0
    """Lower limit of beta, from which P and I count; the authors' linear controller has 0.9."""
    beta_max: Signed | None = None
    """Upper limit of beta."""
    initial_beta: Signed = 1.0
    """Beta before the first step; only anti-windup and adaptive capacity look at it."""
    proportional: Proportional = "sigmoid"
    """Kp / (1 + exp(e)), or -Kp e."""
    anti_windup: AntiWindup = "conditional"
    """What keeps the integral: an output outside the limits and an error that pushes further out (conditional); such an
    output alone, perhaps for good, as the authors' code (published); a limited beta outside, so nothing (paper)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.schedule != "constant" and self.capacity < self.capacity_start:
            raise refusal(
                f"capacity {self.capacity} is below capacity_start {self.capacity_start}: lower the start"
            )
        if self.beta_max is not None and self.beta_max < self.beta_min:
            raise refusal(f"beta_max {self.beta_max} is below beta_min {self.beta_min}")

    def initial_control(self, device: torch.device | str, lead: tuple[int, ...] = ()) -> Control:
        """The state before the first step, float64 of shape ``lead``."""
        start = self.capacity if self.schedule == "constant" else self.capacity_start
        return initial_control(device, lead, beta=self.initial_beta, capacity=start)

    def control(self, state: Control, kl: Tensor, step: Tensor) -> Control:
        """The state after a step, beta(t) and C(t) in it; reads nothing back from the device.

        Args:
            state: after the step before.
            kl: ``[...]`` in nats, summed over latents, averaged over the batch; no gradient flows through it.
            step: int64, counted from 0.
        """
        if self.schedule != "adaptive":
            state = state._replace(capacity=self._capacity(state, step))
        state = pi(
            state,
            state.capacity - kl.detach().to(torch.float64),
            kp=self.kp,
            ki=self.ki,
            beta_min=self.beta_min,
            beta_max=self.beta_max,
            proportional=self.proportional,
            anti_windup=self.anti_windup,
        )
        if self.schedule != "adaptive":
            return state
        return adapt_capacity(
            state,
            step,
            stop=self.capacity,
            steps=self.capacity_steps,
            compared=self.adaptive_compared,
            tie=self.adaptive_tie,
            window=self.adaptive_window,
            smoothing=self.adaptive_smoothing,
        )

    def terms(self, outputs: Outputs, step: Tensor) -> dict[str, Tensor]:
        """See :class:`pyvae.objectives.objective.Objective`.

        Raises:
            ValueError: ``outputs.control``, the state that :meth:`control` gave for this step, is missing.
        """
        if outputs.control is None:
            raise ValueError("ControlVAE: outputs.control is missing; see ControlVAE.control")
        return weighted_kl(outputs, outputs.control.beta, outputs.control.capacity)

    def _capacity(self, state: Control, step: Tensor) -> Tensor:
        if self.schedule == "constant":
            return state.capacity
        if self.schedule == "stepwise":
            capacity = stepwise(
                step, self.capacity_start, self.capacity, self.capacity_increment, self.capacity_period
            )
        else:
            capacity = linear(step, self.capacity_start, self.capacity, self.capacity_steps)
        return capacity.expand_as(state.capacity).clone(memory_format=torch.contiguous_format)
