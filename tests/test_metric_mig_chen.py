"""MIG by entropies of the aggregate posterior, with the op or, until there is one, a quadrature of the test's own."""

import importlib.util
import itertools
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import codes
from pyvae.metrics import mig_chen
from pyvae.metrics.mig_chen import one_sample_per_image

MODULE = "pyvae.ops.posterior_entropy"
TINY = {"shape": 2, "x": 5, "y": 4}
SIZES = tuple(TINY.values())


def slow_posterior_entropy(mu, logvar, factor_sizes, *, nodes=512, tol=1e-5):
    mu, sigma = mu.double().numpy(), np.exp(0.5 * logvar.double().numpy())
    labels = np.array(list(itertools.product(*map(range, factor_sizes))))
    latents = range(mu.shape[1])
    marginal = torch.tensor([codes.mixture_entropy(mu[:, j], sigma[:, j]) for j in latents])
    conditional = tuple(
        torch.tensor(
            [
                [
                    codes.mixture_entropy(mu[held, j], sigma[held, j])
                    for held in (label == c for c in range(size))
                ]
                for j in latents
            ]
        )
        for label, size in zip(labels.T, factor_sizes, strict=True)
    )
    return SimpleNamespace(marginal=marginal, conditional=conditional, error=torch.zeros(len(latents)))


def slow_sampled_entropy(z, mu, logvar, *, chunk=None):
    mu, sigma = mu.double().numpy(), np.exp(0.5 * logvar.double().numpy())
    nats = np.stack(
        [-codes.log_mixture(z[:, j].double().numpy(), mu[:, j], sigma[:, j]) for j in range(z.shape[1])]
    )
    return torch.tensor(nats.mean(1)), torch.tensor(nats.std(1, ddof=1) / len(z) ** 0.5)


SLOW = SimpleNamespace(posterior_entropy=slow_posterior_entropy, sampled_entropy=slow_sampled_entropy)


@pytest.fixture(autouse=True)
def an_op(monkeypatch):
    if importlib.util.find_spec(MODULE) is None:
        monkeypatch.setitem(sys.modules, MODULE, SLOW)


def score(z, sigma=0.1, **options):
    return mig_chen(codes.table(z, TINY, sigma=sigma), **options).score


@pytest.fixture
def mixed():
    return codes.perfect(TINY) + 0.3 * codes.noise(40, 3)


def test_a_perfect_code_scores_one_up_to_the_width_of_the_posterior():
    found = mig_chen(codes.table(codes.perfect(TINY), TINY, sigma=0.02))
    assert found.score == pytest.approx(1, abs=1e-4)
    assert np.diag(found.information) == pytest.approx(np.log(SIZES), abs=1e-4)
    assert found.information - np.diag(np.diag(found.information)) == pytest.approx(
        np.zeros((3, 3)), abs=1e-4
    )
    # far apart components: H = log(number of components) + H of one
    one = 0.5 * np.log(2 * np.pi * np.e * 0.02**2)
    assert found.marginal == pytest.approx(np.log(SIZES) + one, abs=1e-4)
    assert np.diag(found.conditional) == pytest.approx(one, abs=1e-4)
    assert 0.5 < score(codes.perfect(TINY), sigma=0.3) < 0.9


def test_slow_recomputation(mixed):
    found = mig_chen(codes.table(mixed, TINY, sigma=0.2), without=("shape",))
    sigma = np.full(40, 0.2)
    labels = codes.classes(TINY)
    for k, (name, column) in enumerate((("x", 1), ("y", 2))):
        gain = []
        for j in range(3):
            held = [labels[:, column] == c for c in range(TINY[name])]
            conditional = np.mean([codes.mixture_entropy(mixed[h, j], sigma[h]) for h in held])
            gain.append(max(codes.mixture_entropy(mixed[:, j], sigma) - conditional, 0))
        assert found.information[:, k] == pytest.approx(gain, abs=1e-4)
        second, first = sorted(gain)[-2:]
        assert found.gaps[k] == pytest.approx((first - second) / np.log(TINY[name]), abs=1e-4)
    assert found.score == pytest.approx(found.gaps.mean())
    assert found.factors == ("x", "y")


