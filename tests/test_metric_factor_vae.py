"""The FactorVAE metric: perfect and random codes, pruning, and a vote-by-vote recomputation."""

import numpy as np
import pytest

import codes
from pyvae.metrics import FACTOR_VAE_PAPER, factor_vae
from pyvae.metrics.sampling import Draw, draw_integers, draw_key

QUICK = {"variance_points": None, "votes": 1500, "evaluation_votes": 1000}


@pytest.fixture(scope="module")
def dsprites():
    return codes.table(codes.perfect(codes.DSPRITES), codes.DSPRITES)


@pytest.fixture
def mixed():
    z = codes.perfect(codes.SMALL) + 0.3 * codes.noise(768, 4)
    return np.concatenate([codes.rotated(z, 1, 2), 0.5 * codes.noise(768, 2, 1)], 1)


def test_a_perfect_code_scores_one(dsprites):
    found = factor_vae(dsprites)
    assert (found.score, found.train_accuracy, found.evaluation_accuracy) == (1, 1, 1)
    assert found.active.all()
    assert np.array_equal(found.votes, np.diag(np.diag(found.votes)))
    # a factor is drawn for each vote
    assert found.votes.sum() == 10_000
    assert np.diag(found.votes) == pytest.approx([2000] * 5, abs=200)


def test_a_perfect_code_scores_one_as_in_the_paper(dsprites):
    found = factor_vae(dsprites, **FACTOR_VAE_PAPER)
    assert (found.score, found.train_accuracy, found.evaluation_accuracy) == (1, 1, None)
    assert found.votes.sum() == 800


def test_a_random_code_scores_as_a_guess_does():
    table = codes.table(codes.noise(737_280, 10), codes.DSPRITES)
    assert factor_vae(table).score == pytest.approx(1 / 5, abs=0.025)


def slow_votes(z, factors, active, votes, points, seed):
    """(factor, latent) of each vote, one at a time."""
    sizes = np.array(list(factors.values()))
    labels = codes.classes(factors)
    held = draw_integers(len(sizes), votes, 1, draw_key(seed, Draw.FACTOR_VAE_FACTOR))
    rows = draw_integers(len(z), votes, points, draw_key(seed, Draw.FACTOR_VAE_POINTS))
    variance = z.var(0, ddof=1)
    for k, row in zip(held[:, 0].numpy(), rows.numpy(), strict=True):
        chosen = labels[row].copy()
        chosen[:, k] = chosen[0, k]
        images = np.ravel_multi_index(chosen.T, sizes)
        relative = z[images].var(0, ddof=1) / variance
        yield k, min((j for j in range(z.shape[1]) if active[j]), key=lambda j: relative[j])


@pytest.mark.parametrize("points", [64, 5])
def test_vote_by_vote(mixed, points):
    mixed[:, 0] *= 0.01  # pruned
    found = factor_vae(
        codes.table(mixed),
        points_per_vote=points,
        votes=300,
        evaluation_votes=200,
        seed=7,
        variance_points=None,
    )
    active = np.array([False, True, True, True, True, True])
    assert np.array_equal(found.active, active)
    votes = list(slow_votes(mixed.astype(np.float32).astype(np.float64), codes.SMALL, active, 500, points, 7))
    counts = np.zeros((6, 4), dtype=int)
    for k, j in votes[:300]:
        counts[j, k] += 1
    assert np.array_equal(found.votes, counts)
    right = [counts[j].argmax() == k for k, j in votes]
    assert found.train_accuracy == pytest.approx(np.mean(right[:300]))
    assert found.evaluation_accuracy == found.score == pytest.approx(np.mean(right[300:]))
    assert found.train_accuracy == pytest.approx(counts.max(1).sum() / 300)


def test_without_evaluation_the_score_is_that_of_training(mixed):
    found = factor_vae(codes.table(mixed), **QUICK | {"evaluation_votes": 0})
    assert found.evaluation_accuracy is None
    assert found.score == found.train_accuracy == pytest.approx(found.votes.max(1).sum() / 1500)


