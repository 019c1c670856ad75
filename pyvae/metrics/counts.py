"""Joint histograms of codes and factors, and the mutual information in them."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pyvae.metrics.sampling import draw_points
from pyvae.metrics.table import CodeTable

Array = npt.NDArray[np.float64]


class Histogram(NamedTuple):
    """Ends of the bins of each code, float64 ``[D]``, and counts int64 ``[D, bins, sum(factor_sizes)]``."""

    low: Tensor
    high: Tensor
    counts: Tensor


def bin_codes(codes: Tensor, bins: int) -> tuple[npt.NDArray[np.int64], Array, Array]:
    """Equal-width bins from each code's smallest to its largest value.

    The edges are those of ``numpy.histogram`` in float64: the last bin holds its right edge, and a constant code
    lies in the middle of a bin range of width 1.

    Args:
        codes: ``[N, D]``.
        bins: number of bins.

    Returns:
        bin of each code int64 ``[D, N]``, and the ends of the bin ranges ``[D]``.
    """
    low, high = (end.double().numpy() for end in torch.aminmax(codes, dim=0))
    constant = low == high
    low, high = np.where(constant, low - 0.5, low), np.where(constant, high + 0.5, high)
    binned = np.empty((codes.shape[1], len(codes)), dtype=np.int64)
    for j in range(codes.shape[1]):
        edges = np.linspace(low[j], high[j], bins + 1)
        binned[j] = np.searchsorted(edges[1:-1], codes[:, j].double().numpy(), side="right")
    return binned, low, high


def joint_counts(
    codes: Tensor, factors: Tensor | None, factor_sizes: Sequence[int], *, bins: int = 20
) -> Histogram:
    """How often each bin of each code meets each class of each factor.

    Args:
        codes: finite ``[N, D]``.
        factors: classes int64 ``[N, F]``; None when row n is point n of the full grid of the factors.
        factor_sizes: number of classes of each factor.
        bins: equal-width bins of each code, as `bin_codes` has them.
    """
    binned, low, high = bin_codes(codes, bins)
    counts = np.empty((len(binned), bins, sum(factor_sizes)), dtype=np.int64)
    rows = np.arange(len(codes)) if factors is None else None
    stride = len(codes)
    start = 0
    for f, size in enumerate(factor_sizes):
        stride //= size
        classes = rows // stride % size if rows is not None else factors[:, f].numpy()  # type: ignore[index]
        for j, bin_of in enumerate(binned):
            cells = np.bincount(bin_of * size + classes, minlength=bins * size)
            counts[j, :, start : start + size] = cells.reshape(bins, size)
        start += size
    return Histogram(torch.from_numpy(low), torch.from_numpy(high), torch.from_numpy(counts))


def table_counts(table: CodeTable, points: int | None, bins: int, key: Tensor) -> Histogram:
    """`joint_counts` of random rows of a table, of all for None."""
    if points is None:
        return joint_counts(table.mu, table.factors, table.factor_sizes, bins=bins)
    rows = draw_points(points, len(table), key)
    return joint_counts(table.mu[rows], table.classes(rows), table.factor_sizes, bins=bins)


def split_counts(histogram: Histogram, factor_sizes: Sequence[int]) -> list[npt.NDArray[np.int64]]:
    """Counts ``[D, bins, size]`` of each factor."""
    return np.split(histogram.counts.numpy(), np.cumsum(factor_sizes)[:-1], axis=-1)


def entropy(counts: npt.NDArray[np.int64]) -> Array:
    """Entropy in nats of the empirical distribution over the last axis."""
    p = counts / counts.sum(-1, keepdims=True)
    return -(p * _log(p)).sum(-1)


def mutual_information(counts: npt.NDArray[np.int64]) -> Array:
    """Mutual information in nats of the empirical joint distribution over the last two axes; at least 0."""
    p = counts / counts.sum((-2, -1), keepdims=True)
    independent = p.sum(-1, keepdims=True) * p.sum(-2, keepdims=True)
    return np.maximum((p * (_log(p) - _log(independent))).sum((-2, -1)), 0.0)


def information_matrix(histogram: Histogram, factor_sizes: Sequence[int]) -> Array:
    """Mutual information in nats ``[D, F]`` of every code with every factor."""
    return np.stack([mutual_information(c) for c in split_counts(histogram, factor_sizes)], axis=-1)


def _log(p: Array) -> Array:
    """Logarithm with 0 log 0 = 0 in mind."""
    return np.log(np.where(p > 0, p, 1.0))
