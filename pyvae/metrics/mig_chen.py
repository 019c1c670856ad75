"""Mutual information gap by entropies of the aggregate posterior."""

from collections.abc import Collection
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pyvae.metrics.layout import Layout, check_count, check_layout, check_tolerance
from pyvae.metrics.mig import information_gaps
from pyvae.metrics.sampling import Draw, draw_key, draw_points
from pyvae.metrics.table import CodeTable
from pyvae.random import Stream, normal

_NOISE_ROWS = 1 << 16
_SHARP = 1e-3


class MigChen(NamedTuple):
    """Score, and its parts for the kept factors, in nats.

    ``gaps [F]``, ``information [D, F]`` (not below 0), ``marginal [D]`` the entropies H(z_j), ``conditional [D, F]``
    the mean entropies H(z_j | v_k), ``error [D]``: what the quadrature estimates of its error, or the standard error of
    the sampled marginal entropies.
    """

    score: float
    gaps: npt.NDArray[np.float64]
    information: npt.NDArray[np.float64]
    marginal: npt.NDArray[np.float64]
    conditional: npt.NDArray[np.float64]
    error: npt.NDArray[np.float64]
    factors: tuple[str, ...]


def mig_chen(
    table: CodeTable,
    *,
    seed: int = 0,
    estimator: str = "quadrature",
    samples: int = 10_000,
    nodes: int = 512,
    tol: float = 1e-5,
    without: Collection[str] = (),
    progress: bool = True,
) -> MigChen:
    """Mutual information gap of the sampled codes, from entropies of the aggregate posterior.

    I(z_j; v_k) = H(z_j) - mean over classes of H(z_j | v_k), where z_j has the density of the mixture of all q(z_j|x);
    the score is the mean over factors of (largest minus second largest information) / (log of the number of classes).
    Source: Chen et al. 2018, "Isolating sources of disentanglement in VAEs", and their code, which leaves out shape on
    dSprites, as does that of ControlVAE (Shao et al. 2020): ``without=("shape",)`` gives numbers to compare to theirs.

    The authors estimate every entropy from 10,000 samples; quadrature computes the limit of that for many samples.

    Args:
        table: codes of the full grid.
        seed: of the samples; the quadrature draws nothing.
        estimator: "quadrature", or "sampled" as published: one z per image, ``samples`` of them for each entropy.
        samples: for each entropy; all that there are if fewer.
        nodes: of the quadrature.
        tol: of the quadrature, nats.
        without: names of factors to leave out.
        progress: whether to show a progress bar of the sampling.

    Returns:
        the score, in [0, 1], and its parts.

    Raises:
        ValueError: not the full grid, fewer than two latents, an unknown factor or estimator, a factor of one class;
            log-variances beyond 100 either way, and what :func:`pyvae.posterior_entropy` has no grid for.
    """
    kept = check_mig_chen(table, estimator=estimator, samples=samples, nodes=nodes, tol=tol, without=without)
    if estimator == "quadrature":
        marginal, conditional, error = _quadrature(table, kept, nodes, tol)
    else:
        marginal, conditional, error = _sampled(table, kept, samples, seed, progress)
    information = np.maximum(marginal[:, None] - conditional, 0.0)
    gaps = information_gaps(information) / np.log(table.sizes(kept))
    return MigChen(float(gaps.mean()), gaps, information, marginal, conditional, error, table.names(kept))


def check_mig_chen(
    layout: Layout, *, estimator: str, samples: int, nodes: int, tol: float, without: Collection[str]
) -> list[int]:
    """The positions of the kept factors, if the metric can be computed; else as `mig_chen` raises."""
    check_layout(layout)
    layout.require_latents("mig_chen")
    kept = layout.kept(without)
    layout.require_sizes(kept)
    if estimator not in ("quadrature", "sampled"):
        raise ValueError(f"estimator: expected 'quadrature' or 'sampled', got {estimator!r}")
    check_count("samples", samples, 2)
    check_count("nodes", nodes, 4)
    check_tolerance(tol)
    layout.require_grid("mig_chen")
    return kept


Entropies = tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], npt.NDArray[np.float64]]


def _quadrature(table: CodeTable, kept: list[int], nodes: int, tol: float) -> Entropies:
    from pyvae.ops.posterior_entropy import posterior_entropy

    found = posterior_entropy(table.mu, table.logvar, table.factor_sizes, nodes=nodes, tol=tol)
    conditional = torch.stack([found.conditional[f].double().mean(-1) for f in kept], -1)
    return found.marginal.double().numpy(), conditional.numpy(), found.error.double().numpy()


def _sampled(table: CodeTable, kept: list[int], samples: int, seed: int, progress: bool) -> Entropies:
    from tqdm import tqdm

    from pyvae.ops.posterior_entropy import sampled_entropy

    mu, logvar = table.mu, table.logvar
    # float32 has no room for the noise of a posterior far sharper than its mean is large
    if bool((torch.exp(0.5 * logvar) < _SHARP * mu.abs()).any()):
        mu, logvar = mu.double(), logvar.double()
    z = one_sample_per_image(mu, logvar, seed)
    rows = draw_points(min(samples, len(z)), len(z), draw_key(seed, Draw.CHEN_POINTS))
    marginal, error = sampled_entropy(z[rows], mu, logvar)
    subsets = [(column, f, c) for column, f in enumerate(kept) for c in range(table.factor_sizes[f])]
    conditional = torch.zeros(table.latents, len(kept), dtype=torch.float64)
    bar = tqdm(subsets, desc="mig-chen", unit="entropy", disable=not progress)
    for part, (column, f, c) in enumerate(bar, start=1):
        held = (table.class_of(torch.arange(len(z)), torch.tensor(f)) == c).nonzero().squeeze(-1)
        chosen = held
        if samples < len(held):
            chosen = held[draw_points(samples, len(held), draw_key(seed, Draw.CHEN_POINTS, part))]
        found, _ = sampled_entropy(z[chosen], mu[held], logvar[held])
        conditional[:, column] += found.double() / table.factor_sizes[f]
    return marginal.double().numpy(), conditional.numpy(), error.double().numpy()


def one_sample_per_image(mu: Tensor, logvar: Tensor, seed: int) -> Tensor:
    """One z ``[N, D]`` from q(z|x) of every image."""
    z = []
    for part, (m, lv) in enumerate(zip(mu.split(_NOISE_ROWS), logvar.split(_NOISE_ROWS), strict=True)):
        noise = normal(draw_key(seed, Draw.CHEN_NOISE, part), len(m), m.shape[1], Stream.METRIC)
        z.append(m + torch.exp(0.5 * lv) * noise)
    return torch.cat(z)