def test_invariance(mixed):
    def votes(z):
        return factor_vae(codes.table(z), **QUICK).votes

    expected = votes(mixed)
    assert 0 < factor_vae(codes.table(mixed), **QUICK).score < 1
    assert np.array_equal(votes(mixed * [2, 0.5, 16, 1, 4, 0.25]), expected)
    assert np.array_equal(votes(-mixed), expected)
    order = [3, 1, 0, 5, 4, 2]
    assert np.array_equal(votes(mixed[:, order]), expected[order])


def test_a_rotated_code_scores_less():
    z = codes.rotated(codes.rotated(codes.perfect(codes.SMALL), 0, 1), 2, 3)
    assert factor_vae(codes.table(z), **QUICK).score < 0.95


def test_a_duplicated_code_scores_as_the_code():
    z = codes.perfect(codes.SMALL)
    assert factor_vae(codes.table(np.concatenate([z, z], 1)), **QUICK).score == 1


def test_pruning_by_deviation():
    z = codes.perfect(codes.SMALL)
    z = z / z.std(0, ddof=1) * [1, 0.049, 0.051, 1]
    found = factor_vae(codes.table(z), **QUICK)
    assert found.active.tolist() == [True, False, True, True]
    assert found.votes[1].sum() == 0
    assert found.score < 1
    assert factor_vae(codes.table(z), threshold=0.01, **QUICK).score == 1


def test_pruning_by_kl():
    z = np.concatenate([codes.perfect(codes.SMALL), 0.1 * codes.noise(768, 2)], 1)
    z[:, 4] *= 2
    table = codes.table(z, sigma=1.0)
    # KL = mean mu^2 / 2: .02 and .005 for the last two
    assert factor_vae(table, prune="kl", **QUICK).active.tolist() == [True] * 5 + [False]
    assert factor_vae(table, prune="kl", threshold=0.03, **QUICK).active.tolist() == [True] * 4 + [False] * 2


@pytest.mark.parametrize("options", [{}, {"threshold": 0.0}, {"prune": "kl"}])
def test_a_collapsed_code_scores_nothing(options):
    found = factor_vae(codes.table(np.zeros((768, 3)), sigma=1.0), **QUICK, **options)
    assert (found.score, found.train_accuracy, found.evaluation_accuracy) == (0, 0, 0)
    assert not found.active.any()
    assert found.votes.shape == (3, 4)


def test_constant_latents_are_never_named():
    z = np.concatenate([np.full((768, 1), 3.0), codes.perfect(codes.SMALL)], 1)
    found = factor_vae(codes.table(z), threshold=0.0, **QUICK)
    assert found.score == 1
    assert found.votes[0].sum() == 0


def test_factors_left_out_are_never_held():
    found = factor_vae(codes.table(codes.perfect(codes.SMALL)), without=("shape", "y"), **QUICK)
    assert found.factors == ("scale", "x")
    assert found.votes.shape == (4, 2)
    assert found.votes[[0, 3]].sum() == 0
    assert found.score == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"variance_points": 10_000}, "points: 10000 asked for, the table has 768"),
        ({"points_per_vote": 1}, "points_per_vote: at least 2"),
        ({"votes": 0}, "votes: at least 1"),
        ({"evaluation_votes": -1}, "evaluation_votes: at least 0"),
        ({"prune": "mean"}, "prune: expected 'std' or 'kl', got 'mean'"),
        ({"without": ("hue",)}, "no factor 'hue'"),
    ],
)
def test_refusals(mixed, options, message):
    with pytest.raises(ValueError, match=message):
        factor_vae(codes.table(mixed), **QUICK | options)


def test_what_is_no_grid_is_refused(mixed):
    with pytest.raises(ValueError, match=r"factor_vae .* full grid"):
        factor_vae(codes.table(mixed, labels=codes.classes(codes.SMALL)), **QUICK)
    with pytest.raises(ValueError, match="factor one has one class"):
        factor_vae(codes.table(mixed, {"one": 1, "x": 96, "y": 8}), **QUICK)
