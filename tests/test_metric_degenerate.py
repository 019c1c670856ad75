"""Constant, nearly constant and duplicated latents: every metric against a slow recomputation, on tables of many sizes.

The recomputations are numpy, scipy and scikit-learn; they share with the metrics what is drawn, and nothing else.
"""

import itertools

import numpy as np
import pytest
import torch
from scipy.stats import entropy, rankdata
from sklearn.linear_model import Lasso, LogisticRegression
from sklearn.metrics import mutual_info_score, roc_auc_score
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC

import codes
from pyvae import metrics
from pyvae.metrics import METRICS, evaluate
from pyvae.metrics.sampling import Draw, draw_integers, draw_key, draw_points

GRIDS = [(2, 2, 8), (3, 5, 7), (4, 40), (2, 3, 4, 5), (3, 6, 10, 10)]
SIGMA = 0.1


def grid(sizes):
    return np.array(list(itertools.product(*map(range, sizes))))


def latents(sizes, kind):
    """float32 [N, D]: a code of the first factor, noise, and three latents of a kind."""
    labels, rng = grid(sizes), np.random.default_rng(sum(sizes))
    rows = len(labels)
    own = labels[:, 0] + 0.2 * rng.standard_normal(rows)
    some = {
        "constant": np.array([0.0, 0.1, -1000.3]),
        # a step to the next float32 here and there
        "one ulp": np.nextafter(
            np.float32([0.25, 0.1, -1000.3]),
            np.where(rng.random((rows, 3)) < 0.5, 9, -2000).astype(np.float32),
        ),
        # what float32 leaves of small noise on a large offset
        "rounded": np.array([1.0, 1000.0, -30.0]) * (1 + 1e-7 * rng.standard_normal((rows, 3))),
        "tiny": 1e-30 * rng.standard_normal((rows, 3)),
        "duplicated": np.stack([own, own, -2 * own], 1),
    }[kind]
    z = np.concatenate([own[:, None], rng.standard_normal((rows, 1)), np.broadcast_to(some, (rows, 3))], 1)
    return z.astype(np.float32)


KINDS = ["constant", "one ulp", "rounded", "tiny", "duplicated"]
every = pytest.mark.parametrize(("sizes", "kind"), list(itertools.product(GRIDS, KINDS)), ids=str)
# of what trains a classifier for each factor, or integrates for each class
small = pytest.mark.parametrize(("sizes", "kind"), list(itertools.product(GRIDS[1:3], KINDS)), ids=str)


def both(name, sizes, kind, **options):
    """Named fields of a metric, and the codes float64 [N, D] and classes [N, F]."""
    z = latents(sizes, kind)
    table = codes.table(z, {f"f{i}": size for i, size in enumerate(sizes)}, sigma=SIGMA)
    return METRICS[name](table, **options), z.astype(np.float64), grid(sizes)


def binned(column, bins=20):
    return np.digitize(column, np.histogram(column, bins)[1][1:-1])


def information(z, labels):
    return np.array([[mutual_info_score(label, binned(column)) for label in labels.T] for column in z.T])


def gaps(matrix):
    ordered = np.sort(matrix, 0)
    return ordered[-1] - ordered[-2]


@every
def test_mig(sizes, kind):
    found, z, labels = both("mig", sizes, kind, points=None)
    expected = information(z, labels)
    assert found.information == pytest.approx(expected, abs=1e-12)
    assert found.gaps == pytest.approx(gaps(expected) / np.log(sizes), abs=1e-12)


@every
def test_modularity(sizes, kind):
    found, z, labels = both("modularity", sizes, kind, points=None)
    squared = information(z, labels) ** 2
    best = squared.max(1)
    informed = best > 1e-24
    others = (squared.sum(1) - best) / np.where(informed, best, 1) / (len(sizes) - 1)
    assert found.per_code == pytest.approx(np.where(informed, 1 - others, 0), abs=1e-9)
    if kind == "constant":
        assert found.per_code[2:].tolist() == [0, 0, 0]


