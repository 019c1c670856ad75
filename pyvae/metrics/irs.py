"""Interventional robustness score."""

from collections.abc import Collection
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from torch import Tensor

from pyvae.metrics.layout import Layout, check_layout, check_number
from pyvae.metrics.sampling import Draw, draw_key, draw_points
from pyvae.metrics.table import CodeTable

Array = npt.NDArray[np.float64]


class Irs(NamedTuple):
    """Score, and robustness ``[D, F]``, ``per_code [D]`` and ``deviation [D]``, the largest from the mean.

    A constant latent has deviation 0 and robustness 0, and no weight.
    """

    score: float
    robustness: Array
    per_code: Array
    deviation: Array
    factors: tuple[str, ...]


def irs(
    table: CodeTable,
    *,
    seed: int = 0,
    points: int | None = 10_000,
    quantile: float = 0.99,
    without: Collection[str] = (),
) -> Irs:
    """Interventional robustness score of Suter et al. 2019, "Robustly disentangled causal mechanisms".

    How far a latent moves from its mean while a factor is held, relative to the farthest it ever moves: 1 - (mean over
    classes of the quantile of |z_j - E[z_j | v_k]|) / max |z_j - E[z_j]|. A latent counts by its best factor; the score
    is the mean over latents weighted by their largest deviation, so it is not invariant to the scale of one latent.

    ``quantile`` is the default of disentanglement_lib, ``points`` those of its config/sample/irs (the metric is not in
    unsupervised_study_v1); the paper takes the maximum, ``quantile=1``. disentanglement_lib also puts the classes of
    the factors into bins, 20 in that file, where here every class stands for itself.

    Args:
        table: N codes.
        seed: of the points.
        points: random rows; None for all.
        quantile: of the deviations within a class, in (0, 1].
        without: names of factors to leave out.

    Returns:
        the score and its parts: 1 at most, 0 when every latent is constant, and below 0 only where the outliers of a
        class lie farther from its mean than any code from the mean of all.

    Raises:
        ValueError: too few rows for ``points``, an unknown factor, a quantile outside (0, 1].
    """
    kept, rows = check_irs(table, seed=seed, points=points, quantile=quantile, without=without)
    codes = table.mu[rows].double().numpy()
    classes = table.classes(rows)[:, kept].numpy()
    deviation = np.abs(codes - codes.mean(0)).max(0)
    moved = np.stack([_deviation_held(codes, classes[:, k], quantile) for k in range(len(kept))], -1)
    active = deviation > 0
    robustness = np.where(active[:, None], 1 - moved / np.where(active, deviation, 1.0)[:, None], 0.0)
    per_code = robustness.max(1)
    score = float(per_code @ deviation / deviation.sum()) if active.any() else 0.0
    return Irs(score, robustness, per_code, deviation, table.names(kept))


def check_irs(
    layout: Layout, *, seed: int, points: int | None, quantile: float, without: Collection[str]
) -> tuple[list[int], Tensor]:
    """The positions of the kept factors and the rows to read, if the metric can be computed; else as `irs` raises."""
    check_layout(layout)
    kept = layout.kept(without)
    check_number("quantile", quantile)
    if not 0 < quantile <= 1:
        raise ValueError(f"quantile: expected a number in (0, 1], got {quantile}")
    return kept, draw_points(points, len(layout), draw_key(seed, Draw.IRS))


def _deviation_held(codes: Array, classes: npt.NDArray[np.int64], quantile: float) -> Array:
    """``[D]``: mean over the classes of the quantile of a code's distance from its mean within the class."""
    order = np.argsort(classes, kind="stable")
    starts = np.flatnonzero(np.diff(classes[order])) + 1
    groups = np.split(codes[order], starts)
    return np.mean([np.quantile(np.abs(z - z.mean(0)), quantile, axis=0) for z in groups], axis=0)
