"""UDR: a model compared with itself, with others, and a slow recomputation."""

import re

import numpy as np
import pytest
from scipy.stats import spearmanr
from sklearn.linear_model import Lasso
from sklearn.preprocessing import StandardScaler

import codes
from pyvae.metrics import udr
from pyvae.metrics.sampling import Draw, draw_key, draw_points


@pytest.fixture
def models():
    """Four sets of codes that agree in part."""
    z = codes.perfect(codes.SMALL)
    return [
        z + 0.2 * codes.noise(768, 4, 0),
        codes.rotated(z, 1, 2, 30)[:, [3, 0, 2, 1]] + 0.2 * codes.noise(768, 4, 1),
        np.concatenate([z[:, :2], codes.noise(768, 2, 2)], 1),
        codes.rotated(z[:, :3], 0, 2, 10) + 0.1 * codes.noise(768, 3, 3),
    ]


def tables(models):
    return [codes.table(z) for z in models]


@pytest.mark.parametrize(("correlation", "expected"), [("spearman", 1.0), ("lasso", 0.9)])
def test_a_model_with_itself_reordered_and_reflected(correlation, expected):
    z = codes.perfect(codes.SMALL)
    other = z[:, [2, 0, 3, 1]] * [-1, 1, -3, 0.5]
    found = udr(tables([z, other]), points=None, correlation=correlation)
    assert found.scores == pytest.approx([expected] * 2, abs=1e-6)
    assert found.pairwise == pytest.approx(np.array([[0, expected], [expected, 0]]), abs=1e-6)


def test_less_shrinkage():
    z = codes.perfect(codes.SMALL)
    assert udr(tables([z, z]), points=None, alpha=0.02).scores == pytest.approx([0.98] * 2, abs=1e-6)


def test_monotone_functions_of_a_latent_have_its_ranks():
    z = codes.perfect(codes.SMALL)
    assert udr(tables([z, z**3]), points=None, correlation="spearman").scores == pytest.approx([1, 1])


def test_rotated_and_random_codes_agree_less():
    z = codes.perfect(codes.SMALL)
    turned = codes.rotated(codes.rotated(z, 0, 1), 2, 3)
    for correlation in ("spearman", "lasso"):
        rotated = udr(tables([z, turned]), points=None, correlation=correlation).scores
        random = udr(tables([z, codes.noise(768, 4)]), points=None, correlation=correlation).scores
        assert rotated.max() < 0.65
        assert random.max() < 0.1


def slow_pair(a, b, correlation):
    similarity = np.zeros((a.shape[1], b.shape[1]))
    if correlation == "lasso":
        a, b = StandardScaler().fit_transform(a), StandardScaler().fit_transform(b)
        for t in range(b.shape[1]):
            similarity[:, t] = np.abs(Lasso(alpha=0.1).fit(a, b[:, t]).coef_)
    else:
        for s, t in np.ndindex(*similarity.shape):
            similarity[s, t] = abs(spearmanr(a[:, s], b[:, t])[0])
    rows = [row.max() ** 2 / row.sum() if row.any() else 0 for row in similarity]
    columns = [column.max() ** 2 / column.sum() if column.any() else 0 for column in similarity.T]
    return (np.mean(rows) + np.mean(columns)) / 2


@pytest.mark.parametrize("correlation", ["lasso", "spearman"])
def test_slow_recomputation(models, correlation):
    found = udr(tables(models), points=400, seed=3, correlation=correlation)
    rows = draw_points(400, 768, draw_key(3, Draw.UDR)).numpy()
    z = [m.astype(np.float32).astype(np.float64)[rows] for m in models]
    for i, j in np.ndindex(4, 4):
        expected = slow_pair(z[i], z[j], correlation) if i != j else 0
        assert found.pairwise[i, j] == pytest.approx(expected, abs=1e-6)
    for i in range(4):
        assert found.scores[i] == pytest.approx(sorted(found.pairwise[j, i] for j in range(4) if j != i)[1])
    assert len(set(found.scores)) == 4


