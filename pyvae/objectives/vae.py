"""The evidence lower bound."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from pyvae.objectives.objective import Hyperparameters, Outputs, weighted_kl


@dataclass(frozen=True)
class VAE(Hyperparameters):
    """Kingma & Welling 2014, "Auto-encoding variational Bayes": ``recon + KL``."""

    extra_terms: ClassVar[tuple[str, ...]] = ()

    def terms(self, outputs: Outputs, step: Tensor) -> dict[str, Tensor]:
        """See :class:`pyvae.objectives.objective.Objective`."""
        return weighted_kl(outputs, 1.0)
