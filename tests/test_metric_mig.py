"""MIG by histograms: caps of perfect codes, invariances, and a slow recomputation."""

import numpy as np
import pytest
from sklearn.metrics import mutual_info_score

import codes
from pyvae.metrics import mig


@pytest.fixture(scope="module")
def dsprites():
    return codes.table(codes.perfect(codes.DSPRITES), codes.DSPRITES)


def slow_mig(z, labels):
    gaps = []
    for label in labels.T:
        information = []
        for column in z.T.astype(np.float64):
            edges = np.linspace(column.min(), column.max(), 21)
            information.append(mutual_info_score(label, np.digitize(column, edges[:-1])))
        information.sort()
        gaps.append((information[-1] - information[-2]) / mutual_info_score(label, label))
    return gaps


def test_cap_of_a_perfect_code_on_dsprites(dsprites):
    found = mig(dsprites, points=None)
    assert found.gaps == pytest.approx([1, 1, 0.812, 0.850, 0.850], abs=5e-4)
    assert found.score == pytest.approx(0.902, abs=5e-4)
    assert found.entropies == pytest.approx(np.log(list(codes.DSPRITES.values())))
    assert found.factors == tuple(codes.DSPRITES)
    assert found.information.shape == (5, 5)


def test_cap_without_shape(dsprites):
    found = mig(dsprites, points=None, without=("shape",))
    assert found.score == pytest.approx(0.878, abs=5e-4)
    assert found.factors == ("scale", "orientation", "x", "y")
    assert found.information.shape == (5, 4)


def test_cap_of_the_published_sample(dsprites):
    scores = [mig(dsprites, seed=s).score for s in range(3)]
    assert scores == pytest.approx([0.896] * 3, abs=3e-3)
    assert len(set(scores)) == 3
    assert mig(dsprites, seed=0).score == scores[0]


def test_noise_scores_nothing():
    table = codes.table(codes.noise(737_280, 10), codes.DSPRITES)
    assert 0 <= mig(table).score < 2e-3
    assert mig(table, points=None).score < 1e-4


@pytest.mark.parametrize("points", [None, 600])
def test_slow_recomputation(points):
    z = codes.perfect(codes.SMALL) @ codes.noise(4, 6) + 0.1 * codes.noise(768, 6, 1)
    z = z.astype(np.float32)
    if points is None:
        expected = slow_mig(z, codes.classes(codes.SMALL))
        assert mig(codes.table(z), points=None).gaps == pytest.approx(expected)
    order = np.random.default_rng(0).permutation(768)[:600]
    labels = codes.classes(codes.SMALL)[order]
    found = mig(codes.table(z[order], labels=labels), points=points)
    assert found.gaps == pytest.approx(slow_mig(z[order], labels))
    assert found.score == pytest.approx(np.mean(slow_mig(z[order], labels)))


@pytest.fixture
def mixed():
    return codes.perfect(codes.SMALL) + 0.3 * codes.noise(768, 4)


def score(z, **options):
    return mig(codes.table(z), points=None, **options).score


def test_invariance_to_order_sign_and_scale(mixed):
    expected = score(mixed)
    assert 0.05 < expected < 0.95
    assert score(mixed[:, [2, 0, 3, 1]]) == pytest.approx(expected)
    assert score(-mixed) == pytest.approx(expected)
    assert score(mixed * [4, 0.25, 1, 64]) == pytest.approx(expected)


def test_a_duplicated_code_has_no_gap(mixed):
    assert score(np.concatenate([mixed, mixed], 1)) == pytest.approx(0, abs=1e-12)


def test_a_rotated_code_scores_less():
    z = codes.perfect(codes.SMALL)
    assert score(codes.rotated(z, 2, 3)) < score(z) - 0.2


def test_constant_latents_change_nothing(mixed):
    z = np.concatenate([mixed, np.full((768, 2), 0.7)], 1)
    assert score(z) == pytest.approx(score(mixed))
    assert score(np.ones((768, 3))) == 0


def test_refusals(mixed):
    table = codes.table(mixed)
    with pytest.raises(ValueError, match="10000 asked for, the table has 768"):
        mig(table)
    with pytest.raises(ValueError, match="no factor 'hue'"):
        mig(table, points=None, without=("hue",))
    with pytest.raises(ValueError, match="at least 2, got 1"):
        mig(codes.table(mixed[:, :1]), points=None)
    labels = codes.classes(codes.SMALL)
    labels[:, 2] = 5
    with pytest.raises(ValueError, match="factor x has one class"):
        mig(codes.table(mixed, labels=labels), points=None)
    assert mig(codes.table(mixed, labels=labels), points=None, without=("x",)).factors == (
        "shape",
        "scale",
        "y",
    )
