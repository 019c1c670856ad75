"""VAE with an annealed KL."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from pyvae.errors import RecipeError
from pyvae.objectives.objective import Outputs, weighted_kl
from pyvae.schedules import cyclical, linear, logistic


@dataclass(frozen=True)
class AnnealedVAE:
    """``recon + beta(t) KL``, beta from 0 to 1: linear or logistic as Bowman et al. 2016, "Generating sentences from a
    continuous space", section 3.1; cyclical as Fu et al. 2019, "Cyclical annealing schedule".

    Bowman et al. print no constants: 10,000 steps are those of ControlVAE's code. Cycles are Fu et al.'s.
    """

    schedule: Literal["linear", "logistic", "cyclical"] = "logistic"
    """Shape of beta(t); see pyvae.schedules."""
    annealing_steps: int = 10_000
    """Steps until beta is 1 for good; of all cycles together, so the run's length in Fu et al."""
    cycles: int = 4
    """M, of the cyclical schedule."""
    proportion: float = 0.5
    """R, part of each cycle in which beta rises."""

    extra_terms: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        for name in ("annealing_steps", "cycles"):
            if getattr(self, name) < 1:
                raise RecipeError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0 < self.proportion <= 1:
            raise RecipeError(f"proportion must be in (0, 1], got {self.proportion}")

    def terms(self, outputs: Outputs, step: Tensor) -> dict[str, Tensor]:
        """See :class:`pyvae.objectives.objective.Objective`."""
        return weighted_kl(outputs, self._beta(step))

    def _beta(self, step: Tensor) -> Tensor:
        if self.schedule == "linear":
            return linear(step, 0.0, 1.0, self.annealing_steps)
        if self.schedule == "logistic":
            return logistic(step, self.annealing_steps)
        if self.schedule == "cyclical":
            return cyclical(step, self.annealing_steps, self.cycles, self.proportion)
        raise ValueError(f'schedule: expected "linear", "logistic" or "cyclical", got {self.schedule!r}')