@small
def test_mig_chen(sizes, kind):
    found, z, labels = both("mig-chen", sizes, kind)
    sigma = np.full(len(z), float(np.exp(np.float32(np.log(SIGMA)))))
    for j, k in np.ndindex(*found.information.shape):
        held = [labels[:, k] == c for c in range(sizes[k])]
        conditional = np.mean([codes.mixture_entropy(z[h, j], sigma[h]) for h in held])
        gain = codes.mixture_entropy(z[:, j], sigma) - conditional
        assert found.information[j, k] == pytest.approx(max(gain, 0), abs=3e-5)


@every
@pytest.mark.parametrize("prune", ["std", "kl"])
def test_factor_vae(sizes, kind, prune):
    options = {
        "points_per_vote": 8,
        "votes": 60,
        "evaluation_votes": 40,
        "variance_points": None,
        "prune": prune,
    }
    found, z, labels = both("factor-vae", sizes, kind, seed=2, **options)
    variance = z.var(0)
    kl = 0.5 * ((z**2).mean(0) + SIGMA**2 - np.log(SIGMA**2) - 1)
    active = (np.sqrt(variance) >= 0.05) if prune == "std" else (kl > 0.01) & (variance > 0)
    assert found.active.tolist() == active.tolist()
    factor = draw_integers(len(sizes), 100, 1, draw_key(2, Draw.FACTOR_VAE_FACTOR))[:, 0].numpy()
    points = draw_integers(len(z), 100, 8, draw_key(2, Draw.FACTOR_VAE_POINTS)).numpy()
    votes = np.zeros((len(active), len(sizes)), int)
    cast = []
    for f, rows in zip(factor, points, strict=True):
        chosen = labels[rows].copy()
        chosen[:, f] = chosen[0, f]
        held = z[np.ravel_multi_index(chosen.T, sizes)]
        relative = np.where(active, held.var(0, ddof=1) / np.where(active, variance, 1), np.inf)
        # of equal ones, a rounding apart, the first
        cast.append(int(np.flatnonzero(relative <= relative.min() * (1 + 1e-9))[0]))
    np.add.at(votes, (cast[:60], factor[:60]), 1)
    right = votes.argmax(1)[cast] == factor
    assert found.votes.tolist() == votes.tolist()
    assert (found.train_accuracy, found.score) == pytest.approx((right[:60].mean(), right[60:].mean()))


@small
def test_beta_vae(sizes, kind):
    found, z, labels = both("beta-vae", sizes, kind, seed=1, pairs=5, train=80, evaluation=40)
    shared = draw_integers(len(sizes), 120, 1, draw_key(1, Draw.BETA_VAE_FACTOR))[:, 0].numpy()
    first, second = (
        draw_integers(len(z), 120, 5, draw_key(1, draw)).numpy()
        for draw in (Draw.BETA_VAE_FIRST, Draw.BETA_VAE_SECOND)
    )
    features = []
    for f, a, b in zip(shared, first, second, strict=True):
        chosen = labels[b].copy()
        chosen[:, f] = labels[a][:, f]
        features.append(np.abs(z[a] - z[np.ravel_multi_index(chosen.T, sizes)]).mean(0))
    features = np.array(features)
    model = LogisticRegression(max_iter=1000, random_state=1).fit(features[:80], shared[:80])
    assert found.score == pytest.approx(model.score(features[80:], shared[80:]))
    assert found.weights == pytest.approx(model.coef_, abs=1e-9)


def split(name, sizes, kind, draw, **options):
    rows = int(np.prod(sizes))
    train, test = rows // 2, rows // 4
    found, z, labels = both(name, sizes, kind, seed=3, train=train, test=test, **options)
    drawn = draw_points(train + test, rows, draw_key(3, draw)).numpy()
    return found, z, labels, drawn[:train], drawn[train:]


