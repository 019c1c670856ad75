"""Total correlation of the aggregate posterior: closed forms, quadrature, and what must not matter."""

import math
import sys

import numpy as np
import pytest
import torch

import codes
from pyvae.data.subset import subset
from pyvae.engine.loop import train
from pyvae.engine.run import RunDirectory
from pyvae.evaluation import compute_scores, score
from pyvae.metrics import CodeTable, encode, total_correlation
from pyvae.metrics.total_correlation import mixture_log_density
from test_report import RECIPE
from tiny import TinyData

ERRORS = 5.0
"""Standard errors that an estimate may be off: once in two million."""


def table(mu, sigma):
    """Codes without factors, of means [N, D] and widths that broadcast to them."""
    mu, logvar = np.broadcast_arrays(np.asarray(mu, dtype=np.float64), 2 * np.log(sigma))
    return CodeTable(*(torch.tensor(x, dtype=torch.float32) for x in (mu, logvar)), (), ())


def measure(mu, sigma, **options):
    return total_correlation(table(mu, sigma), **{"progress": False} | options)


def product(*values):
    """Float [N, D]: every combination of the values of each latent."""
    return np.stack(np.meshgrid(*values, indexing="ij"), -1).reshape(-1, len(values))


def entropy(sigma):
    """Of Gaussians."""
    return 0.5 * np.log(2 * np.pi * np.e * np.square(sigma))


@pytest.mark.parametrize("rows", [2, 7])
def test_one_posterior_however_often_it_comes(rows):
    mu, sigma = np.array([[0.5, -3.0, 40.0]]), np.array([[1.0, 0.01, 3.0]])
    found = measure(np.repeat(mu, rows, 0), np.repeat(sigma, rows, 0))
    assert found.score == pytest.approx(0, abs=1e-4)
    assert found.standard_error < 1e-6
    assert found.gaussian == 0
    assert found.marginal == pytest.approx(entropy(sigma[0]), abs=1e-4)
    kl = 0.5 * float((mu**2 + sigma**2 - 2 * np.log(sigma) - 1).sum())
    assert found.kl == pytest.approx([0, 0, kl], abs=2e-4)


@pytest.mark.parametrize("sigma", [0.01, 0.3, 2.0])
def test_a_full_product_of_places_is_independent(sigma):
    """In the population exactly, at any width, and far from Gaussian."""
    mu = product(np.linspace(-2, 2, 12), [-3.0, 0.0, 0.1, 5.0], np.geomspace(0.1, 4, 20))
    found = measure(mu, np.array([sigma, 2 * sigma, sigma]))
    assert abs(found.score) < ERRORS * found.standard_error + 5e-5
    assert found.standard_error < 0.03
    assert found.gaussian == pytest.approx(0, abs=1e-9)


def correlated(rows, covariance):
    """Float [rows, D] of exactly this covariance."""
    z = codes.noise(rows, len(covariance))
    z -= z.mean(0)
    z = z @ np.linalg.inv(np.linalg.cholesky(z.T @ z / rows)).T
    return z @ np.linalg.cholesky(covariance).T


@pytest.mark.parametrize("rho", [0.0, 0.5, -0.9])
def test_many_posteriors_that_make_a_correlated_gaussian(rho):
    covariance = np.array([[1.0, rho, 0.0], [rho, 1.0, 0.2], [0.0, 0.2, 1.0]])
    expected = -0.5 * math.log(np.linalg.det(covariance))
    found = measure(correlated(30_000, covariance - 0.04 * np.eye(3)), 0.2)
    assert found.score == pytest.approx(expected, abs=ERRORS * found.standard_error)
    assert 0 < found.standard_error < 0.03
    assert found.gaussian == pytest.approx(expected, abs=1e-6)
    assert found.marginal == pytest.approx(entropy([1, 1, 1]), abs=2e-3)
    # the means alone are more correlated than codes with their noise
    assert found.gaussian < measure(correlated(30_000, covariance - 0.04 * np.eye(3)), 1e-3).gaussian


def by_quadrature(mu, sigma, points=1500):
    """Total correlation of a mixture in two dimensions by a fine sum, and that of more nodes is the same."""
    places, densities = [], []
    for m, s in zip(mu.T, sigma.T, strict=True):
        z = np.linspace((m - 9 * s).min(), (m + 9 * s).max(), points)
        places.append(z)
        densities.append(np.exp(-0.5 * ((z[:, None] - m) / s) ** 2) / (s * math.sqrt(2 * math.pi)))
    joint = densities[0] @ densities[1].T / len(mu)
    independent = np.outer(*(density.mean(1) for density in densities))
    cell = math.prod(z[1] - z[0] for z in places)
    kept = joint > 1e-250
    return cell * float((joint[kept] * np.log(joint[kept] / independent[kept])).sum())


