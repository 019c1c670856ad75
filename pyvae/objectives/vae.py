"""The evidence lower bound."""

from dataclasses import dataclass

from torch import Tensor

from pyvae.objectives.objective import Objective, Outputs, weighted_kl


@dataclass(frozen=True)
class VAE(Objective):
    """Kingma & Welling 2014, "Auto-encoding variational Bayes": ``recon + KL``."""

    def terms(self, outputs: Outputs, step: Tensor) -> dict[str, Tensor]:
        """See :class:`pyvae.objectives.objective.Objective`."""
        return weighted_kl(outputs, 1.0)
