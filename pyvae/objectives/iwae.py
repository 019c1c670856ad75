"""IWAE, MIWAE, PIWAE and CIWAE."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from pyvae.base.constants import constant
from pyvae.bounds import Count, Share
from pyvae.objectives.importance import (
    Bound,
    Gradient,
    ImportanceSamples,
    effective_sample_size,
    importance_loss,
    importance_samples,
)
from pyvae.objectives.objective import Objective


class ImportanceWeighted(Objective):
    """What the objectives of this family have in common: they decode M x K samples of each image."""

    bound: ClassVar[Bound]
    samples: int
    gradient: Gradient
    extra_terms: ClassVar[tuple[str, ...]] = ("elbo", "ess")

    @property
    def sizes(self) -> tuple[int, int]:
        """M, the outer average, and K, the samples inside a logarithm."""
        return 1, self.samples

    def loss(self, drawn: ImportanceSamples) -> Tensor:
        """Minus the bound ``[...]`` in nats, with the gradients of the estimator."""
        return importance_loss(drawn, self.bound)

    def sampled_terms(
        self,
        mu: Tensor,
        logvar: Tensor,
        target: Tensor,
        decode: Callable[[Tensor], Tensor],
        *,
        key: Tensor | None = None,
        target_max: int | None = None,
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Named scalars ``[...]`` of one step; decodes once, and backward goes through the decoder once.

        Args:
            mu: posterior means ``[..., B, D]``.
            logvar: posterior log-variances ``[..., B, D]``.
            target: the images ``[..., B, *image]`` or their bits, as :func:`pyvae.bernoulli_nll` takes them.
            decode: ``z [..., B * M * K, D]`` to logits ``[..., B * M * K, *image]``.
            key: of the noise, as :func:`pyvae.reparameterize_kl` takes it.
            target_max: as :func:`pyvae.bernoulli_nll` takes it.

        Returns:
            the terms of :data:`pyvae.objectives.objective.TERMS`, "elbo" (the mean log w in nats) and "ess" (the
            effective sample size out of K); "loss" is minus the bound that theta ascends. And the KL divergence
            ``[..., D]`` of each latent in nats, averaged over the batch.

        Raises:
            TypeError: wrong dtype. ValueError: wrong shape, device or option.
        """
        drawn = importance_samples(
            mu, logvar, target, decode, *self.sizes, gradient=self.gradient, key=key, target_max=target_max
        )
        log_weight = drawn.log_weight.detach()
        loss = self.loss(drawn)
        terms = {
            "loss": loss,
            "recon": -drawn.log_likelihood.detach().mean((-3, -2, -1)),
            "kl": drawn.kl.detach().sum(-1),
            "beta": constant(1.0, loss),
            "capacity": constant(0.0, loss),
            "elbo": log_weight.mean((-3, -2, -1)),
            "ess": effective_sample_size(log_weight).mean((-2, -1)),
        }
        return terms, drawn.kl.detach()


@dataclass(frozen=True)
class IWAE(ImportanceWeighted):
    """Burda et al. 2016, "Importance weighted autoencoders", equation 8: ``-log mean_k w``. With one sample it is the
    VAE, its KL estimated by the sample."""

    samples: Count = 64
    """K, the samples inside the logarithm."""
    gradient: Literal["total", "stl", "dreg", "rws-dreg"] = "total"
    """Estimator of the encoder's gradient; see pyvae.objectives.importance."""

    bound: ClassVar[Bound] = "iwae"


@dataclass(frozen=True)
class _OuterAverage(ImportanceWeighted):
    outer: Count = 8
    """M, the outer average."""
    samples: Count = 8
    """K, the samples inside a logarithm."""
    gradient: Literal["total", "stl", "dreg", "rws-dreg"] = "total"
    """Estimator of the encoder's gradient; see pyvae.objectives.importance."""

    @property
    def sizes(self) -> tuple[int, int]:
        """See :class:`ImportanceWeighted`."""
        return self.outer, self.samples


@dataclass(frozen=True)
class MIWAE(_OuterAverage):
    """Rainforth et al. 2018, "Tighter variational bounds are not necessarily better", section 5:
    ``-mean_m log mean_k w``. Published with (M, K) = (8, 8), (4, 16) and (64, 1), which is its VAE."""

    bound: ClassVar[Bound] = "miwae"


@dataclass(frozen=True)
class PIWAE(_OuterAverage):
    """Rainforth et al. 2018, "Tighter variational bounds are not necessarily better", section 5: the decoder descends
    ``-log mean_mk w`` and the encoder ``-mean_m log mean_k w`` of the same samples. Published with (M, K) = (8, 8)
    and (4, 16)."""

    bound: ClassVar[Bound] = "piwae"


@dataclass(frozen=True)
class CIWAE(ImportanceWeighted):
    """Rainforth et al. 2018, "Tighter variational bounds are not necessarily better", section 5:
    ``-beta mean_k log w - (1 - beta) log mean_k w``. Published with beta 0.05 and 0.5."""

    samples: Count = 64
    """K, the samples inside the logarithm."""
    beta: Share = 0.5
    """Share of the ELBO in the bound, from 0 to 1."""
    gradient: Literal["total", "stl", "dreg"] = "total"
    """Estimator of the encoder's gradient; see pyvae.objectives.importance."""

    bound: ClassVar[Bound] = "ciwae"

    def loss(self, drawn: ImportanceSamples) -> Tensor:
        """See :class:`ImportanceWeighted`."""
        return importance_loss(drawn, self.bound, beta=self.beta)
