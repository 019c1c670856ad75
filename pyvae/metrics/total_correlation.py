"""Total correlation of the aggregate posterior, by its density."""

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pyvae.metrics.layout import Layout, TooFewCodes, check_count, check_layout, check_tolerance
from pyvae.metrics.sampling import Draw, draw_key, draw_points
from pyvae.metrics.table import CodeTable
from pyvae.random import Stream, normal

_SAMPLES_AT_ONCE, _POSTERIORS_AT_ONCE = 256, 1024
_ROWS_AT_ONCE = 1 << 16
_NOTHING = -80.0
"""Of a logarithm of a share of a sum. An exponential below the least normal float32 takes many times as long."""


class TotalCorrelation(NamedTuple):
    """Total correlation in nats, and what it is made of.

    ``score`` and its ``standard_error``; ``gaussian``, that of a Gaussian with the covariance of q(z); ``marginal
    [D]``, the entropies H(z_j); ``kl [3]``, the parts of the KL to N(0, I), averaged over the images: mutual
    information of image and code, total correlation, dimension-wise KL.
    """

    score: float
    standard_error: float
    gaussian: float
    marginal: npt.NDArray[np.float64]
    kl: npt.NDArray[np.float64]


def total_correlation(
    table: CodeTable,
    *,
    seed: int = 0,
    samples: int = 4096,
    nodes: int = 512,
    tol: float = 1e-5,
    progress: bool = True,
) -> TotalCorrelation:
    """Total correlation of the sampled codes: how far the aggregate posterior is from the product of its marginals.

    That is KL(q(z) || prod_j q(z_j)), where q(z) is the mixture of the posteriors q(z|x) of all N images of the table.
    What FactorVAE (Kim & Mnih 2018) has a discriminator estimate, and beta-TCVAE (Chen et al. 2018) a batch, is here

        TC = sum_j H(z_j) - H(z|x) - I(z; x)

    with the entropies of the latents H(z_j) by quadrature, that of the posteriors H(z|x) in closed form, and the mutual
    information the mean of log q(z|x) - log q(z) over samples z of q(z), each with log q(z) summed over all N
    posteriors. So the standard error is that of the mutual information: it vanishes where codes say nothing of their
    images, and where they tell all images apart.

    Args:
        table: N codes, of all images that q(z) is to be of; its factors are not used.
        seed: of the samples.
        samples: of q(z); four times as many halve the standard error. Each is compared to all N posteriors.
        nodes: of the quadrature.
        tol: of the quadrature, nats for each latent.
        progress: whether to show a progress bar of the samples.

    Returns:
        nats. An estimate of a total correlation near 0 may be below it, by a few standard errors.

    Raises:
        ValueError: fewer than two latents or codes; log-variances beyond 100 either way, and what
            :func:`pyvae.posterior_entropy` has no grid for.
    """
    check_total_correlation(table, samples=samples, nodes=nodes, tol=tol)
    from pyvae.ops.posterior_entropy import posterior_entropy

    marginal = posterior_entropy(table.mu, table.logvar, nodes=nodes, tol=tol).marginal
    order = draw_points(len(table), len(table), draw_key(seed, Draw.TOTAL_CORRELATION_ROWS))
    # every posterior as often as any other, but for a remainder
    rows = order[torch.arange(samples) % len(table)]
    noise = normal(
        draw_key(seed, Draw.TOTAL_CORRELATION_NOISE), samples, table.latents, Stream.METRIC
    ).double()
    logvar = table.logvar[rows].double()
    z = table.mu[rows] + torch.exp(0.5 * logvar) * noise
    own = -0.5 * (noise.square() + logvar + math.log(2 * math.pi)).sum(1)
    gain = own - mixture_log_density(z, table.mu, table.logvar, progress=progress)

    information = float(gain.mean())
    mean, covariance, log_variance = _moments(table)
    posteriors = 0.5 * float((log_variance + math.log(2 * math.pi) + 1).sum())
    score = float(marginal.sum()) - posteriors - information
    kl = 0.5 * float((covariance.diag() + mean.square() - log_variance - 1).sum())
    parts = np.array([information, score, kl - information - score])
    error = float(gain.std()) / math.sqrt(samples)
    return TotalCorrelation(score, error, _gaussian(covariance), marginal.numpy(), parts)


