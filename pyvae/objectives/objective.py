"""What every objective of the literature has in common."""

from typing import NamedTuple, Protocol

from torch import Tensor


class Outputs(NamedTuple):
    """What a model gives for a batch."""

    recon: Tensor
    """Negative log-likelihood ``[...]`` in nats, summed over pixels, averaged over the batch."""
    kl: Tensor
    """KL divergence ``[..., D]`` of each latent in nats, averaged over the batch."""


class Objective(Protocol):
    """A published objective: a frozen dataclass of its hyperparameters and a pure function to scalar terms."""

    def terms(self, outputs: Outputs, step: Tensor) -> dict[str, Tensor]:
        """Named scalars ``[...]`` of one step.

        Args:
            outputs: of the model for this step's batch.
            step: int64, counted from 0, on the device of the outputs.

        Returns:
            "loss" (the one that is minimised), "recon", "kl", "beta" (d loss / d kl) and "capacity" (the KL that
            is aimed at; 0 where there is none), in nats.
        """
        ...


def weighted_kl(outputs: Outputs, beta: float) -> dict[str, Tensor]:
    """Terms of ``recon + beta * KL``."""
    kl = outputs.kl.sum(-1)
    return {
        "loss": outputs.recon + beta * kl,
        "recon": outputs.recon,
        "kl": kl,
        "beta": kl.new_full(kl.shape, beta),
        "capacity": kl.new_zeros(kl.shape),
    }