def test_invariance_to_order_sign_and_scale(mixed):
    expected = score(mixed)
    assert 0.05 < expected < 0.95
    assert score(mixed[:, [2, 0, 1]]) == pytest.approx(expected, abs=1e-4)
    assert score(-mixed) == pytest.approx(expected, abs=1e-4)
    assert score(4 * mixed, sigma=0.4) == pytest.approx(expected, abs=1e-4)


def test_a_duplicated_code_has_no_gap_and_a_rotated_one_less(mixed):
    assert score(np.concatenate([mixed, mixed], 1)) == pytest.approx(0, abs=1e-6)
    z = codes.perfect(TINY)
    assert score(codes.rotated(z, 1, 2), 0.05) < score(z, 0.05) - 0.2


def test_collapsed_latents_inform_on_nothing(mixed):
    z = np.concatenate([mixed, np.zeros((40, 2))], 1)
    found = mig_chen(codes.table(z, TINY))
    assert found.information[3:] == pytest.approx(np.zeros((2, 3)), abs=1e-5)
    assert found.score == pytest.approx(score(mixed), abs=1e-4)


def test_the_parts_of_the_op_are_used_as_they_are_documented(mixed, monkeypatch):
    calls = []

    def posterior_entropy(mu, logvar, factor_sizes, *, nodes, tol):
        calls.append((mu, logvar, factor_sizes, nodes, tol))
        marginal = torch.tensor([3.0, 2.0, 1.0])
        conditional = tuple(torch.full((3, s), 1.5) + torch.linspace(-0.1, 0.1, s) for s in factor_sizes)
        return SimpleNamespace(marginal=marginal, conditional=conditional, error=torch.full((3,), 1e-6))

    monkeypatch.setitem(sys.modules, MODULE, SimpleNamespace(posterior_entropy=posterior_entropy))
    table = codes.table(mixed, TINY)
    found = mig_chen(table, nodes=64, tol=1e-3, without=("x",))
    (mu, logvar, sizes, nodes, tol) = calls[0]
    assert mu is table.mu
    assert logvar is table.logvar
    assert (sizes, nodes, tol) == (SIZES, 64, 1e-3)
    assert found.information == pytest.approx(np.array([[1.5] * 2, [0.5] * 2, [0] * 2]), abs=1e-6)
    assert found.gaps == pytest.approx([1 / np.log(2), 1 / np.log(4)], abs=1e-6)
    assert found.error == pytest.approx([1e-6] * 3)


def test_samples_approach_the_quadrature(monkeypatch):
    factors = {"shape": 2, "x": 10, "y": 60}
    z = codes.perfect(factors) + 0.1 * codes.noise(1200, 3)
    monkeypatch.setitem(sys.modules, MODULE, SLOW)
    table = codes.table(z, factors, sigma=0.3)
    exact = mig_chen(table)
    sampled = mig_chen(table, estimator="sampled")
    assert np.all(np.abs(sampled.marginal - exact.marginal) < 5 * sampled.error)
    assert 0 < sampled.error.max() < 0.05
    assert sampled.score == pytest.approx(exact.score, abs=0.03)
    assert sampled.score == mig_chen(table, estimator="sampled").score
    assert sampled.score != mig_chen(table, estimator="sampled", seed=1).score


def test_every_image_has_noise_of_its_own():
    z = one_sample_per_image(torch.full((80_000, 2), 3.0), torch.full((80_000, 2), 2 * np.log(0.5)), 0)
    # 32-bit uniforms meet by chance now and then
    assert len(z[:, 0].unique()) > 79_000
    assert z.mean(0) == pytest.approx([3, 3], abs=0.01)
    assert z.std(0) == pytest.approx([0.5, 0.5], abs=0.01)


