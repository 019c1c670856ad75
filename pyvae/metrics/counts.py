"""Joint histograms of codes and factors, and the mutual information in them."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from torch import Tensor

from pyvae.functional import code_histogram
from pyvae.metrics.table import CodeTable
from pyvae.reference import CodeHistogram, bin_edges

Array = npt.NDArray[np.float64]


def bin_codes(codes: Tensor, bins: int) -> npt.NDArray[np.int64]:
    """The bin of each code as :func:`pyvae.code_histogram` has it, int64 ``[D, N]``, for codes ``[N, D]``."""
    edges = bin_edges(codes, bins).numpy()
    return np.stack(
        [
            np.searchsorted(own[1:-1], column.double().numpy(), side="right")
            for own, column in zip(edges, codes.unbind(1), strict=True)
        ]
    )


def table_counts(table: CodeTable, rows: Tensor | None, bins: int) -> CodeHistogram:
    """`code_histogram` of rows of a table, of all for None."""
    if rows is None:
        return code_histogram(table.mu, table.factors, table.factor_sizes, bins=bins)
    return code_histogram(table.mu[rows], table.classes(rows), table.factor_sizes, bins=bins)


def split_counts(histogram: CodeHistogram, factor_sizes: Sequence[int]) -> list[npt.NDArray[np.int64]]:
    """Counts ``[D, bins, size]`` of each factor."""
    return np.split(histogram.counts.numpy(), np.cumsum(factor_sizes)[:-1], axis=-1)


def entropy(counts: npt.NDArray[np.int64]) -> Array:
    """Entropy in nats of the empirical distribution over the last axis."""
    p = counts / counts.sum(-1, keepdims=True)
    return -(p * np.log(np.where(p > 0, p, 1.0))).sum(-1)


def mutual_information(counts: npt.NDArray[np.int64]) -> Array:
    """Mutual information in nats of the empirical joint distribution over the last two axes; at least 0.

    Exactly 0 where the two are independent: what a count exceeds independence by is a difference of whole numbers, of
    which no rounding is left to pass for information.
    """
    total = counts.sum((-2, -1), keepdims=True)
    independent = counts.sum(-1, keepdims=True) * counts.sum(-2, keepdims=True)
    excess = np.where(counts > 0, counts * total - independent, 0)
    nats = np.log1p(excess / np.where(counts > 0, independent, 1))
    return np.maximum((counts * nats).sum((-2, -1)) / total[..., 0, 0], 0.0)


def information_matrix(histogram: CodeHistogram, factor_sizes: Sequence[int]) -> Array:
    """Mutual information in nats ``[D, F]`` of every code with every factor."""
    return np.stack([mutual_information(c) for c in split_counts(histogram, factor_sizes)], axis=-1)