@small
def test_dci(sizes, kind):
    from sklearn.ensemble import RandomForestClassifier

    def classifier():
        return RandomForestClassifier(5, random_state=0)

    found, z, labels, train, test = split("dci", sizes, kind, Draw.DCI, classifier=classifier, progress=False)
    models = [classifier().fit(z[train], labels[train, k]) for k in range(len(sizes))]
    importance = np.stack([m.feature_importances_ for m in models], 1)
    per_code = 1 - entropy(importance.T + 1e-11, base=len(sizes))
    per_factor = 1 - entropy(importance + 1e-11, base=z.shape[1])
    assert found.importance == pytest.approx(importance, abs=1e-12)
    assert found.per_code == pytest.approx(per_code, abs=1e-9)
    assert found.score == pytest.approx((per_code * importance.sum(1)).sum() / importance.sum(), abs=1e-9)
    assert found.completeness == pytest.approx(
        (per_factor * importance.sum(0)).sum() / importance.sum(), abs=1e-9
    )
    right = [(m.predict(z[test]) == labels[test, k]).mean() for k, m in enumerate(models)]
    assert found.informativeness == pytest.approx(np.mean(right))


@small
def test_sap(sizes, kind):
    found, z, labels, train, test = split("sap", sizes, kind, Draw.SAP)
    expected = np.zeros((z.shape[1], len(sizes)))
    for j, k in np.ndindex(*expected.shape):
        model = LinearSVC(C=0.01, class_weight="balanced", random_state=3).fit(
            z[train, j : j + 1], labels[train, k]
        )
        expected[j, k] = model.score(z[test, j : j + 1], labels[test, k])
    assert found.predictability == pytest.approx(expected)
    assert found.gaps == pytest.approx(gaps(expected))
    found = split("sap", sizes, kind, Draw.SAP, continuous=True)[0]
    for j, k in np.ndindex(*expected.shape):
        varied = z[train, j].var(ddof=1) > 1e-12
        expected[j, k] = np.corrcoef(z[train, j], labels[train, k])[0, 1] ** 2 if varied else 0
    assert found.predictability == pytest.approx(expected, abs=1e-9)


@small
def test_explicitness(sizes, kind):
    found, z, labels, train, test = split("explicitness", sizes, kind, Draw.EXPLICITNESS)
    scaler = StandardScaler().fit(z[train])
    expected = []
    for k in range(len(sizes)):
        model = LogisticRegression(max_iter=1000, random_state=3).fit(
            scaler.transform(z[train]), labels[train, k]
        )
        said = model.predict_proba(scaler.transform(z[test]))
        areas = [
            roc_auc_score(labels[test, k] == c, said[:, i])
            for i, c in enumerate(model.classes_)
            if 0 < (labels[test, k] == c).sum() < len(test)
        ]
        expected.append(np.mean(areas))
    assert found.per_factor == pytest.approx(expected, abs=2e-3)


@every
@pytest.mark.parametrize("quantile", [0.99, 1.0])
def test_irs(sizes, kind, quantile):
    found, z, labels = both("irs", sizes, kind, points=None, quantile=quantile)
    for j, column in enumerate(z.T):
        # a mean of equal numbers is that number
        constant = len(set(column)) == 1
        widest = 0.0 if constant else max(abs(column - column.mean()))
        assert found.deviation[j] == pytest.approx(widest, rel=1e-9, abs=0)
        for k, size in enumerate(sizes):
            held = [column[labels[:, k] == c] for c in range(size)]
            moved = np.mean([np.quantile(abs(h - h.mean()), quantile) for h in held])
            assert found.robustness[j, k] == pytest.approx(0 if constant else 1 - moved / widest, abs=1e-6)
    assert found.score == pytest.approx(
        (found.robustness.max(1) * found.deviation).sum() / found.deviation.sum()
    )


