"""beta-VAE with controlled capacity increase."""

from dataclasses import dataclass

import torch
from torch import Tensor

from pyvae.bounds import Nats, Steps, Weight
from pyvae.objectives.objective import Objective, Outputs
from pyvae.schedules import linear


@dataclass(frozen=True)
class CapacityVAE(Objective):
    """Burgess et al. 2018, "Understanding disentangling in beta-VAE", equation 8: ``recon + gamma |KL - C|``.

    KL is the batch mean: the absolute value of each image's distance would be another objective. C is counted from
    step 0, as disentanglement_lib does, so C = 0 in the first step and ``capacity`` from step ``capacity_steps`` on.
    """

    gamma: Weight = 1000.0
    """Weight of the distance; public replications mostly use 100."""
    capacity: Nats = 25.0
    """Final C in nats."""
    capacity_steps: Steps = 100_000
    """Steps over which C rises linearly from 0."""

    def terms(self, outputs: Outputs, step: Tensor) -> dict[str, Tensor]:
        """See :class:`pyvae.objectives.objective.Objective`; "beta" is gamma times the sign of KL - C."""
        kl = outputs.kl.sum(-1)
        capacity = linear(step, 0.0, self.capacity, self.capacity_steps).expand(kl.shape)
        excess = kl - capacity.to(kl.dtype)
        return {
            "loss": outputs.recon + self.gamma * excess.abs(),
            "recon": outputs.recon,
            "kl": kl,
            "beta": self.gamma * torch.sign(excess.detach()),
            "capacity": capacity,
        }
