"""FactorVAE."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from pyvae.base.checks import accumulation_dtype
from pyvae.bounds import Rate, Weight, Within
from pyvae.functional import tc_batch
from pyvae.nets import build_discriminator
from pyvae.objectives.objective import Objective, Outputs, weighted_kl
from pyvae.ops.library import as_dtype


@dataclass(frozen=True)
class FactorVAE(Objective):
    """Kim & Mnih 2018, "Disentangling by factorising", algorithm 2: ``recon + KL + gamma TC``.

    TC is the mean log-odds of a discriminator between q(z) (class 0) and the product of its marginals (class 1),
    which is trained beside it on an independent second batch. Defaults are the paper's for 2D Shapes; its "6 layers"
    are read as six hidden ones, as disentanglement_lib does (1Konny/FactorVAE and InfoGAN-CR have five).
    """

    gamma: Weight = 35.0
    """Weight of the total correlation."""
    discriminator_layers: Annotated[int, Within(1, 100)] = 6
    """Hidden layers of the discriminator."""
    discriminator_width: Annotated[int, Within(1, 2**16)] = 1000
    """Units in each of them."""
    discriminator_lr: Rate = 1e-4
    """Learning rate of the discriminator's Adam."""

    discriminator_betas: ClassVar[tuple[float, float]] = (0.5, 0.9)
    """Of that Adam."""
    compares: ClassVar[str | None] = "codes are permuted over the batch"
    extra_terms: ClassVar[tuple[str, ...]] = ("tc",)

    def terms(self, outputs: Outputs, step: Tensor) -> dict[str, Tensor]:
        """See :class:`pyvae.objectives.objective.Objective`; also "tc" in nats."""
        if outputs.total_correlation is None:
            raise ValueError(
                "FactorVAE: outputs.total_correlation is missing; see FactorVAE.total_correlation"
            )
        terms = weighted_kl(outputs, 1.0)
        tc = outputs.total_correlation
        return {**terms, "loss": terms["loss"] + self.gamma * tc, "tc": tc}

    def discriminator(self, latents: int, *, seed: int = 0) -> nn.Module:
        """The discriminator ``[B, D] -> [B, 2]`` of this setting."""
        return build_discriminator(latents, self.discriminator_layers, self.discriminator_width, seed=seed)

    def discriminator_optimizer(self, discriminator: nn.Module) -> torch.optim.Optimizer:
        """The paper's: Adam with betas (0.5, 0.9)."""
        return torch.optim.Adam(
            discriminator.parameters(), lr=self.discriminator_lr, betas=self.discriminator_betas, fused=True
        )

    @staticmethod
    def total_correlation(discriminator: nn.Module, z: Tensor) -> Tensor:
        """Mean log-odds in nats of ``z [B, D]``; its gradient reaches ``z`` and never the discriminator."""
        frozen = {name: p.detach() for name, p in discriminator.named_parameters()}
        logits = _exact(functional_call(discriminator, frozen, (z,)))
        return (logits[..., 0] - logits[..., 1]).mean(-1)

    @staticmethod
    def discriminator_loss(discriminator: nn.Module, z: Tensor, second: Tensor, key: Tensor | None) -> Tensor:
        """``1/2 [CE(D(z), 0) + CE(D(permute_dims(z')), 1)]`` in nats; its gradient reaches the discriminator alone.

        Args:
            discriminator: of :meth:`discriminator`.
            z: ``[B, D]``, samples of the first batch.
            second: z' ``[B, D]``, samples of an independent one.
            key: int64 ``[2]`` of (seed, step), of the permutation; None: drawn from torch's generator.
        """
        both = tc_batch(z.detach(), second.detach(), key=key)
        permuted = (torch.arange(len(both), device=both.device) >= len(z)).long()
        return F.cross_entropy(_exact(discriminator(both)), permuted)


def _exact(logits: Tensor) -> Tensor:
    """In the dtype of losses, which autocast does not lower."""
    return as_dtype(logits, accumulation_dtype(logits.dtype))
