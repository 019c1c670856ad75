"""What every objective of the literature has in common."""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from torch import Tensor

from pyvae.base.constants import constant
from pyvae.base.source import Source
from pyvae.bounds import Checked
from pyvae.control import Control


class Outputs(NamedTuple):
    """What a model gives for a batch."""

    recon: Tensor
    """Negative log-likelihood ``[...]`` in nats, summed over pixels, averaged over the batch."""
    kl: Tensor
    """KL divergence ``[..., D]`` of each latent in nats, averaged over the batch."""
    z: Tensor
    """Samples ``[..., B, D]`` of the posteriors."""
    mu: Tensor
    """Posterior means ``[..., B, D]``."""
    logvar: Tensor
    """Posterior log-variances ``[..., B, D]``."""
    dataset_size: int
    """Number of images that the batch is drawn from."""
    total_correlation: Tensor | None = None
    """Estimate ``[...]`` of an adversary in nats, where the objective has one."""
    control: Control | None = None
    """State of the controller after this step's KL, where the objective has one."""
    images: Tensor | None = None
    """The batch, float32 ``[B, C, H, W]`` in [0, 1], binarised if the recipe says so: for objectives of one's own."""
    logits: Tensor | None = None
    """What the decoder made of ``z``, ``[B, C, H, W]``, bfloat16 with ``--precision bf16``; for them too."""


TERMS = ("loss", "recon", "kl", "beta", "capacity")
"""What every objective gives: the loss that is minimised, reconstruction, KL, the weight of the KL in the gradient,
and the KL that is aimed at (0 where there is none)."""


@dataclass(frozen=True)
class Objective(Checked):
    """Base of all objectives: frozen dataclasses of their hyperparameters, whose constructor refuses what cannot be."""

    extra_terms: ClassVar[tuple[str, ...]] = ()
    """Names of the terms that it has beside those that all have."""
    source: ClassVar[Source | None] = None
    """The code, where it is a user's own; its terms are those of :func:`pyvae.objectives.own.term_names`."""

    @property
    def compares(self) -> str | None:
        """Why a batch of one image would not do, if so."""
        return None

    def terms(self, outputs: Outputs, step: Tensor) -> dict[str, Tensor]:
        """Named scalars ``[...]`` of one step; a pure function.

        Args:
            outputs: of the model for this step's batch.
            step: int64, counted from 0, on the device of the outputs.

        Returns:
            those of ``TERMS`` and of ``extra_terms``, in nats.

        Raises:
            NotImplementedError: it is none of one sample of each image, as those that decode several are not, or of
                no decoder at all.
        """
        raise NotImplementedError(f"{type(self).__name__} is no function of one sample of each image")


def weighted_kl(outputs: Outputs, beta: float | Tensor, capacity: Tensor | None = None) -> dict[str, Tensor]:
    """Terms of ``recon + beta * KL``, beta and the capacity that is aimed at constant or ``[...]``."""
    kl = outputs.kl.sum(-1)
    weight = beta.to(kl.dtype) if isinstance(beta, Tensor) else beta
    return {
        "loss": outputs.recon + weight * kl,
        "recon": outputs.recon,
        "kl": kl,
        "beta": beta.expand(kl.shape) if isinstance(beta, Tensor) else constant(beta, kl),
        "capacity": constant(0.0, kl) if capacity is None else capacity.expand(kl.shape),
    }
