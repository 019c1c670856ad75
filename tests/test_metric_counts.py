"""Bins are those of code_histogram; information is that of scikit-learn."""

import numpy as np
import pytest
import torch
from sklearn.metrics import mutual_info_score

import codes
from pyvae.functional import code_histogram
from pyvae.metrics.counts import bin_codes, entropy, information_matrix, mutual_information

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


def test_bins_are_those_of_the_histogram():
    z = torch.tensor(some_codes())
    for codes_, bins in ((z, 20), (z[:100], 7)):
        binned = bin_codes(codes_, bins)
        counts = code_histogram(codes_, None, (len(codes_),), bins=bins).counts
        for j in range(6):
            assert np.array_equal(binned[j], counts[j].argmax(0)), j


def test_information_is_that_of_scikit_learn():
    z, labels = some_codes(), codes.classes(codes.SMALL)
    matrix = information_matrix(code_histogram(torch.tensor(z), None, SIZES), SIZES)
    for j, k in np.ndindex(*matrix.shape):
        binned = np.digitize(z[:, j], np.histogram(z[:, j].astype(np.float64), 20)[1][:-1])
        assert matrix[j, k] == pytest.approx(mutual_info_score(labels[:, k], binned), abs=1e-12)
    assert matrix[3] == pytest.approx(0)


def test_entropy_of_simple_counts():
    assert entropy(np.array([[5, 5, 0], [3, 0, 0]])) == pytest.approx([np.log(2), 0])
    assert mutual_information(np.array([[4, 0], [0, 4]])) == pytest.approx(np.log(2))
    assert mutual_information(np.array([[4, 4], [4, 4]])) == 0