def check_total_correlation(layout: Layout, *, samples: int, nodes: int, tol: float) -> None:
    """Raise, as `total_correlation` would, unless it can be computed."""
    check_layout(layout)
    layout.require_latents("total_correlation")
    if len(layout) < 2:
        raise TooFewCodes("total_correlation: at least 2 codes are needed, the table has 1")
    check_count("samples", samples, 2)
    check_count("nodes", nodes, 4)
    check_tolerance(tol)


def mixture_log_density(z: Tensor, mu: Tensor, logvar: Tensor, *, progress: bool = False) -> Tensor:
    """log of 1/N sum_n N(z_s; mu_n, exp(logvar_n)), in nats: float64 ``[S]``.

    Distances are taken in float64 as (z - mu) / sigma, so that nothing cancels however sharp a posterior is; a sum of N
    terms is right to 1e-6 of itself.

    Args:
        z: samples, float64 ``[S, D]``.
        mu: ``[N, D]``.
        logvar: log sigma^2, ``[N, D]``.
        progress: whether to show a progress bar.
    """
    from tqdm import tqdm

    top = torch.full((len(z), 1), -math.inf, dtype=torch.float64)
    total = torch.zeros_like(top)
    blocks = list(zip(mu.split(_POSTERIORS_AT_ONCE), logvar.split(_POSTERIORS_AT_ONCE), strict=True))
    for means, logvars in tqdm(blocks, desc="total-correlation", unit="block", disable=not progress):
        m, lv = means.double().mT.contiguous(), logvars.double().mT.contiguous()
        precision, height = torch.exp(-0.5 * lv), -0.5 * lv.sum(0)
        for start in range(0, len(z), _SAMPLES_AT_ONCE):
            part = slice(start, start + _SAMPLES_AT_ONCE)
            log_density = height.expand(len(z[part]), -1).clone()
            for j in range(len(m)):
                distance = (z[part, j, None] - m[j]).mul_(precision[j])
                log_density.addcmul_(distance, distance, value=-0.5)
            highest = torch.maximum(top[part], log_density.amax(1, keepdim=True))
            share = log_density.sub_(highest).clamp_min_(_NOTHING).float().exp_().sum(1, keepdim=True)
            total[part] = total[part] * torch.exp(top[part] - highest) + share
            top[part] = highest
    constant = 0.5 * mu.shape[1] * math.log(2 * math.pi) + math.log(len(mu))
    return (top + total.log()).squeeze(1) - constant


def _moments(table: CodeTable) -> tuple[Tensor, Tensor, Tensor]:
    """Mean ``[D]`` and covariance ``[D, D]`` of q(z), and the mean log-variance ``[D]`` of its posteriors: float64."""
    mean = table.mu.mean(0, dtype=torch.float64)
    covariance, log_variance = (
        torch.zeros(table.latents, table.latents, dtype=torch.float64),
        torch.zeros_like(mean),
    )
    for mu, logvar in zip(table.mu.split(_ROWS_AT_ONCE), table.logvar.split(_ROWS_AT_ONCE), strict=True):
        centred, lv = mu - mean, logvar.double()
        covariance += centred.mT @ centred + torch.diag(lv.exp().sum(0))
        log_variance += lv.sum(0)
    return mean, covariance / len(table), log_variance / len(table)


def _gaussian(covariance: Tensor) -> float:
    """Total correlation of a Gaussian."""
    scale = covariance.diag().sqrt()
    sign, log_det = torch.linalg.slogdet(covariance / scale / scale[:, None])
    return max(-0.5 * float(log_det), 0.0) if sign > 0 else math.inf
