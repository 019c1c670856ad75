"""IRS: known codes and a slow recomputation."""

import numpy as np
import pytest

import codes
from pyvae.metrics import irs


@pytest.fixture
def mixed():
    return codes.rotated(codes.perfect(codes.SMALL), 1, 2, 30) + 0.1 * codes.noise(768, 4)


def score(z, **options):
    return irs(codes.table(z), points=None, **options).score


def test_a_perfect_code_scores_one():
    found = irs(codes.table(codes.perfect(codes.DSPRITES), codes.DSPRITES))
    assert found.score == pytest.approx(1)
    assert found.per_code == pytest.approx(np.ones(5))
    assert np.array_equal(found.robustness.argmax(1), np.arange(5))


def test_one_factor_seen_through_another():
    """Code y on {-1, 1}: held y it rests, held x it deviates by 1 from 0, the farthest it goes."""
    factors = {"x": 3, "y": 2}
    found = irs(codes.table(codes.perfect(factors)[:, 1:], factors), points=None)
    assert found.robustness == pytest.approx(np.array([[0, 1]]))
    assert found.deviation == pytest.approx([1])


def slow_irs(z, labels, quantile):
    matrix = np.zeros((z.shape[1], labels.shape[1]))
    deviation = np.array([max(abs(v - column.mean()) for v in column) for column in z.T])
    for j, k in np.ndindex(*matrix.shape):
        moved = []
        for c in set(labels[:, k]):
            held = z[labels[:, k] == c, j]
            moved.append(np.percentile(np.abs(held - np.mean(held)), 100 * quantile))
        matrix[j, k] = 1 - np.mean(moved) / deviation[j]
    return matrix, deviation, np.average(matrix.max(1), weights=deviation)


@pytest.mark.parametrize("quantile", [0.99, 0.5, 1.0])
def test_slow_recomputation(mixed, quantile):
    mixed = mixed.astype(np.float32) * np.float32([1, 3, 0.2, 1])
    matrix, deviation, expected = slow_irs(mixed.astype(np.float64), codes.classes(codes.SMALL), quantile)
    found = irs(codes.table(mixed), points=None, quantile=quantile)
    assert found.robustness == pytest.approx(matrix)
    assert found.per_code == pytest.approx(matrix.max(1))
    assert found.deviation == pytest.approx(deviation)
    assert found.score == pytest.approx(expected)
    assert 0.3 < found.score < 0.99


def test_rows_in_any_order(mixed):
    order = np.random.default_rng(0).permutation(768)[:300]
    labels = codes.classes(codes.SMALL)[order]
    mixed = mixed.astype(np.float32)[order]
    found = irs(codes.table(mixed, labels=labels), points=300, without=("shape", "x"))
    assert found.robustness == pytest.approx(slow_irs(mixed.astype(np.float64), labels[:, [1, 3]], 0.99)[0])
    assert found.factors == ("scale", "y")


def test_order_sign_and_common_scale_do_not_matter(mixed):
    expected = score(mixed)
    assert score(mixed[:, [2, 0, 3, 1]]) == pytest.approx(expected)
    assert score(-8 * mixed) == pytest.approx(expected)


def test_duplicated_rotated_and_random_codes(mixed):
    z = codes.perfect(codes.SMALL)
    assert score(np.concatenate([z, z], 1)) == pytest.approx(1)
    assert score(np.concatenate([mixed, mixed], 1)) == pytest.approx(score(mixed))
    assert score(codes.rotated(z, 2, 3)) < 0.8
    assert score(codes.noise(768, 4)) < 0.35
    assert score(codes.noise(768, 4), quantile=1.0) < score(codes.noise(768, 4))


def test_constant_latents_have_no_weight(mixed):
    z = np.concatenate([mixed, np.full((768, 2), 0.1)], 1)
    found = irs(codes.table(z), points=None)
    assert found.score == pytest.approx(score(mixed))
    assert not found.robustness[4:].any()
    assert score(np.full((768, 3), 0.1)) == 0


def test_refusals(mixed):
    table = codes.table(mixed)
    with pytest.raises(ValueError, match="points: 10000 asked for, the table has 768"):
        irs(table)
    with pytest.raises(ValueError, match="no factor 'hue'"):
        irs(table, without=("hue",), points=None)
    for quantile in (0, 1.01, -1, float("nan")):
        with pytest.raises(ValueError, match="quantile: expected"):
            irs(table, points=None, quantile=quantile)


def test_outliers_of_a_class_can_be_farther_from_its_mean_than_from_that_of_all():
    z = np.concatenate([np.zeros(99), [10.0], np.full(99, 10.0), [0.0]])[:, None]
    labels = np.repeat([0, 1], 100)[:, None]
    found = irs(codes.table(z, {"a": 2}, labels=labels), points=None, quantile=1)
    assert found.score == pytest.approx(1 - 9.9 / 5)
