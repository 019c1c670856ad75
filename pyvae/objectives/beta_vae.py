"""beta-VAE."""

from dataclasses import dataclass

from torch import Tensor

from pyvae.bounds import Weight
from pyvae.objectives.objective import Objective, Outputs, weighted_kl


@dataclass(frozen=True)
class BetaVAE(Objective):
    """Higgins et al. 2017, "beta-VAE: learning basic visual concepts with a constrained variational framework",
    equation 4: ``recon + beta * KL``."""

    beta: Weight = 4.0
    """Weight of the KL. The paper's normalised beta is ``beta * latents / pixels``."""

    def terms(self, outputs: Outputs, step: Tensor) -> dict[str, Tensor]:
        """See :class:`pyvae.objectives.objective.Objective`."""
        return weighted_kl(outputs, self.beta)
