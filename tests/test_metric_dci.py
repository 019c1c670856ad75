"""DCI: known importance matrices, real classifiers, and a slow recomputation."""

import numpy as np
import pytest
from scipy.stats import entropy
from sklearn.ensemble import GradientBoostingClassifier, RandomForestClassifier
from sklearn.linear_model import LogisticRegression

import codes
from pyvae.metrics import dci
from pyvae.metrics.sampling import Draw, draw_key, draw_points

POINTS = {"train": 400, "test": 200}


class Fixed:
    """A classifier that gives importances it was told, one factor after the other, and always answers class 0."""

    def __init__(self, importances):
        self.feature_importances_ = importances

    def fit(self, x, y):
        return self

    def predict(self, x):
        return np.zeros(len(x), dtype=int)


def of_importances(matrix):
    columns = iter(np.array(matrix, dtype=float).T)
    z = codes.noise(768, len(matrix))
    return dci(codes.table(z), classifier=lambda: Fixed(next(columns)), **POINTS)


@pytest.fixture
def mixed():
    return np.concatenate([codes.rotated(codes.perfect(codes.SMALL), 1, 2), 0.1 * codes.noise(768, 1)], 1)


@pytest.mark.parametrize("matrix", [np.eye(4), np.eye(4)[[2, 0, 3, 1]], np.diag([1, 5, 2, 0.1])])
def test_one_code_per_factor_is_perfect(matrix):
    found = of_importances(matrix)
    assert (found.score, found.completeness) == pytest.approx((1, 1), abs=1e-6)
    assert np.array_equal(found.importance, matrix)


def test_uniform_importance_is_nothing():
    found = of_importances(np.full((5, 4), 0.2))
    assert (found.score, found.completeness) == pytest.approx((0, 0), abs=1e-9)


def test_no_importance_at_all_is_nothing():
    found = of_importances(np.zeros((5, 4)))
    assert (found.score, found.completeness) == pytest.approx((0, 0), abs=1e-9)


def test_a_duplicated_code_is_disentangled_but_not_complete():
    found = of_importances(np.concatenate([np.eye(4), np.eye(4)]) / 2)
    assert found.score == pytest.approx(1, abs=1e-6)
    assert found.completeness == pytest.approx(1 - np.log(2) / np.log(8), abs=1e-6)


def test_one_code_for_all_factors_is_complete_but_not_disentangled():
    found = of_importances([[1, 1, 1, 1], [0, 0, 0, 0]])
    assert found.score == pytest.approx(0, abs=1e-6)
    assert found.completeness == pytest.approx(1, abs=1e-6)


def test_codes_and_factors_count_by_their_importance():
    # a code of 9/10 of the importance is perfect, the other is of no use
    found = of_importances([[18, 0, 0, 0], [0.5, 0.5, 0.5, 0.5]])
    assert found.score == pytest.approx(0.9, abs=1e-6)
    assert found.per_code == pytest.approx([1, 0], abs=1e-6)
    first = 1 - entropy([18, 0.5], base=2)
    assert found.per_factor == pytest.approx([first, 1, 1, 1], abs=1e-6)
    assert found.completeness == pytest.approx((18.5 * first + 1.5) / 20, abs=1e-6)


def test_informativeness_is_accuracy():
    found = of_importances(np.eye(4))
    # every class is as frequent as another and class 0 is always answered
    guess = np.mean([1 / size for size in codes.SMALL.values()])
    assert found.informativeness == pytest.approx(guess, abs=0.03)
    assert found.informativeness_train == pytest.approx(guess, abs=0.03)


def slow_dci(z, make, seed):
    """Disentanglement, completeness, test and train accuracy."""
    rows = draw_points(600, 768, draw_key(seed, Draw.DCI)).numpy()
    train, test = rows[:400], rows[400:]
    z, labels = z.astype(np.float32).astype(np.float64), codes.classes(codes.SMALL)
    importance, right = np.zeros((z.shape[1], 4)), np.zeros((4, 2))
    for k in range(4):
        model = make().fit(z[train], labels[train, k])
        weights = model.feature_importances_ if hasattr(model, "feature_importances_") else model.coef_
        importance[:, k] = weights if weights.ndim == 1 else np.abs(weights).mean(0)
        right[k] = [model.score(z[rows], labels[rows, k]) for rows in (test, train)]
    d = sum(row.sum() / importance.sum() * (1 - entropy(row, base=4)) for row in importance if row.sum() > 0)
    c = sum(
        column.sum() / importance.sum() * (1 - entropy(column, base=z.shape[1])) for column in importance.T
    )
    return d, c, *right.mean(0)


