"""DIP-VAE I and II."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from pyvae.bounds import Weight
from pyvae.objectives.objective import Objective, Outputs, weighted_kl


@dataclass(frozen=True)
class DIPVAE(Objective):
    """Kumar et al. 2018, "Variational inference of disentangled latent concepts from unlabeled observations",
    equations 6 and 7: ``recon + KL + lambda_od sum_(i != j) S_ij^2 + lambda_d sum_i (S_ii - 1)^2``.

    S is the covariance of the posterior means over the batch (I), plus the mean posterior variances (II). Defaults
    as disentanglement_lib: lambda_d is 10 lambda_od for I and lambda_od for II.
    """

    variant: Literal["i", "ii"] = "i"
    """Which covariance is pushed to the identity."""
    lambda_od: Weight = 10.0
    """Weight of the off-diagonal entries."""
    lambda_d: Weight = 100.0
    """Weight of the diagonal ones."""

    compares: ClassVar[str | None] = "the penalty is on a covariance over the batch"
    extra_terms: ClassVar[tuple[str, ...]] = ("dip",)

    def terms(self, outputs: Outputs, step: Tensor) -> dict[str, Tensor]:
        """See :class:`pyvae.objectives.objective.Objective`; also "dip", the penalty."""
        centred = outputs.mu - outputs.mu.mean(-2, keepdim=True)
        # not a matrix product, which is TF32 where those of the networks are
        covariance = (centred.unsqueeze(-1) * centred.unsqueeze(-2)).mean(-3)
        if self.variant == "ii":
            covariance = covariance + torch.diag_embed(outputs.logvar.exp().mean(-2))
        diagonal = covariance.diagonal(dim1=-2, dim2=-1)
        off = covariance.square().sum((-1, -2)) - diagonal.square().sum(-1)
        dip = self.lambda_od * off + self.lambda_d * (diagonal - 1).square().sum(-1)
        terms = weighted_kl(outputs, 1.0)
        return {**terms, "loss": terms["loss"] + dip, "dip": dip}