@every
def test_unsupervised(sizes, kind):
    found, z, _ = both("unsupervised", sizes, kind, points=None)
    pairs = [(a, b) for a in range(5) for b in range(5) if a != b]
    mutual = np.mean([mutual_info_score(binned(z[:, a]), binned(z[:, b])) for a, b in pairs])
    assert found.mutual_information == pytest.approx(mutual, abs=1e-12)
    z = z[:, [len(set(column)) > 1 for column in z.T]]
    c = np.cov(z.T)
    correlation = np.corrcoef(z.T)
    if kind == "duplicated":
        assert found.gaussian_total_correlation == np.inf
    else:
        assert found.gaussian_total_correlation == pytest.approx(
            -0.5 * np.linalg.slogdet(correlation)[1], abs=1e-9
        )
    # C^1/2 diag(C) C^1/2
    squared, basis = np.linalg.eigh(c)
    root = basis * np.sqrt(np.maximum(squared, 0)) @ basis.T
    w = (
        2 * np.trace(c)
        - 2 * np.sqrt(np.maximum(np.linalg.eigvalsh(root @ np.diag(np.diag(c)) @ root), 0)).sum()
    )
    assert found.gaussian_wasserstein_correlation == pytest.approx(w, abs=1e-6 * np.trace(c))
    assert found.gaussian_wasserstein_correlation_norm == pytest.approx(w / np.trace(c), abs=1e-6)


def slow_udr(z, kl, correlation):
    """Scores of M models, z [M][N, D] and their mean KL [M][D]."""

    def standard(x):
        flat = np.array([len(set(column)) == 1 for column in x.T])
        return np.where(flat, 0, x - x.mean(0)) / np.where(flat, 1, x.std(0))

    kept = [x[:, nats > 0.01] for x, nats in zip(z, kl, strict=True)]
    kept = [standard(rankdata(x, axis=0) if correlation == "spearman" else x) for x in kept]
    matrix = np.zeros((len(z), len(z)))
    for i, j in np.ndindex(*matrix.shape):
        if i == j:
            continue
        r = (
            abs(kept[i].T @ kept[j]) / len(kept[i])
            if correlation == "spearman"
            else abs(np.atleast_2d(Lasso(alpha=0.1).fit(kept[i], kept[j]).coef_))
        )
        share = [np.mean([max(v) ** 2 / sum(v) if sum(v) > 0 else 0 for v in m]) for m in (r, r.T)]
        matrix[i, j] = np.mean(share)
    return [np.median(np.delete(matrix[:, i], i)) for i in range(len(z))]


@every
@pytest.mark.parametrize("correlation", ["lasso", "spearman"])
def test_udr(sizes, kind, correlation):
    z = latents(sizes, kind)
    models = [z, z[:, ::-1].copy(), z + np.float32(0.5) * z[:, [1, 0, 2, 3, 4]]]
    factors = {f"f{i}": size for i, size in enumerate(sizes)}
    found = metrics.udr([codes.table(x, factors) for x in models], points=None, correlation=correlation)
    kl = [0.5 * ((x.astype(np.float64) ** 2).mean(0) + 0.01 - np.log(0.01) - 1) for x in models]
    expected = slow_udr([x.astype(np.float64) for x in models], kl, correlation)
    assert found.scores == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("value", [0.0, 0.1, -1000.3, 3e38])
