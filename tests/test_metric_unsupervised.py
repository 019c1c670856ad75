"""Unsupervised scores: Gaussians of known correlation and a slow recomputation."""

import numpy as np
import pytest
from scipy.linalg import sqrtm
from sklearn.metrics import mutual_info_score

import codes
from pyvae.metrics import unsupervised
from pyvae.metrics.sampling import Draw, draw_key, draw_points

N = 768


def exact_covariance(covariance, seed=0):
    """N codes of exactly this covariance."""
    z = codes.noise(N, len(covariance), seed)
    z = z - z.mean(0)
    whitened = z @ np.linalg.inv(np.linalg.cholesky(np.cov(z, rowvar=False))).T
    return whitened @ np.linalg.cholesky(covariance).T


def measure(z, **options):
    return unsupervised(codes.table(z), **{"points": None} | options)


@pytest.mark.parametrize("rho", [0.0, 0.3, -0.9])
def test_total_correlation_of_two_latents(rho):
    found = measure(exact_covariance(np.array([[4.0, 2 * rho], [2 * rho, 1.0]])))
    assert found.gaussian_total_correlation == pytest.approx(-0.5 * np.log(1 - rho**2), abs=1e-5)
    # equal variances: the eigenvalues of sqrt(C) are sqrt(1 + rho) and sqrt(1 - rho)
    found = measure(exact_covariance(np.array([[1.0, rho], [rho, 1.0]])))
    distance = 4 - 2 * (np.sqrt(1 + rho) + np.sqrt(1 - rho))
    assert found.gaussian_wasserstein_correlation == pytest.approx(distance, abs=1e-5)
    assert found.gaussian_wasserstein_correlation_norm == pytest.approx(distance / 2, abs=1e-5)


@pytest.mark.parametrize("points", [None, 500])
def test_slow_recomputation(points):
    z = (codes.noise(N, 5) @ codes.noise(5, 5, 1)).astype(np.float32)
    found = measure(z, points=points, seed=4, bins=12)
    z = z if points is None else z[draw_points(points, N, draw_key(4, Draw.UNSUPERVISED)).numpy()]
    z = z.astype(np.float64)
    c = np.cov(z.T)
    assert found.gaussian_total_correlation == pytest.approx(
        0.5 * (np.log(np.diag(c)).sum() - np.log(np.linalg.det(c)))
    )
    w = 2 * np.trace(c) - 2 * np.trace(sqrtm(sqrtm(c) @ np.diag(np.diag(c)) @ sqrtm(c))).real
    assert found.gaussian_wasserstein_correlation == pytest.approx(w)
    assert found.gaussian_wasserstein_correlation_norm == pytest.approx(w / np.trace(c))
    binned = [np.digitize(column, np.linspace(column.min(), column.max(), 13)[:-1]) for column in z.T]
    information = [mutual_info_score(binned[i], binned[j]) for i in range(5) for j in range(5) if i != j]
    assert found.mutual_information == pytest.approx(np.mean(information))


def test_independent_latents():
    found = unsupervised(codes.table(codes.perfect(codes.DSPRITES), codes.DSPRITES), points=None)
    assert found == pytest.approx((0, 0, 0, 0), abs=1e-6)


def test_order_sign_and_scale():
    z = codes.noise(N, 4) @ codes.noise(4, 4, 1)
    expected = measure(z)
    assert measure(-z[:, [2, 0, 3, 1]]) == pytest.approx(expected)
    scaled = measure(z * [2, 16, 0.5, 1])
    assert scaled.gaussian_total_correlation == pytest.approx(expected.gaussian_total_correlation)
    assert scaled.mutual_information == pytest.approx(expected.mutual_information)
    twice = measure(2 * z)
    assert twice.gaussian_wasserstein_correlation == pytest.approx(
        4 * expected.gaussian_wasserstein_correlation
    )
    assert twice.gaussian_wasserstein_correlation_norm == pytest.approx(
        expected.gaussian_wasserstein_correlation_norm
    )


def test_duplicated_and_rotated_latents():
    z = codes.perfect(codes.SMALL)
    twice = measure(np.concatenate([z, z], 1))
    assert twice.gaussian_total_correlation > 10
    assert twice.gaussian_wasserstein_correlation_norm == pytest.approx(2 - 2**0.5, abs=1e-5)
    turned = codes.rotated(z * [1, 1, 3, 1], 2, 3)
    assert measure(turned).gaussian_total_correlation > 0.1


def test_constant_latents_are_independent():
    z = codes.noise(N, 3) @ codes.noise(3, 3, 1)
    expected = measure(z)
    found = measure(np.concatenate([z, np.full((N, 2), 0.1)], 1))
    assert found[:3] == pytest.approx(expected[:3])
    assert found.mutual_information == pytest.approx(expected.mutual_information * 6 / 20)
    assert measure(np.ones((N, 3))) == (0, 0, 0, 0)


def test_refusals():
    with pytest.raises(ValueError, match="points: 10000 asked for, the table has 768"):
        unsupervised(codes.table(codes.noise(N, 3)))
    with pytest.raises(ValueError, match="compares latents"):
        measure(codes.noise(N, 1))
