"""SAP: known predictabilities and a slow recomputation, for classes and for continuous factors."""

import numpy as np
import pytest
from sklearn.svm import LinearSVC

import codes
from pyvae.metrics import sap
from pyvae.metrics.sampling import Draw, draw_key, draw_points

POINTS = {"train": 500, "test": 200}


@pytest.fixture
def mixed():
    return codes.rotated(codes.perfect(codes.SMALL), 1, 2, 30) + 0.1 * codes.noise(768, 4)


def points(seed):
    rows = draw_points(700, 768, draw_key(seed, Draw.SAP)).numpy()
    return rows[:500], rows[500:]


def top_two(column):
    second, first = sorted(column)[-2:]
    return first - second


def test_slow_recomputation_of_classes(mixed):
    found = sap(codes.table(mixed), seed=4, **POINTS)
    train, test = points(4)
    z, labels = mixed.astype(np.float32).astype(np.float64), codes.classes(codes.SMALL)
    expected = np.zeros((4, 4))
    for j, k in np.ndindex(4, 4):
        model = LinearSVC(C=0.01, class_weight="balanced").fit(z[train, j, None], labels[train, k])
        expected[j, k] = np.mean(model.predict(z[test, j, None]) == labels[test, k])
    assert found.predictability == pytest.approx(expected)
    assert found.gaps == pytest.approx([top_two(column) for column in expected.T])
    assert found.score == pytest.approx(found.gaps.mean())
    assert 0.05 < found.score < 0.9


def test_slow_recomputation_of_continuous_factors(mixed):
    found = sap(codes.table(mixed), seed=4, continuous=True, without=("shape",), **POINTS)
    train, _ = points(4)
    labels = codes.classes(codes.SMALL)
    expected = np.array(
        [[np.corrcoef(mixed[train, j], labels[train, k])[0, 1] ** 2 for k in (1, 2, 3)] for j in range(4)]
    )
    assert found.predictability == pytest.approx(expected, rel=1e-5)
    assert found.gaps == pytest.approx([top_two(column) for column in expected.T], rel=1e-5)
    assert found.factors == ("scale", "x", "y")


def test_a_perfect_code_of_continuous_factors_scores_one():
    table = codes.table(codes.perfect(codes.DSPRITES), codes.DSPRITES)
    found = sap(table, continuous=True)
    assert found.score == pytest.approx(1, abs=2e-3)
    assert np.diag(found.predictability) == pytest.approx(np.ones(5))


def test_a_perfect_code_of_two_classes_scores_half():
    factors = {"a": 2, "b": 2, "c": 2, "rest": 128}
    found = sap(codes.table(codes.perfect(factors), factors), without=("rest",), **POINTS)
    assert np.diag(found.predictability) == pytest.approx([1] * 3)
    # the second best latent knows as much as a coin
    assert found.score == pytest.approx(0.5, abs=0.07)


@pytest.mark.parametrize("continuous", [False, True])
def test_a_duplicated_code_scores_nothing(mixed, continuous):
    z = np.concatenate([mixed, mixed], 1)
    assert sap(codes.table(z), continuous=continuous, **POINTS).score == 0


@pytest.mark.parametrize("continuous", [False, True])
def test_noise_scores_little(continuous):
    table = codes.table(codes.noise(768, 5))
    assert sap(table, continuous=continuous, **POINTS).score < 0.05


@pytest.mark.parametrize("continuous", [False, True])
def test_order_and_sign_do_not_matter(mixed, continuous):
    expected = sap(codes.table(mixed), continuous=continuous, **POINTS)
    changed = sap(codes.table(-mixed[:, [2, 0, 3, 1]]), continuous=continuous, **POINTS)
    assert changed.predictability == pytest.approx(expected.predictability[[2, 0, 3, 1]], abs=0.01)
    assert changed.score == pytest.approx(expected.score, abs=0.01)


def test_scale_does_not_matter_to_correlations(mixed):
    expected = sap(codes.table(mixed), continuous=True, **POINTS).score
    assert sap(codes.table(mixed * [4, 0.25, 1, 64]), continuous=True, **POINTS).score == pytest.approx(
        expected
    )


def test_a_rotated_code_scores_less():
    z = codes.perfect(codes.SMALL)
    whole, turned = (sap(codes.table(c), continuous=True, **POINTS).gaps for c in (z, codes.rotated(z, 2, 3)))
    assert whole[:2] == pytest.approx(turned[:2], abs=0.01)
    assert turned[2:].max() < 0.2 < 0.9 < whole[2:].min()


@pytest.mark.parametrize("continuous", [False, True])
def test_constant_codes_score_nothing(continuous):
    found = sap(codes.table(np.full((768, 3), 0.1)), continuous=continuous, **POINTS)
    assert found.score == 0
    if continuous:
        assert not found.predictability.any()


def test_refusals(mixed):
    with pytest.raises(ValueError, match=r"train \+ test: 10000 \+ 5000 points"):
        sap(codes.table(mixed))
    with pytest.raises(ValueError, match="no factor 'hue'"):
        sap(codes.table(mixed), without=("hue",), **POINTS)
    with pytest.raises(ValueError, match="compares latents"):
        sap(codes.table(mixed[:, :1]), **POINTS)