@pytest.mark.parametrize("sizes", GRIDS[:3], ids=str)
def test_codes_that_never_vary_score_nothing(sizes, value):
    rows = int(np.prod(sizes))
    table = codes.table(np.full((rows, 4), value), {f"f{i}": size for i, size in enumerate(sizes)})
    half = {"train": rows // 2, "test": rows // 4}
    options = {
        "mig": {"points": None},
        "factor-vae": {"variance_points": None, "votes": 50, "evaluation_votes": 50},
        "beta-vae": {"train": 100, "evaluation": 50},
        "dci": {**half, "progress": False, "classifier": LogisticRegression},
        "sap": half,
        "modularity": {"points": None},
        "explicitness": half,
        "irs": {"points": None},
        "unsupervised": {"points": None},
        **({"mig-chen": {}, "total-correlation": {"progress": False}} if abs(value) < 1e30 else {}),
    }
    found = evaluate(table, options, options=options)
    assert {
        name: found[name]["score"] for name in ("mig", "factor-vae", "modularity", "irs", "sap")
    } == dict.fromkeys(("mig", "factor-vae", "modularity", "irs", "sap"), 0)
    assert found["dci"]["score"] == pytest.approx(0, abs=1e-9)
    assert not np.any(found["dci"]["importance"])
    assert found["explicitness"]["score"] == 0.5
    # whatever factor is the likeliest is always said
    assert found["beta-vae"]["train_accuracy"] < 1 / len(sizes) + 0.2
    assert list(found["unsupervised"].values()) == [0, 0, 0, 0]
    if "mig-chen" in found:
        assert found["mig-chen"]["score"] == pytest.approx(0, abs=1e-5)
        assert found["total-correlation"]["score"] == pytest.approx(0, abs=4e-5)
    assert metrics.udr([table, table], points=None).scores.tolist() == [0, 0]


def test_no_information_is_none_on_tables_of_every_size():
    """Of 10,000 points and the factors of dSprites, rounding of 1e-16 nats once passed for it."""
    rng = np.random.default_rng(0)
    for rows in (7, 100, 999, 10_000):
        labels = np.stack([rng.integers(size, size=rows) for size in codes.DSPRITES.values()], 1)
        z = np.concatenate([labels[:, :1] + 0.1 * rng.standard_normal((rows, 1)), np.full((rows, 6), 0.1)], 1)
        table = codes.table(z, codes.DSPRITES, labels=labels)
        found = metrics.modularity(table, points=None)
        assert found.per_code[1:].tolist() == [0] * 6
        assert not found.information[1:].any()


def test_what_informs_only_on_a_factor_left_out_informs_on_nothing():
    """On a grid its counts are those of independence, though its bins are filled unequally."""
    for sizes in GRIDS:
        labels = grid(sizes)
        table = codes.table(
            np.stack([labels[:, 0] ** 2, labels[:, 1] + 0.1], 1), {f"f{i}": s for i, s in enumerate(sizes)}
        )
        if len(sizes) > 2:
            assert metrics.modularity(table, points=None, without=("f0",)).per_code.tolist() == [0, 1]


def test_scores_of_duplicates_do_not_depend_on_which_is_read():
    z = torch.tensor(latents((3, 5, 7), "duplicated"))
    factors = {"a": 3, "b": 5, "c": 7}
    for order in ([0, 1, 2, 3], [3, 1, 0, 2]):
        table = codes.table(z[:, order], factors)
        assert metrics.mig(table, points=None).gaps[0] == 0
        assert metrics.mig_chen(table).gaps[0] == pytest.approx(0, abs=1e-5)


def test_weights_of_large_codes_are_small_and_as_telling():
    labels = grid((3, 5, 7))
    z = labels + 0.1 * np.random.default_rng(0).standard_normal(labels.shape)
    factors, options = {"a": 3, "b": 5, "c": 7}, {"train": 60, "test": 30, "progress": False}

    class Small(LogisticRegression):
        """One that has seen its codes 1e20 times as large."""

        def fit(self, x, y):
            super().fit(x, y)
            self.coef_ = self.coef_ * 1e-20
            return self

    found, small = (
        metrics.dci(codes.table(z, factors), classifier=classifier, **options)
        for classifier in (LogisticRegression, Small)
    )
    assert found.score > 0.1
    assert small.per_code == pytest.approx(found.per_code)
    assert (small.score, small.completeness) == pytest.approx((found.score, found.completeness))
