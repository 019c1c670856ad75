"""Scores of a code that need no factors: how far its latents are from independent."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pyvae.functional import code_histogram
from pyvae.metrics.counts import bin_codes, information_matrix
from pyvae.metrics.layout import Layout, check_count
from pyvae.metrics.sampling import Draw, draw_key, draw_points
from pyvae.metrics.table import CodeTable


class Unsupervised(NamedTuple):
    """Three measures of dependence, each at least 0 (0: independent) and without an upper end, and a relative one."""

    gaussian_total_correlation: float
    gaussian_wasserstein_correlation: float
    gaussian_wasserstein_correlation_norm: float
    mutual_information: float


def unsupervised(
    table: CodeTable, *, seed: int = 0, points: int | None = 10_000, bins: int = 20
) -> Unsupervised:
    """Dependence between the latents of the mean codes, as Locatello et al. 2019 measure it.

    Of the Gaussian with the codes' covariance C: its total correlation 1/2 (sum log diag C - log det C), in nats; the
    squared 2-Wasserstein distance to the product of its marginals, 2 tr C - 2 tr sqrt(C^1/2 diag(C) C^1/2), in the
    squared unit of the codes, and that relative to tr C, in [0, 2]. Further the mean mutual information between two
    latents by histograms, in nats.

    Defaults are those of disentanglement_lib (unsupervised_study_v1). A constant latent is independent of all others
    and adds 0 to each; codes that determine one another give an infinite total correlation, up to rounding.

    Args:
        table: N codes; its factors are not used.
        seed: of the points.
        points: random rows; None for all.
        bins: equal-width bins of each latent.

    Raises:
        ValueError: too few rows for ``points``, or fewer than two latents.
    """
    codes = table.mu[check_unsupervised(table, seed=seed, points=points, bins=bins)]
    covariance = np.cov(codes.double().numpy(), rowvar=False)
    varied = np.diag(covariance) > 0
    covariance = covariance[varied][:, varied]
    variance = np.diag(covariance)
    scale = np.sqrt(np.outer(variance, variance))
    total_correlation = -0.5 * np.linalg.slogdet(covariance / scale)[1]
    # tr sqrt(diag(C) C) by the symmetric matrix of the same eigenvalues, free of a complex square root
    eigenvalues = np.linalg.eigvalsh(covariance * scale)
    trace = float(variance.sum())
    wasserstein = 2 * trace - 2 * float(np.sqrt(np.maximum(eigenvalues, 0.0)).sum())
    binned = bin_codes(codes, bins)
    sizes = (bins,) * table.latents
    information = information_matrix(
        code_histogram(codes, torch.from_numpy(binned.T), sizes, bins=bins), sizes
    )
    pairs = table.latents * (table.latents - 1)
    return Unsupervised(
        max(float(total_correlation), 0.0),
        max(wasserstein, 0.0),
        max(wasserstein, 0.0) / trace if trace > 0 else 0.0,
        float(information.sum() - np.trace(information)) / pairs,
    )


def check_unsupervised(layout: Layout, *, seed: int, points: int | None, bins: int) -> Tensor:
    """The rows to read, if the metric can be computed; else as `unsupervised` raises."""
    layout.require_latents("unsupervised")
    check_count("bins", bins, 1)
    return draw_points(points, len(layout), draw_key(seed, Draw.UNSUPERVISED))
