"""Numbers of many models at once: which of their scores agree, and what a score depends on."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

LEAST_PAIRS = 3
"""Of a rank correlation: two pairs always agree or disagree wholly."""
LEAST_OF_DENSITY = 3
REACH = 3
"""How far a model's partners are from it on the ring of its seeds, so that it has at most six."""
_POINTS = 96
_ROUNDING = 1e-12
"""Of the largest value: what another order of sums explains."""


class Shares(NamedTuple):
    """Of the variance of a score; the three add up to 1, all are NaN for a score that is the same everywhere."""

    method: float
    """Between the means of the methods."""
    setting: float
    """Between the means of the settings of a method."""
    seed: float
    """Between models of one method and setting, which differ in their seed alone."""
    chance: tuple[float, float, float]
    """What each of the three is on average, were the score drawn for every model from one normal distribution."""
    models: int
    methods: int
    settings: int
    """Pairs of a method and a setting of it."""
    repeated: int
    """Of those, how many have more than one model."""


class Mean(NamedTuple):
    """Over seeds."""

    value: float
    error: float | None
    """Standard error; None for one seed."""
    seeds: int


class Best(NamedTuple):
    """The setting of the best mean."""

    setting: Hashable
    mean: Mean


def rank_correlation(a: npt.ArrayLike, b: npt.ArrayLike) -> float:
    """Spearman's rank correlation over the pairs that are both known, ties at their mean rank.

    Args:
        a, b: ``[N]``, NaN where not known.

    Returns:
        in [-1, 1]; NaN for fewer than three pairs, or where either side is the same throughout.
    """
    from scipy.stats import rankdata

    x, y = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    both = np.isfinite(x) & np.isfinite(y)
    if both.sum() < LEAST_PAIRS:
        return math.nan
    x, y = rankdata(x[both]), rankdata(y[both])
    x, y = x - x.mean(), y - y.mean()
    scale = math.sqrt(float(x @ x) * float(y @ y))
    return float(np.clip(x @ y / scale, -1.0, 1.0)) if scale > 0 else math.nan


def rank_correlations(columns: Sequence[npt.ArrayLike]) -> Array:
    """:func:`rank_correlation` of each two of Q columns ``[N]``, as ``[Q, Q]``; 1 on the diagonal, or NaN."""
    found = np.full((len(columns), len(columns)), math.nan)
    for i, a in enumerate(columns):
        for j, b in enumerate(columns[: i + 1]):
            found[i, j] = found[j, i] = rank_correlation(a, b)
    return found


def differ(values: Array) -> bool:
    """Whether finite values do by more than rounding."""
    return len(values) > 1 and bool(np.ptp(values) > _ROUNDING * np.abs(values).max())


def shares(values: npt.ArrayLike, methods: Sequence[Hashable], settings: Sequence[Hashable]) -> Shares:
    """How much of a score's variance lies between methods, between settings of a method, and between seeds.

    Sequential sums of squares: those of the means of the methods about the mean of all models; those of the means of
    the settings about the mean of their method; those of the models about the mean of their setting; each divided by
    the sum of all. A mean counts as often as it has models. Settings lie within methods, so the three add up exactly
    however many models a setting has, and ``method + setting`` is the R^2 of a table of the means of all settings.

    A setting with one model takes all that its seed did: with one seed throughout, ``seed`` is 0 and says nothing.

    Args:
        values: ``[N]``, NaN where not known.
        methods: of each model.
        settings: of each model, within its method; two methods may have equal ones.
    """
    x = np.asarray(values, dtype=np.float64)
    known = np.isfinite(x)
    kept = np.flatnonzero(known).tolist()
    x = x[kept]
    # of one dict each: hashables need not compare
    by_method = _codes([methods[i] for i in kept])
    by_cell = _codes([(methods[i], settings[i]) for i in kept])
    models, cells = len(x), int(by_cell.max(initial=-1)) + 1
    groups = int(by_method.max(initial=-1)) + 1
    repeated = int((np.bincount(by_cell, minlength=cells) > 1).sum())
    if not differ(x):
        nan = math.nan
        return Shares(nan, nan, nan, (nan, nan, nan), models, groups, cells, repeated)
    centre, method, cell = x.mean(), _means(x, by_method), _means(x, by_cell)
    parts = np.array(
        [np.square(method - centre).sum(), np.square(cell - method).sum(), np.square(x - cell).sum()]
    )
    freedom = np.array([groups - 1, cells - groups, models - cells]) / (models - 1)
    between, within, rest = (parts / parts.sum()).tolist()
    a, b, c = freedom.tolist()
    return Shares(between, within, rest, (a, b, c), models, groups, cells, repeated)


def average(values: Sequence[float]) -> Mean:
    """Mean and its standard error, from the deviation with n - 1 in the denominator."""
    mean = math.fsum(values) / len(values)
    if len(values) == 1:
        return Mean(mean, None, 1)
    variance = math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)
    return Mean(mean, math.sqrt(variance / len(values)), len(values))


def best_setting(values: npt.ArrayLike, settings: Sequence[Hashable], *, lowest: bool = False) -> Best | None:
    """The setting of the highest mean, or of the lowest; of several the first; None where no value is known."""
    known: dict[Hashable, list[float]] = {}
    for value, setting in zip(np.asarray(values, dtype=np.float64).tolist(), settings, strict=True):
        if math.isfinite(value):
            known.setdefault(setting, []).append(value)
    sign = -1 if lowest else 1
    found = [Best(setting, average(there)) for setting, there in known.items()]
    return max(found, key=lambda best: sign * best.mean.value, default=None)


def density(values: npt.ArrayLike) -> tuple[Array, Array] | None:
    """Where values lie: Gaussian kernels of Scott's width, from the least to the greatest value alone.

    Args:
        values: ``[N]``, all finite.

    Returns:
        positions and densities ``[P]``, the highest 1; None for fewer than three values, or for equal ones.
    """
    x = np.sort(np.asarray(values, dtype=np.float64))
    width = float(x.std(ddof=1)) * len(x) ** -0.2 if len(x) >= LEAST_OF_DENSITY else 0.0
    at = np.linspace(x[0], x[-1], _POINTS) if width > 0 else x
    if not width > 0 or at[1] == at[0]:  # too close to one another to lie between
        return None
    found = np.exp(-0.5 * np.square((at[:, None] - x) / width)).sum(1)
    return at, found / found.max()


def partners(models: int, reach: int = REACH) -> list[tuple[int, int]]:
    """Pairs to compare so that every model has ``2 reach`` partners, or all others where there are no more.

    The models stand in a ring, and each is compared with the nearest.
    """
    if models <= 2 * reach + 1:
        return [(i, j) for j in range(models) for i in range(j)]
    return [(i, (i + step) % models) for step in range(1, reach + 1) for i in range(models)]


def _codes(keys: Sequence[Hashable]) -> npt.NDArray[np.int64]:
    numbers: dict[Hashable, int] = {}
    return np.array([numbers.setdefault(key, len(numbers)) for key in keys], dtype=np.int64)


def _means(x: Array, group: npt.NDArray[np.int64]) -> Array:
    """Of the group of each value."""
    return (np.bincount(group, x) / np.bincount(group))[group]
