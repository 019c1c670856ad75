import math

import numpy as np
import pytest
from scipy.stats import spearmanr

from pyvae.studies.analysis import (
    Best,
    Mean,
    best_setting,
    density,
    partners,
    rank_correlation,
    rank_correlations,
    shares,
)

NAN = math.nan


def rng(seed=0):
    return np.random.default_rng(seed)


class TestRankCorrelation:
    def test_is_that_of_scipy_with_ties_and_missing_values(self):
        columns = rng().integers(0, 6, (5, 60)).astype(float)
        columns[1] += columns[0]
        columns[rng(1).random(columns.shape) < 0.2] = NAN
        found = rank_correlations(columns)
        for i, a in enumerate(columns):
            for j, b in enumerate(columns):
                both = np.isfinite(a) & np.isfinite(b)
                assert found[i, j] == pytest.approx(spearmanr(a[both], b[both]).statistic, abs=1e-12)
        assert found[0, 1] > 0.3

    def test_any_rising_function_is_in_full_agreement(self):
        x = rng().normal(size=50)
        assert rank_correlation(x, np.exp(x)) == pytest.approx(1)
        assert rank_correlation(x, -(x**3)) == pytest.approx(-1)

    @pytest.mark.parametrize(
        ("a", "b"),
        [([], []), ([1, 2], [1, 2]), ([1, 2, 3], [5, 5, 5]), ([1, 2, NAN, 4], [1, NAN, 3, 4])],
    )
    def test_nothing_is_said_of_too_little(self, a, b):
        assert math.isnan(rank_correlation(a, b))

    def test_infinity_counts_as_unknown(self):
        assert rank_correlation([1, 2, 3, math.inf], [1, 2, 3, -9]) == pytest.approx(1)


def slow_shares(values, methods, settings):
    """Model by model, over the means of what it belongs to."""
    rows = [(v, m, s) for v, m, s in zip(values, methods, settings, strict=True) if not math.isnan(v)]
    everything = np.mean([v for v, _, _ in rows])
    parts = [0.0, 0.0, 0.0]
    for value, method, setting in rows:
        of_method = np.mean([v for v, m, _ in rows if m == method])
        of_setting = np.mean([v for v, m, s in rows if (m, s) == (method, setting)])
        parts[0] += (of_method - everything) ** 2
        parts[1] += (of_setting - of_method) ** 2
        parts[2] += (value - of_setting) ** 2
    total = sum((v - everything) ** 2 for v, _, _ in rows)
    return [part / total for part in parts]


class TestShares:
    def test_are_those_of_a_slow_sum_in_cells_of_unequal_size(self):
        n = 200
        methods = rng().choice(["a", "b", "c"], n, p=[0.6, 0.3, 0.1]).tolist()
        settings = rng(1).choice([1, 2, 4], n, p=[0.7, 0.2, 0.1]).tolist()
        values = rng(2).normal(size=n) + [ord(m) * s for m, s in zip(methods, settings, strict=True)]
        values[::7] = NAN
        found = shares(values, methods, settings)
        np.testing.assert_allclose(found[:3], slow_shares(values, methods, settings), rtol=1e-10)
        assert sum(found[:3]) == pytest.approx(1)
        assert (found.models, found.methods, found.settings) == (np.isfinite(values).sum(), 3, 9)

    def test_a_score_of_the_method_of_the_setting_or_of_the_seed_alone(self):
        methods = ["a"] * 4 + ["b"] * 4
        settings = [1, 1, 2, 2] * 2
        assert shares([0, 0, 0, 0, 1, 1, 1, 1], methods, settings)[:3] == pytest.approx((1, 0, 0))
        assert shares([0, 0, 1, 1, 0, 0, 1, 1], methods, settings)[:3] == pytest.approx((0, 1, 0))
        assert shares([0, 1, 0, 1, 0, 1, 0, 1], methods, settings)[:3] == pytest.approx((0, 0, 1))

    def test_equal_effects_in_a_balanced_study_share_equally(self):
        index = np.indices((2, 2, 2)).reshape(3, -1)
        found = shares(index.sum(0), index[0].tolist(), index[1].tolist())
        assert found[:3] == pytest.approx((1 / 3, 1 / 3, 1 / 3))
        assert found.chance == pytest.approx((1 / 7, 2 / 7, 4 / 7))

    def test_chance_is_what_noise_gives(self):
        methods, settings = np.repeat([0, 1, 2], 12).tolist(), np.tile(np.repeat([0, 1, 2, 3], 3), 3).tolist()
        found = [shares(rng(i).normal(size=36), methods, settings) for i in range(2000)]
        assert np.mean([s[:3] for s in found], 0) == pytest.approx(found[0].chance, abs=0.01)

    def test_one_seed_leaves_nothing_to_the_seed(self):
        found = shares([1.0, 2.0, 4.0, 3.0], ["a", "a", "b", "b"], [1, 2, 1, 2])
        assert (found.seed, found.repeated) == (0, 0)

    def test_one_method_and_one_setting(self):
        assert shares([1.0, 2.0, 4.0], ["a"] * 3, [()] * 3)[:3] == pytest.approx((0, 0, 1))

    @pytest.mark.parametrize("values", [[], [NAN, NAN], [0.1, NAN], [0.1] * 9])
    def test_no_variance_has_no_shares(self, values):
        assert all(map(math.isnan, shares(values, ["a"] * len(values), [1] * len(values))[:3]))


def test_the_best_setting_is_that_of_the_best_mean_of_what_is_known():
    settings = ["low", "high", "low", "high", "none"]
    values = [1.0, 5.0, 3.0, NAN, NAN]
    assert best_setting(values, settings) == Best("high", Mean(5.0, None, 1))
    assert best_setting(values, settings, lowest=True) == Best("low", Mean(2.0, pytest.approx(1.0), 2))
    assert best_setting([NAN], ["x"]) is None
    assert best_setting([1.0, 1.0], ["first", "second"]).setting == "first"


class TestDensity:
    def test_is_that_of_scipy_within_the_values(self):
        from scipy.stats import gaussian_kde

        x = rng().gamma(2, size=80)
        at, found = density(x)
        assert (at[0], at[-1]) == (x.min(), x.max())
        expected = gaussian_kde(x)(at)
        np.testing.assert_allclose(found, expected / expected.max(), rtol=1e-10)

    @pytest.mark.parametrize("values", [[1.0], [1.0, 2.0], [0.3] * 8, [1.0, 1.0, 1 + 2e-16]])
    def test_too_little_has_none(self, values):
        assert density(values) is None


class TestPartners:
    @pytest.mark.parametrize("models", range(12))
    def test_each_has_the_same_number_and_no_pair_is_compared_twice(self, models):
        pairs = partners(models)
        assert len({frozenset(pair) for pair in pairs}) == len(pairs)
        assert all(i != j for i, j in pairs)
        counts = np.bincount(np.array(pairs, int).reshape(-1), minlength=models)
        assert counts.tolist() == [min(models - 1, 6)] * models

    def test_work_grows_with_the_models_alone(self):
        assert len(partners(1000)) == 3000


def test_rounding_is_no_variance():
    values = [0.3, 0.1 + 0.2] * 3
    assert len(set(values)) == 2
    assert np.isnan(shares(values, ["a", "b"] * 3, [0] * 6)[:3]).all()
    assert shares([0.3, 0.3 + 1e-9] * 3, ["a", "b"] * 3, [0] * 6).method == pytest.approx(1)
