"""Unsupervised disentanglement ranking."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pyvae.metrics.layout import Layout, check_layout, check_number
from pyvae.metrics.sampling import Draw, draw_key, draw_points
from pyvae.metrics.table import CodeTable

Array = npt.NDArray[np.float64]


class Udr(NamedTuple):
    """Score ``[M]`` of each model, and ``pairwise [M, M]``: models (i, j) compared, 0 on the diagonal."""

    scores: Array
    pairwise: Array


def udr(
    tables: Sequence[CodeTable],
    *,
    seed: int = 0,
    points: int | None = 1_000,
    correlation: str = "lasso",
    alpha: float = 0.1,
    kl_threshold: float = 0.01,
    pairs: Sequence[tuple[int, int]] | None = None,
) -> Udr:
    """Unsupervised disentanglement ranking of Duan et al. 2020: do models of different seeds find the same latents?

    Two models are compared by the similarity R of their standardised latents: half the mean over rows plus half the
    mean over columns of max(R)^2 / sum(R), over the latents that are not collapsed. A model's score is the median over
    the others. It needs no factors.

    Defaults are those of disentanglement_lib (its test configuration of UDR, on 1,000 points).

    Args:
        tables: codes of M models, two at least, of the same images in the same order.
        seed: of the points.
        points: random rows; None for all.
        correlation: "lasso": R holds the magnitudes of the weights in lasso regressions of each latent of model j on
            those of model i; "spearman": the magnitudes of their rank correlations.
        alpha: of the lasso. It shrinks the match of a latent with its equal to 1 - alpha.
        kl_threshold: latents whose mean KL to the prior over the points (nats) does not exceed it are collapsed.
        pairs: models (i, j) to compare with one another, both ways, where all would take too long; a model's score is
            then the median over those it was compared with.

    Returns:
        scores and their parts, in [0, 1] but for lasso weights above 1; 0 for a model whose latents are all collapsed,
        and for parts that were not asked for.

    Raises:
        ValueError: fewer than two tables, tables of different images, too few rows for ``points``, unknown correlation,
            an ``alpha`` that is not above 0, pairs of no such models, a model in none of them.
        TypeError: anything but tables of codes.
    """
    if correlation not in ("lasso", "spearman"):
        raise ValueError(f"correlation: expected 'lasso' or 'spearman', got {correlation!r}")
    check_number("alpha", alpha)
    check_number("kl_threshold", kl_threshold)
    if alpha <= 0:
        raise ValueError(f"alpha: expected more than 0, got {alpha}")
    _check_same_images(tables)
    rows = draw_points(points, len(tables[0]), draw_key(seed, Draw.UDR))
    active = [(t.mean_kl(rows) > kl_threshold).numpy() for t in tables]
    codes = [t.mu[rows].double().numpy()[:, a] for t, a in zip(tables, active, strict=True)]
    codes = [_ranks(c) for c in codes] if correlation == "spearman" else codes
    codes = [_standardise(c) for c in codes]
    compared = _compared(pairs, len(tables))
    pairwise = np.zeros(compared.shape)
    for i, j in np.argwhere(compared):
        if codes[i].size and codes[j].size:
            similar = (
                _pearson(codes[i], codes[j])
                if correlation == "spearman"
                else _lasso(codes[i], codes[j], alpha)
            )
            pairwise[i, j] = relative_strength(similar)
    scores = np.array([np.median(pairwise[compared[:, i], i]) for i in range(len(tables))])
    return Udr(scores, pairwise)


def relative_strength(similarity: Array) -> float:
    """Half the mean over rows plus half the mean over columns of max^2 / sum; 0 where the sum is 0."""
    means = []
    for axis in (0, 1):
        total = similarity.sum(axis)
        means.append(np.mean(similarity.max(axis) ** 2 / np.where(total > 0, total, 1.0)))
    return float(np.mean(means))


def _compared(pairs: Sequence[tuple[int, int]] | None, models: int) -> npt.NDArray[np.bool_]:
    """Which models ``[M, M]`` are compared."""
    if pairs is None:
        return ~np.eye(models, dtype=bool)
    compared = np.zeros((models, models), dtype=bool)
    for i, j in pairs:
        if i == j or not (0 <= i < models and 0 <= j < models):
            raise ValueError(f"pairs: expected two of models 0 to {models - 1}, got {(i, j)}")
        compared[i, j] = compared[j, i] = True
    if not compared.any(0).all():
        raise ValueError(f"pairs: model {int(np.argmin(compared.any(0)))} is compared with none")
    return compared


def _check_same_images(tables: Sequence[CodeTable]) -> None:
    if isinstance(tables, Layout):
        raise TypeError("tables: expected several, got one CodeTable")
    for table in tables:
        check_layout(table)
    if len(tables) < 2:
        raise ValueError(f"tables: udr compares models, it needs at least 2, got {len(tables)}")
    first = tables[0]
    for i, table in enumerate(tables):
        same = (len(table), table.factor_names, table.factor_sizes) == (
            len(first),
            first.factor_names,
            first.factor_sizes,
        )
        if same and (table.factors is not None or first.factors is not None):
            same = bool((table.classes() == first.classes()).all())
        if not same:
            raise ValueError(f"tables: table {i} is not of the images of table 0")


def _ranks(codes: Array) -> Array:
    from scipy.stats import rankdata

    return rankdata(codes, axis=0)


def _standardise(codes: Array) -> Array:
    """Mean 0 and variance 1; a constant code becomes 0."""
    deviation = codes.std(0)
    return (codes - codes.mean(0)) / np.where(deviation > 0, deviation, 1.0)


def _pearson(a: Array, b: Array) -> Array:
    return np.abs(a.T @ b) / len(a)


def _lasso(a: Array, b: Array, alpha: float) -> Array:
    from sklearn.linear_model import Lasso

    return np.abs(np.atleast_2d(Lasso(alpha=alpha).fit(a, b).coef_))