@pytest.mark.parametrize("seed", range(3))
def test_two_latents_against_quadrature(seed):
    rng = np.random.default_rng(seed)
    mu, sigma = rng.standard_normal((9, 2)), np.exp(rng.uniform(-2.5, 0.5, (9, 2)))
    expected = by_quadrature(mu, sigma)
    assert expected == pytest.approx(by_quadrature(mu, sigma, 1000), abs=1e-9)
    assert expected > 0.1
    found = measure(mu, sigma, samples=2_000_000)
    assert found.standard_error < 7e-4
    assert found.score == pytest.approx(expected, abs=min(ERRORS * found.standard_error, 1.5e-3))


def test_codes_that_tell_all_images_apart_leave_nothing_to_chance():
    mu = np.repeat(np.arange(500.0)[:, None], 3, 1)
    found = measure(mu, 1e-3)
    assert found.standard_error < 1e-6
    # each latent knows all of the other two
    assert found.score == pytest.approx(2 * math.log(500), abs=1e-4)
    assert found.kl[0] == pytest.approx(math.log(500), abs=1e-5)


def mixed(rows=400):
    """Dependent codes of unequal widths."""
    return codes.noise(rows, 4) @ codes.noise(4, 4, 1), np.exp(0.5 * codes.noise(rows, 4, 2) - 1.5)


def test_the_parts_of_the_kl_add_up():
    given = table(*mixed())
    found = total_correlation(given, progress=False)
    assert found.kl[1] == found.score
    assert found.kl.sum() == pytest.approx(float(given.mean_kl().sum()), rel=1e-12)
    assert 0 < found.kl[0] < math.log(len(given))
    # KL(q(z_j) || N(0, 1)) of each latent, from its entropy and second moment
    second = (given.mu.double() ** 2 + given.logvar.double().exp()).mean(0).numpy()
    apart = (0.5 * (second + math.log(2 * math.pi)) - found.marginal).sum()
    assert found.kl[2] == pytest.approx(apart, abs=ERRORS * found.standard_error + 5e-5)
    assert found.kl[2] == pytest.approx(apart, abs=5e-5)


def test_order_sign_scale_and_place_do_not_matter():
    mu, sigma = mixed()
    found = measure(mu, sigma)
    assert found.score > 0.5
    for order, sign in (([2, 0, 3, 1], 1.0), ([0, 1, 2, 3], -1.0)):
        other = measure(sign * mu[:, order], sigma[:, order])
        both = math.hypot(found.standard_error, other.standard_error)
        assert other.score == pytest.approx(found.score, abs=ERRORS * both)
        assert other.gaussian == pytest.approx(found.gaussian, abs=1e-5)
        assert other.marginal == pytest.approx(found.marginal[order], abs=1e-4)
    scale, shift = np.array([8.0, 1.0, 0.25, 2.0]), np.array([0.0, -300.0, 5.0, 0.0])
    other = measure(mu * scale + shift, sigma * scale)
    assert other.score == pytest.approx(found.score, abs=1e-3)
    assert other.marginal == pytest.approx(found.marginal + np.log(scale), abs=1e-3)


def test_more_latents_that_know_nothing_change_nothing():
    mu, sigma = mixed()
    found = measure(mu, sigma)
    other = measure(
        np.concatenate([mu, np.zeros((400, 2))], 1), np.concatenate([sigma, np.ones((400, 2))], 1)
    )
    assert other.score == pytest.approx(found.score, abs=2 * ERRORS * found.standard_error)
    assert other.kl[2] == pytest.approx(found.kl[2], abs=1e-3)


def test_the_standard_error_is_what_seeds_differ_by():
    given = table(*mixed())
    found = [total_correlation(given, seed=seed, samples=500, progress=False) for seed in range(60)]
    spread = np.std([each.score for each in found], ddof=1)
    # sixty values know their own spread to a tenth; the error takes no credit for rows that come equally often
    assert 0.6 < spread / np.mean([each.standard_error for each in found]) < 1.2
    quarter = total_correlation(given, samples=125, progress=False).standard_error
    assert quarter == pytest.approx(2 * found[0].standard_error, rel=0.3)
    assert found[0] != found[1]
    assert found[3].score == total_correlation(given, seed=3, samples=500, progress=False).score


