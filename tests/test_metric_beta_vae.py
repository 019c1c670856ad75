"""The beta-VAE metric: perfect and random codes, its known flaw, and a point-by-point recomputation."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

import codes
from pyvae.metrics import beta_vae
from pyvae.metrics.sampling import Draw, draw_integers, draw_key

QUICK = {"train": 1000, "evaluation": 500}


@pytest.fixture(scope="module")
def dsprites():
    return codes.table(codes.perfect(codes.DSPRITES), codes.DSPRITES)


@pytest.fixture
def mixed():
    return codes.perfect(codes.SMALL) @ codes.noise(4, 5) + 0.3 * codes.noise(768, 5, 1)


def test_a_perfect_code_scores_one(dsprites):
    found = beta_vae(dsprites, **QUICK)
    assert (found.score, found.train_accuracy) == (1, 1)
    # a factor is told by the latent that does not differ
    assert np.array_equal(found.weights.argmin(1), np.arange(5))


def test_a_code_that_lacks_a_factor_still_scores_one(dsprites):
    z = codes.perfect(codes.DSPRITES)[:, :4]
    assert beta_vae(codes.table(z, codes.DSPRITES), **QUICK).score == 1


def test_a_random_code_scores_as_a_guess_does():
    table = codes.table(codes.noise(737_280, 10), codes.DSPRITES)
    assert beta_vae(table).score == pytest.approx(1 / 5, abs=0.025)


def test_point_by_point(mixed):
    found = beta_vae(codes.table(mixed), pairs=8, train=300, evaluation=100, seed=5)
    sizes = tuple(codes.SMALL.values())
    labels = codes.classes(codes.SMALL)
    z = mixed.astype(np.float32)
    factor = draw_integers(4, 400, 1, draw_key(5, Draw.BETA_VAE_FACTOR))[:, 0].numpy()
    first = draw_integers(768, 400, 8, draw_key(5, Draw.BETA_VAE_FIRST)).numpy()
    second = draw_integers(768, 400, 8, draw_key(5, Draw.BETA_VAE_SECOND)).numpy()
    features = []
    for k, a, b in zip(factor, first, second, strict=True):
        shared = labels[b].copy()
        shared[:, k] = labels[a][:, k]
        features.append(np.abs(z[a] - z[np.ravel_multi_index(shared.T, sizes)]).mean(0))
    features = np.array(features, dtype=np.float64)
    model = LogisticRegression(max_iter=1000).fit(features[:300], factor[:300])
    assert found.train_accuracy == pytest.approx(model.score(features[:300], factor[:300]), abs=0.01)
    assert found.score == pytest.approx(model.score(features[300:], factor[300:]), abs=0.02)
    assert found.weights == pytest.approx(model.coef_, abs=0.02)
    assert 0.3 < found.score < 1


def test_order_and_sign_of_latents_do_not_matter(mixed):
    expected = beta_vae(codes.table(mixed), **QUICK)
    changed = beta_vae(codes.table(-mixed[:, [4, 2, 0, 1, 3]]), **QUICK)
    assert changed.score == pytest.approx(expected.score, abs=0.01)
    assert changed.weights == pytest.approx(expected.weights[:, [4, 2, 0, 1, 3]], abs=0.05)


def test_duplicated_and_constant_latents():
    z = codes.perfect(codes.SMALL)
    z = np.concatenate([z, z, np.ones((768, 2))], 1)
    found = beta_vae(codes.table(z), **QUICK)
    assert found.score == 1
    assert found.weights[:, -2:] == pytest.approx(np.zeros((4, 2)))
    # a constant code tells nothing: the most frequent factor is always named
    assert beta_vae(codes.table(np.ones((768, 2))), **QUICK).score == pytest.approx(1 / 4, abs=0.06)


def test_factors_left_out_are_never_shared():
    found = beta_vae(codes.table(codes.perfect(codes.SMALL)), without=("shape", "y"), **QUICK)
    assert found.factors == ("scale", "x")
    assert found.weights.shape == (1, 4)
    # of two factors the weights speak for the second, x: scale differs, x does not
    assert found.weights[0].argmax() == 1
    assert found.weights[0].argmin() == 2
    assert found.score == 1


def test_refusals(mixed):
    table = codes.table(mixed)
    with pytest.raises(ValueError, match="pairs: at least 1"):
        beta_vae(table, pairs=0)
    with pytest.raises(ValueError, match="train: 3 points do not hold every factor"):
        beta_vae(table, train=3)
    with pytest.raises(ValueError, match="no factor 'hue'"):
        beta_vae(table, without=("hue",))
    with pytest.raises(ValueError, match="at least 2, got y"):
        beta_vae(table, without=("shape", "scale", "x"))
    with pytest.raises(ValueError, match=r"beta_vae .* full grid"):
        beta_vae(codes.table(mixed, labels=codes.classes(codes.SMALL)))
