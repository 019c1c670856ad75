"""A loss of one's own: the KL beyond a free part costs gamma, and codes are kept from drifting.

pyvae train vae --objective my_loss.py:FreeNats --free 2
"""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class FreeNats:
    """``recon + gamma max(KL - free, 0) + 0.01 |mu + noise|^2``."""

    gamma: float = 4.0
    """Weight of what is beyond the free part."""
    free: float = 1.0
    """KL in nats that costs nothing."""

    def terms(self, outputs, step):
        """The loss, and what else is to stand in the trace."""
        excess = (outputs.kl.sum(-1) - self.free).clamp(min=0)
        drift = (outputs.mu + 0.1 * torch.randn_like(outputs.mu)).square().mean()
        return {
            "loss": outputs.recon + self.gamma * excess + 0.01 * drift,
            "drift": drift,
            "beta": self.gamma,
        }
