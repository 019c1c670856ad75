"""Joint counts are those of numpy.histogram2d; information is that of scikit-learn."""

import numpy as np
import pytest
import torch
from sklearn.metrics import mutual_info_score

import codes
from pyvae.metrics.counts import entropy, information_matrix, joint_counts, mutual_information, split_counts

SIZES = tuple(codes.SMALL.values())


def some_codes():
    """Noise, a code with values on edges, another, a constant, one with an outlier, one of tiny width far from 0."""
    z = codes.noise(768, 6).astype(np.float32)
    z[:, 1] = codes.classes(codes.SMALL)[:, 2] / 7
    z[:, 2] = np.arange(768) % 21
    z[:, 3] = 0.3
    z[17, 4] = 1e6
    z[:, 5] = 1000 + np.arange(768) % 5 * 2.0**-13
    return z


@pytest.mark.parametrize("bins", [20, 7])
@pytest.mark.parametrize("grid", [True, False])
def test_counts_are_those_of_histogram2d(bins, grid):
    z, labels = some_codes(), codes.classes(codes.SMALL)
    if not grid:
        order = np.random.default_rng(1).integers(768, size=500)
        z, labels = z[order], labels[order]
    factors = None if grid else torch.tensor(labels)
    histogram = joint_counts(torch.tensor(z), factors, SIZES, bins=bins)
    assert histogram.counts.shape == (6, bins, sum(SIZES))
    assert histogram.counts.dtype == torch.int64
    for j in range(6):
        for size, counts, label in zip(SIZES, split_counts(histogram, SIZES), labels.T, strict=True):
            edges = np.arange(size + 1) - 0.5
            expected, ends, _ = np.histogram2d(z[:, j].astype(np.float64), label, bins=[bins, edges])
            assert np.array_equal(counts[j], expected), j
            assert (histogram.low[j], histogram.high[j]) == (ends[0], ends[-1])


def test_information_is_that_of_scikit_learn():
    z, labels = some_codes(), codes.classes(codes.SMALL)
    matrix = information_matrix(joint_counts(torch.tensor(z), None, SIZES), SIZES)
    for j, k in np.ndindex(*matrix.shape):
        binned = np.digitize(z[:, j], np.histogram(z[:, j].astype(np.float64), 20)[1][:-1])
        assert matrix[j, k] == pytest.approx(mutual_info_score(labels[:, k], binned), abs=1e-12)
    assert matrix[3] == pytest.approx(0)


def test_entropy_of_simple_counts():
    assert entropy(np.array([[5, 5, 0], [3, 0, 0]])) == pytest.approx([np.log(2), 0])
    assert mutual_information(np.array([[4, 0], [0, 4]])) == pytest.approx(np.log(2))
    assert mutual_information(np.array([[4, 4], [4, 4]])) == 0