def test_slow_recomputation_with_boosting(mixed):
    table = codes.table(mixed)
    few = {"n_estimators": 5, "random_state": 3}
    found = dci(table, seed=3, classifier=lambda: GradientBoostingClassifier(**few), **POINTS)
    parts = (found.score, found.completeness, found.informativeness, found.informativeness_train)
    assert parts == pytest.approx(slow_dci(mixed, lambda: GradientBoostingClassifier(**few), 3), abs=1e-6)
    assert 0.3 < found.score < 0.95


def test_slow_recomputation_with_other_classifiers(mixed):
    table = codes.table(mixed)
    for make in (LogisticRegression, lambda: RandomForestClassifier(10, random_state=0)):
        found = dci(table, classifier=make, **POINTS)
        parts = (found.score, found.completeness, found.informativeness, found.informativeness_train)
        assert parts == pytest.approx(slow_dci(mixed, make, 0), abs=1e-6)


def test_a_perfect_code_with_the_published_classifier():
    factors = {"a": 3, "b": 4, "c": 3, "d": 8}
    table = codes.table(codes.perfect(factors), factors)
    found = dci(table, train=200, test=80, without=("d",), seed=2)
    assert found.score > 0.99
    assert found.completeness > 0.99
    assert found.informativeness > 0.99
    assert found.informativeness_train == 1
    assert np.array_equal(found.importance.argmax(0), [0, 1, 2])
    assert found.factors == ("a", "b", "c")
    again = dci(table, train=200, test=80, without=("d",), seed=2)
    assert np.array_equal(found.importance, again.importance)


@pytest.mark.slow
def test_a_perfect_code_of_dsprites_as_published():
    table = codes.table(codes.perfect(codes.DSPRITES), codes.DSPRITES)
    found = dci(table, without=("orientation", "x", "y"))
    assert (found.score, found.completeness, found.informativeness) == pytest.approx((1, 1, 1), abs=1e-3)


def test_order_sign_and_scale_of_latents_do_not_matter_to_trees(mixed):
    def parts(z):
        found = dci(
            codes.table(z),
            classifier=lambda: GradientBoostingClassifier(n_estimators=5, random_state=0),
            **POINTS,
        )
        return found.score, found.completeness, found.informativeness

    expected = parts(mixed)
    assert parts(mixed * [8, 0.5, 1, 4, 0.25]) == pytest.approx(expected, abs=1e-3)
    assert parts(-mixed) == pytest.approx(expected, abs=0.05)
    assert parts(mixed[:, [4, 2, 0, 1, 3]]) == pytest.approx(expected, abs=0.05)


def test_constant_codes():
    found = dci(
        codes.table(np.ones((768, 3))),
        classifier=lambda: GradientBoostingClassifier(n_estimators=2),
        **POINTS,
    )
    assert (found.score, found.completeness) == pytest.approx((0, 0), abs=1e-9)


def test_refusals(mixed):
    table = codes.table(mixed)
    with pytest.raises(ValueError, match=r"train \+ test: 10000 \+ 5000 points asked for, the table has 768"):
        dci(table)
    with pytest.raises(ValueError, match="no factor 'hue'"):
        dci(table, without=("hue",), **POINTS)
    with pytest.raises(ValueError, match="compares factors: it needs at least 2, got y"):
        dci(table, without=("shape", "scale", "x"), **POINTS)
    with pytest.raises(ValueError, match="compares latents: it needs at least 2, got 1"):
        dci(codes.table(mixed[:, :1]), **POINTS)


def test_the_authors_average_completeness_without_weights():
    """The first factor has 8 / 20 of the importance, all of it in one code; the others' is spread evenly."""
    found = of_importances([[8, 1, 1, 1], [0, 1, 1, 1], [0, 1, 1, 1], [0, 1, 1, 1]])
    assert found.completeness == pytest.approx(8 / 20, abs=1e-6)
    assert found.per_factor.mean() == pytest.approx(1 / 4, abs=1e-6)
    assert "averages completeness over factors without weights" in " ".join(dci.__doc__.split())


def test_the_default_classifier_weighs_all_factors_alike(mixed):
    found = dci(codes.table(mixed, codes.SMALL), progress=False, **POINTS)
    assert found.completeness == pytest.approx(float(found.per_factor.mean()), abs=1e-6)