def test_each_entropy_has_samples_of_its_own_images(mixed, monkeypatch):
    calls = []

    def sampled_entropy(z, mu, logvar):
        calls.append((z, mu, logvar))
        return torch.zeros(3), torch.zeros(3)

    monkeypatch.setitem(sys.modules, MODULE, SimpleNamespace(sampled_entropy=sampled_entropy))
    table = codes.table(100 * mixed, TINY, sigma=1e-3)
    mig_chen(table, estimator="sampled", samples=9, without=("shape",))
    assert [(len(z), len(mu)) for z, mu, _ in calls] == [(9, 40)] + [(8, 8)] * 5 + [(9, 10)] * 4
    labels = torch.tensor(codes.classes(TINY))
    held = [labels[:, 0] >= 0, *(labels[:, 1] == c for c in range(5)), *(labels[:, 2] == c for c in range(4))]
    for (z, mu, logvar), rows in zip(calls, held, strict=True):
        assert torch.equal(mu, table.mu[rows])
        assert torch.equal(logvar, table.logvar[rows])
        # the posteriors are narrow: each sample shows which image it is of
        distance, image = torch.cdist(z.double(), mu.double()).min(1)
        assert distance.max() < 0.01
        assert distance.min() > 0
        assert len(image.unique()) == len(z)


def test_refusals(mixed):
    table = codes.table(mixed, TINY)
    with pytest.raises(ValueError, match="estimator: expected 'quadrature' or 'sampled', got 'kde'"):
        mig_chen(table, estimator="kde")
    with pytest.raises(ValueError, match="samples: at least 2"):
        mig_chen(table, estimator="sampled", samples=1)
    with pytest.raises(ValueError, match="no factor 'hue'"):
        mig_chen(table, without=("hue",))
    with pytest.raises(ValueError, match="at least 2, got 1"):
        mig_chen(codes.table(mixed[:, :1], TINY))
    with pytest.raises(ValueError, match="full grid"):
        mig_chen(codes.table(mixed, TINY, labels=codes.classes(TINY)))
    with pytest.raises(ValueError, match="factor one has one class"):
        mig_chen(codes.table(mixed, {"one": 1, "x": 8, "y": 5}))


@pytest.mark.parametrize("logvar", [-20.0, -30.0, -60.0])
@pytest.mark.parametrize("estimator", ["quadrature", "sampled"])
def test_sharp_posteriors_have_the_information_of_places(estimator, logvar):
    """As after a training of beta 0: a latent that tells all images apart, one that tells x, one that tells nothing."""
    labels = codes.classes(TINY)
    z = np.stack(
        [np.random.default_rng(0).permutation(40) * 0.37 - 5, labels[:, 1] * 1.1, np.full(40, 0.7)], 1
    )
    found = mig_chen(codes.table(z, TINY, sigma=np.exp(logvar / 2)), estimator=estimator, progress=False)
    expected = np.array([np.log(SIZES), [0, np.log(5), 0], [0, 0, 0]])
    # a few samples, each of entropy within one standard error or so of its own posterior's
    tolerance = 1e-4 if estimator == "quadrature" else 0.6
    assert found.information == pytest.approx(expected, abs=tolerance)
    if estimator == "quadrature":
        assert found.score == pytest.approx((1 + 0 + 1) / 3, abs=1e-4)
        one = 0.5 * np.log(2 * np.pi * np.e) + logvar / 2
        assert found.marginal == pytest.approx(one + np.log([40, 5, 1]), abs=1e-4)
    else:
        assert np.abs(
            found.marginal - (0.5 * np.log(2 * np.pi * np.e) + logvar / 2 + np.log([40, 5, 1]))
        ) == (pytest.approx(np.zeros(3), abs=4 * found.error.max()))


def test_what_has_no_density_is_one_line(mixed):
    for logvar in (-101.0, 101.0):
        for estimator in ("quadrature", "sampled"):
            table = codes.table(mixed, TINY)
            table.logvar[7, 1] = logvar
            with pytest.raises(ValueError, match=r"logvar: NaN or a magnitude above 100 in dimensions \[1\]"):
                mig_chen(table, estimator=estimator, progress=False)
