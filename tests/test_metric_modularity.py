"""Modularity and explicitness: known values and slow recomputations."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import mutual_info_score, roc_auc_score
from sklearn.preprocessing import StandardScaler

import codes
from pyvae.metrics import explicitness, modularity
from pyvae.metrics.modularity import mean_area, per_code_modularity
from pyvae.metrics.sampling import Draw, draw_key, draw_points

POINTS = {"train": 500, "test": 200}


@pytest.fixture
def mixed():
    return codes.rotated(codes.perfect(codes.SMALL), 1, 2, 30) + 0.1 * codes.noise(768, 4)


def test_codes_of_one_factor_are_modular():
    table = codes.table(codes.perfect(codes.DSPRITES), codes.DSPRITES)
    assert modularity(table, points=None).score == pytest.approx(1, abs=1e-6)
    assert modularity(table).score == pytest.approx(1, abs=1e-3)


def test_duplicated_codes_of_one_factor_are_modular():
    z = codes.perfect(codes.SMALL)
    assert modularity(codes.table(np.concatenate([z, z[:, :2]], 1)), points=None).score == pytest.approx(
        1, abs=1e-6
    )


def test_codes_of_two_factors_alike_are_less_modular():
    assert per_code_modularity(
        np.array([[2.0, 2.0, 0.0], [3.0, 0.0, 0.0], [1.0, 1.0, 1.0]])
    ) == pytest.approx([0.5, 1, 0])
    assert per_code_modularity(np.array([[4.0, 2.0], [0.0, 0.0]])) == pytest.approx([0.75, 0])


def test_constant_codes_are_not_modular():
    z = np.concatenate([codes.perfect(codes.SMALL), np.ones((768, 4))], 1)
    found = modularity(codes.table(z), points=None)
    assert found.score == pytest.approx(0.5, abs=1e-6)
    assert found.per_code[4:] == pytest.approx(np.zeros(4))


def test_a_rotated_code_is_less_modular():
    z = codes.rotated(codes.perfect(codes.SMALL), 2, 3)
    assert modularity(codes.table(z), points=None).per_code == pytest.approx([1, 1, 2 / 3, 2 / 3], abs=0.02)


def slow_modularity(z, labels):
    scores = []
    for column in z.T.astype(np.float64):
        edges = np.linspace(column.min(), column.max(), 21)
        squared = [mutual_info_score(label, np.digitize(column, edges[:-1])) ** 2 for label in labels.T]
        scores.append(1 - (sum(squared) - max(squared)) / (max(squared) * (len(squared) - 1)))
    return scores


def test_slow_recomputation_of_modularity(mixed):
    mixed = mixed.astype(np.float32)
    labels = codes.classes(codes.SMALL)
    assert modularity(codes.table(mixed), points=None).per_code == pytest.approx(
        slow_modularity(mixed, labels)
    )
    rows = draw_points(300, 768, draw_key(9, Draw.MODULARITY)).numpy()
    found = modularity(codes.table(mixed), points=300, seed=9, without=("shape",))
    assert found.per_code == pytest.approx(slow_modularity(mixed[rows], labels[rows, 1:]))
    assert found.score == pytest.approx(found.per_code.mean())
    assert found.information.shape == (4, 3)
    assert found.factors == ("scale", "x", "y")


def test_modularity_does_not_depend_on_order_sign_and_scale(mixed):
    expected = modularity(codes.table(mixed), points=None).per_code
    changed = modularity(codes.table(-mixed[:, [2, 0, 3, 1]] * [1, 8, 0.5, 2]), points=None).per_code
    assert changed == pytest.approx(expected[[2, 0, 3, 1]])


def test_slow_recomputation_of_explicitness(mixed):
    found = explicitness(codes.table(mixed), seed=2, **POINTS)
    rows = draw_points(700, 768, draw_key(2, Draw.EXPLICITNESS)).numpy()
    train, test = rows[:500], rows[500:]
    labels = codes.classes(codes.SMALL)
    scaler = StandardScaler().fit(mixed[train])
    expected = np.zeros((4, 2))
    for k in range(4):
        model = LogisticRegression(max_iter=1000).fit(scaler.transform(mixed[train]), labels[train, k])
        for column, part in enumerate((test, train)):
            wanted = np.eye(labels[:, k].max() + 1)[labels[part, k]]
            expected[k, column] = roc_auc_score(wanted, model.predict_proba(scaler.transform(mixed[part])))
    assert found.per_factor == pytest.approx(expected[:, 0], abs=1e-3)
    assert (found.score, found.train_score) == pytest.approx(tuple(expected.mean(0)), abs=1e-3)


def test_explicitness_of_perfect_codes_and_of_their_rotation():
    factors = {"a": 2, "b": 2, "c": 2, "rest": 128}
    z = codes.perfect(factors)
    for c in (z, -z[:, [2, 0, 3, 1]] * [1, 100, 0.01, 1] + 5, codes.rotated(z, 0, 1)):
        found = explicitness(codes.table(c, factors), without=("rest",), **POINTS)
        assert (found.score, found.train_score) == (1, 1)
        assert found.factors == ("a", "b", "c")


def test_noise_and_constants_are_not_explicit():
    assert explicitness(codes.table(codes.noise(768, 3)), **POINTS).score == pytest.approx(0.5, abs=0.05)
    assert explicitness(codes.table(np.full((768, 3), 0.1)), **POINTS).score == 0.5


def test_classes_that_are_not_drawn_are_left_out():
    labels = codes.classes(codes.SMALL)[:400]
    assert set(labels[:, 0]) == {0, 1}
    z = codes.perfect(codes.SMALL)[:400]
    found = explicitness(codes.table(z, labels=labels), train=200, test=200)
    assert found.per_factor[0] == 1
    probabilities = np.array([[0.9, 0.1, 0.0], [0.2, 0.7, 0.1], [0.6, 0.3, 0.1]])
    # class 2 was known to the classifier, no test point has it
    assert mean_area(np.arange(3), np.array([0, 1, 0]), probabilities) == 1
    with pytest.raises(ValueError, match="test: the points have one class"):
        mean_area(np.arange(3), np.array([1, 1, 1]), probabilities)


def test_refusals(mixed):
    table = codes.table(mixed)
    with pytest.raises(ValueError, match="points: 10000 asked for"):
        modularity(table)
    with pytest.raises(ValueError, match=r"train \+ test: 10000 \+ 5000"):
        explicitness(table)
    with pytest.raises(ValueError, match="no factor 'hue'"):
        modularity(table, without=("hue",), points=None)
    with pytest.raises(ValueError, match="no factor 'hue'"):
        explicitness(table, without=("hue",), **POINTS)
    with pytest.raises(ValueError, match="compares factors: it needs at least 2, got y"):
        modularity(table, without=("shape", "scale", "x"), points=None)