@pytest.mark.parametrize("pairs", [[(0, 1), (2, 1), (0, 3)], [(1, 0), (0, 1), (1, 2), (3, 0)]])
def test_some_pairs_alone(models, pairs):
    whole = udr(tables(models), points=400).pairwise
    found = udr(tables(models), points=400, pairs=pairs)
    for i, j in np.ndindex(4, 4):
        asked = (i, j) in pairs or (j, i) in pairs
        assert found.pairwise[i, j] == (whole[i, j] if asked else 0)
    assert found.scores[0] == np.median([whole[1, 0], whole[3, 0]])
    assert found.scores[3] == whole[0, 3]


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([(0, 1)], "model 2 is compared with none"),
        ([], "model 0 is compared with none"),
        ([(0, 4)], "expected two of models 0 to 3, got (0, 4)"),
        ([(-1, 0)], "expected two"),
        ([(1, 1)], "expected two"),
    ],
)
def test_pairs_that_cannot_be(models, pairs, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        udr(tables(models), points=400, pairs=pairs)


@pytest.mark.parametrize("correlation", ["lasso", "spearman"])
def test_collapsed_latents_are_left_out(models, correlation):
    expected = udr(tables(models), points=None, correlation=correlation)
    padded = [np.concatenate([z, 0.05 * codes.noise(768, 3, 9 + i)], 1) for i, z in enumerate(models)]
    wide = [codes.table(z) for z in padded]
    for table, z in zip(wide, models, strict=True):
        # a posterior of width 1 at a mean of square .0025: KL .00125
        table.logvar[:, z.shape[1] :] = 0
    found = udr(wide, points=None, correlation=correlation)
    assert found.pairwise == pytest.approx(expected.pairwise)
    everything = udr(wide, points=None, correlation=correlation, kl_threshold=0.001)
    assert everything.scores.max() < expected.scores.max()


def test_a_collapsed_model_scores_nothing(models):
    found = udr([*tables(models), codes.table(np.zeros((768, 2)), sigma=1.0)], points=None)
    assert found.scores[4] == 0
    assert found.pairwise[:, 4].max() == 0
    assert found.scores[:4].min() > 0


@pytest.mark.parametrize("correlation", ["lasso", "spearman"])
def test_a_constant_latent_of_some_kl_resembles_none(correlation):
    z = codes.perfect(codes.SMALL)
    z[:, 3] = 2.0
    found = udr(tables([z, z]), points=None, correlation=correlation)
    assert found.scores == pytest.approx([0.75 * (0.9 if correlation == "lasso" else 1)] * 2, abs=1e-6)


def test_refusals(models):
    some = tables(models)
    with pytest.raises(ValueError, match="correlation: expected 'lasso' or 'spearman', got 'pearson'"):
        udr(some, correlation="pearson")
    with pytest.raises(ValueError, match="at least 2, got 1"):
        udr(some[:1])
    with pytest.raises(ValueError, match="points: 1000 asked for, the table has 768"):
        udr(some)
    with pytest.raises(ValueError, match="table 1 is not of the images of table 0"):
        udr([some[0], codes.table(models[0][:40], {"shape": 2, "x": 5, "y": 4})], points=None)
    shuffled = codes.table(models[0], labels=codes.classes(codes.SMALL)[::-1].copy())
    with pytest.raises(ValueError, match="table 2 is not of the images"):
        udr([*some[:2], shuffled], points=None)
    same = codes.table(models[1], labels=codes.classes(codes.SMALL))
    assert udr([some[0], same], points=None).scores == pytest.approx(udr(some[:2], points=None).scores)


def test_inputs_of_other_kinds_are_refused():
    z = codes.noise(768, 3)
    tables = [codes.table(z), codes.table(-z)]
    with pytest.raises(TypeError, match="tables: expected several, got one CodeTable"):
        udr(tables[0])
    with pytest.raises(TypeError, match="table: expected a CodeTable, got ndarray"):
        udr([tables[0], z])
    with pytest.raises(TypeError, match="alpha: expected a number, got '1'"):
        udr(tables, points=None, alpha="1")
    for alpha, message in ((0.0, "more than 0"), (float("nan"), "a finite number")):
        with pytest.raises(ValueError, match=f"alpha: expected {message}"):
            udr(tables, points=None, alpha=alpha)
    with pytest.raises(ValueError, match="kl_threshold: expected a finite number"):
        udr(tables, points=None, kl_threshold=float("inf"))
    with pytest.raises(TypeError, match=r"points: expected a whole number, got 10\.0"):
        udr(tables, points=10.0)
