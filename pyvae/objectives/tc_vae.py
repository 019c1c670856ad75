"""beta-TCVAE."""

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, NamedTuple

from torch import Tensor

from pyvae.base.constants import constant
from pyvae.bounds import Signed, Steps, Weight, Within
from pyvae.errors import RecipeError
from pyvae.functional import aggregate_log_density
from pyvae.objectives.objective import Objective, Outputs
from pyvae.schedules import geometric


@dataclass(frozen=True)
class TCVAE(Objective):
    """Chen et al. 2018, "Isolating sources of disentanglement in VAEs", equation 4: ``recon + alpha MI + beta TC +
    gamma dwKL``, the KL split at the sampled z; with all weights 1 it is the VAE, its KL estimated by the sample.

    All three weights may start at a multiple of themselves and fall: a network that pays much for information learns
    position first, and lays it out without folds; the TC then turns the latents to the axes.

    Minibatch weights leave a constant in the estimates: with "mws" the TC of D independent latents is (D - 1) ln N,
    121.6 nats for ten latents on dSprites, and dwKL is as much too small. Differences of TC are what they mean.
    """

    beta: Weight = 6.0
    """Weight of the total correlation."""
    alpha: Signed = 1.0
    """Weight of the mutual information between index and code; below 0 it is sought."""
    gamma: Weight = 1.0
    """Weight of the dimension-wise KL."""
    weighting: Literal["mws", "mss"] = "mws"
    """Estimator of the aggregate posterior; see pyvae.aggregate_log_density."""
    kl_estimate: Literal["sampled", "exact"] = "sampled"
    """Of the KL, of which the parts are: "exact" has its closed form, ``alpha KL + (beta - alpha) TC + (gamma - alpha)
    dwKL``, equal on average and less noisy; with alpha and gamma 1 that is disentanglement_lib's."""
    annealing_from: Annotated[float, Within(1e-3, 1e3)] = 1.0
    """Multiple of the three weights in the first step; 1 for constant ones, as published."""
    annealing_steps: Steps = 1_500
    """Steps in which that multiple comes to 1, each by the same ratio."""

    compares: ClassVar[str | None] = "the aggregate posterior is estimated from the batch"
    extra_terms: ClassVar[tuple[str, ...]] = ("mi", "tc", "dwkl")

    def check_batch(self, batch_size: int, dataset_size: int) -> None:
        """Raise RecipeError where the estimator has no weights for such batches."""
        if batch_size > dataset_size:
            raise RecipeError(
                f"batch_size {batch_size:,} is more than the {dataset_size:,} images there are, for which the weights "
                f"of beta-TCVAE are not defined: --batch-size {dataset_size} or less"
            )

    def terms(self, outputs: Outputs, step: Tensor) -> dict[str, Tensor]:
        """See :class:`pyvae.objectives.objective.Objective`; also "mi", "tc" and "dwkl" in nats."""
        mi, tc, dwkl = decompose_kl(
            outputs.z,
            outputs.mu,
            outputs.logvar,
            dataset_size=outputs.dataset_size,
            weighting=self.weighting,
        )
        kl = outputs.kl.sum(-1)
        alpha, beta, gamma = self._weights(step, kl)
        if self.kl_estimate == "exact":
            loss = outputs.recon + alpha * kl + (beta - alpha) * tc + (gamma - alpha) * dwkl
        else:
            loss = outputs.recon + alpha * mi + beta * tc + gamma * dwkl
        return {
            "loss": loss,
            "recon": outputs.recon,
            "kl": kl,
            "beta": beta if isinstance(beta, Tensor) else constant(beta, kl),
            "capacity": constant(0.0, kl),
            "mi": mi,
            "tc": tc,
            "dwkl": dwkl,
        }

    def _weights(self, step: Tensor, kl: Tensor) -> tuple[float | Tensor, ...]:
        """alpha, beta and gamma in this step, numbers or of the shape and type of ``kl``."""
        weights = self.alpha, self.beta, self.gamma
        if self.annealing_from == 1:
            return weights
        multiple = geometric(step, self.annealing_from, 1.0, self.annealing_steps)
        return tuple((multiple * weight).to(kl.dtype).expand(kl.shape) for weight in weights)


class Decomposition(NamedTuple):
    """Parts of the KL in nats, ``[...]``; they sum to its estimate by the sampled z."""

    mi: Tensor
    """Mutual information between the image's index and its code."""
    tc: Tensor
    """Total correlation of the codes."""
    dwkl: Tensor
    """KL of each latent's marginal to the prior, summed over latents."""


def decompose_kl(
    z: Tensor, mu: Tensor, logvar: Tensor, *, dataset_size: int, weighting: Literal["mws", "mss"] = "mws"
) -> Decomposition:
    """The KL's three parts of Chen et al. 2018, equation 2, estimated on a minibatch.

    Args:
        z: samples ``[..., B, D]`` of the posteriors.
        mu, logvar: of the posteriors, of the same shape.
        dataset_size: N.
        weighting: see :func:`pyvae.aggregate_log_density`.
    """
    log_q_joint, log_q_product = aggregate_log_density(
        z, mu, logvar, dataset_size=dataset_size, weighting=weighting
    )
    dtype = log_q_joint.dtype
    z, mu, logvar = z.to(dtype), mu.to(dtype), logvar.to(dtype)
    log_q_given_x = _log_normal((z - mu).square() * (-logvar).exp() + logvar)
    log_p = _log_normal(z.square())
    return Decomposition(
        (log_q_given_x - log_q_joint).mean(-1),
        (log_q_joint - log_q_product).mean(-1),
        (log_q_product - log_p).mean(-1),
    )


def _log_normal(quadratic: Tensor) -> Tensor:
    """Log-density of independent normals, from the squared standardised distances plus log-variances."""
    return -0.5 * (quadratic + math.log(2 * math.pi)).sum(-1)