@pytest.mark.parametrize("sigma", [1e-2, 1e-4, 1e-8])
def test_sharp_posteriors_far_from_zero_lose_nothing(sigma):
    """Against longer mantissas; with the square expanded, float32 fails at the first width, float64 at the next."""
    rng = np.random.default_rng(0)
    mu = torch.tensor(rng.integers(-4000, 4000, (3000, 10)) / 1024, dtype=torch.float32)
    mu[:, 5:] = mu[:1, 5:]
    logvar = torch.full_like(mu, 2 * math.log(sigma))
    z = mu[::30].double() + sigma * torch.tensor(rng.standard_normal((100, 10)))
    found = mixture_log_density(z, mu, logvar)
    x, m, lv = (np.asarray(each.double().numpy(), dtype=np.longdouble) for each in (z, mu, logvar))
    terms = -0.5 * (((x[:, None] - m) ** 2) * np.exp(-lv) + lv + np.log(2 * np.longdouble(np.pi))).sum(2)
    top = terms.max(1)
    expected = top + np.log(np.exp(terms - top[:, None]).mean(1))
    assert found.numpy() == pytest.approx(expected.astype(float), abs=1e-6)


def test_samples_that_lie_far_from_most_posteriors():
    mu, logvar = torch.tensor([[0.0, 0], [1e4, -1e4], [50, 50]]), torch.tensor([[0.0, 0], [-20, 20], [3, -3]])
    z = torch.tensor([[0.0, 0], [1e4, -1e4], [30, 30], [-1e6, 1e6]], dtype=torch.float64)
    density = torch.distributions.Normal(mu.double(), (0.5 * logvar.double()).exp())
    expected = density.log_prob(z[:, None]).sum(-1).logsumexp(1) - math.log(3)
    assert mixture_log_density(z, mu, logvar).numpy() == pytest.approx(expected.numpy(), rel=1e-9, abs=1e-6)


def test_blocks_are_no_part_of_the_result(monkeypatch):
    given = table(*mixed(2500))
    found = total_correlation(given, samples=600, progress=False)
    module = sys.modules["pyvae.metrics.total_correlation"]
    monkeypatch.setattr(module, "_SAMPLES_AT_ONCE", 7)
    monkeypatch.setattr(module, "_POSTERIORS_AT_ONCE", 11)
    monkeypatch.setattr(module, "_ROWS_AT_ONCE", 100)
    other = total_correlation(given, samples=600, progress=False)
    assert other.score == pytest.approx(found.score, abs=1e-6)
    assert other.gaussian == pytest.approx(found.gaussian, abs=1e-12)
    assert other.kl == pytest.approx(found.kl, abs=1e-6)


def test_refusals():
    given = table(*mixed())
    with pytest.raises(ValueError, match="total_correlation compares latents: it needs at least 2, got 1"):
        measure(np.zeros((5, 1)), 1.0)
    with pytest.raises(ValueError, match="at least 2 codes are needed, the table has 1"):
        measure(np.zeros((1, 5)), 1.0)
    with pytest.raises(ValueError, match="samples: at least 2"):
        total_correlation(given, samples=1)
    with pytest.raises(ValueError, match=r"tol: expected more than 0, got 0\.0"):
        total_correlation(given, tol=0.0)
    with pytest.raises(ValueError, match="nodes: at least 4"):
        total_correlation(given, nodes=3)
    given.logvar[7, 1] = 101.0
    with pytest.raises(ValueError, match=r"logvar: NaN or a magnitude above 100 in dimensions \[1\]"):
        total_correlation(given)


def test_of_a_run(tmp_path):
    run, data, cpu = RunDirectory.create_or_resume(tmp_path / "run", RECIPE), TinyData(), torch.device("cpu")
    train(run, data, cpu, log_every=1)
    net = run.load_net()[0]
    found = score(run, data, ["total-correlation"], device=cpu)["total-correlation"]
    expected = total_correlation(encode(net, data, device=cpu, progress=False), progress=False)
    assert found["score"] == expected.score
    assert found["kl"] == expected.kl.tolist()
    # and of a part of the images, which is another q(z)
    found = compute_scores(run, data, ["total-correlation"], device=cpu, images=60).found["total-correlation"]
    part = encode(net, data, device=cpu, index=subset(data, 60), progress=False)
    assert found["score"] == total_correlation(part, progress=False).score
    assert found["images"] == 60
