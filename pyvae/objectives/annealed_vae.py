"""VAE with an annealed KL."""

from dataclasses import dataclass
from typing import Annotated, Literal

from torch import Tensor

from pyvae.bounds import Count, Steps, Within, refusal
from pyvae.objectives.objective import Objective, Outputs, weighted_kl
from pyvae.schedules import cyclical, linear, logistic


@dataclass(frozen=True)
class AnnealedVAE(Objective):
    """``recon + beta(t) KL``, beta from 0 to 1: linear or logistic as Bowman et al. 2016, "Generating sentences from a
    continuous space", section 3.1; cyclical as Fu et al. 2019, "Cyclical annealing schedule".

    Bowman et al. print no constants: 10,000 steps are those of ControlVAE's code. Cycles are Fu et al.'s.
    """

    schedule: Literal["linear", "logistic", "cyclical"] = "logistic"
    """Shape of beta(t); see pyvae.schedules."""
    annealing_steps: Steps = 10_000
    """Steps until beta is 1 for good; of all cycles together, so the run's length in Fu et al."""
    cycles: Count = 4
    """M, of the cyclical schedule."""
    proportion: Annotated[float, Within(above=0, most=1)] = 0.5
    """R, part of each cycle in which beta rises."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.schedule == "cyclical" and self.cycles > self.annealing_steps:
            raise refusal(
                f"cycles must be at most annealing_steps, got {self.cycles} in {self.annealing_steps} steps"
            )

    def terms(self, outputs: Outputs, step: Tensor) -> dict[str, Tensor]:
        """See :class:`pyvae.objectives.objective.Objective`."""
        return weighted_kl(outputs, self._beta(step))

    def _beta(self, step: Tensor) -> Tensor:
        if self.schedule == "linear":
            return linear(step, 0.0, 1.0, self.annealing_steps)
        if self.schedule == "logistic":
            return logistic(step, self.annealing_steps)
        return cyclical(step, self.annealing_steps, self.cycles, self.proportion)
