"""Scores of a code that need no factors: how far its latents are from independent."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pyvae.functional import code_histogram
from pyvae.metrics.counts import bin_codes, information_matrix
from pyvae.metrics.layout import Layout, check_count, check_layout
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
    and adds 0 to each; codes that determine one another, as duplicates do, have an infinite total correlation. The
    codes are means, without the noise of their posteriors: `total_correlation` is that of q(z) itself.

    Args:
        table: N codes; its factors are not used.
        seed: of the points.
        points: random rows; None for all.
        bins: equal-width bins of each latent.

    Raises:
        ValueError: too few rows for ``points``, or fewer than two latents.
    """
    rows = check_unsupervised(table, seed=seed, points=points, bins=bins)
    codes = table.mu[rows]
    total_correlation, wasserstein, trace = _gaussian(codes.double().numpy())
    binned = bin_codes(codes, bins)
    sizes = (bins,) * table.latents
    information = information_matrix(
        code_histogram(codes, torch.from_numpy(binned.T), sizes, bins=bins), sizes
    )
    pairs = table.latents * (table.latents - 1)
    return Unsupervised(
        total_correlation,
        wasserstein,
        wasserstein / trace if trace > 0 else 0.0,
        float(information.sum() - np.trace(information)) / pairs,
    )


def _gaussian(codes: npt.NDArray[np.float64]) -> tuple[float, float, float]:
    """Total correlation, squared Wasserstein distance, and tr C, of the Gaussian of codes ``[N, D]``.

    By singular values of the codes: those of a covariance lose half the digits of what is nearly dependent.
    """
    centred = codes - codes.mean(0)
    deviation = np.sqrt((centred**2).sum(0) / (len(codes) - 1))
    centred, deviation = centred[:, deviation > 0], deviation[deviation > 0]
    trace = float((deviation**2).sum())
    if not deviation.size:
        return 0.0, 0.0, 0.0
    # of the codes times a diagonal: Q of a QR decomposition changes no singular value, and R is small
    r = np.linalg.qr(centred / deviation, mode="r") / np.sqrt(len(codes) - 1)
    correlated = np.linalg.svd(r, compute_uv=False)
    singular = len(r) < len(deviation) or correlated[-1] <= correlated[0] * len(codes) * np.finfo(float).eps
    total_correlation = np.inf if singular else -float(np.log(correlated).sum())
    # C^1/2 diag(C) C^1/2 has the eigenvalues of diag(C)^1/2 C diag(C)^1/2
    wasserstein = 2 * trace - 2 * float(np.linalg.svd(r * deviation**2, compute_uv=False).sum())
    return max(total_correlation, 0.0), max(wasserstein, 0.0), trace


def check_unsupervised(layout: Layout, *, seed: int, points: int | None, bins: int) -> Tensor:
    """The rows to read, if the metric can be computed; else as `unsupervised` raises."""
    check_layout(layout)
    layout.require_latents("unsupervised")
    check_count("bins", bins, 1)
    return draw_points(points, len(layout), draw_key(seed, Draw.UNSUPERVISED))
