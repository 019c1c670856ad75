"""posterior_entropy against brute force, closed forms and samples; the compiled density against the reference."""

import math
import time

import pytest
import torch

from pyvae import native, reference
from pyvae.ops.posterior_entropy import posterior_entropy, sampled_entropy

built = pytest.mark.skipif(native.load() is not None, reason=str(native.load()))


def brute_force(mu, logvar, keep):
    """-integral q log q on a very fine grid in float64, one latent, the images ``keep`` alone."""
    m, s = mu[keep].double(), (logvar[keep].double() / 2).exp()
    z = torch.linspace(float((m - 12 * s).min()), float((m + 12 * s).max()), 40_001, dtype=torch.float64)
    q = torch.distributions.Normal(m, s).log_prob(z[:, None]).exp().mean(1)
    return float(-torch.trapezoid(torch.special.xlogy(q, q), z))


def grid(*sizes):
    return torch.cartesian_prod(*(torch.arange(n) for n in sizes))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_marginal_and_conditionals_against_brute_force(dtype):
    sizes = (3, 2, 4)
    torch.manual_seed(0)
    mu, logvar = torch.randn(24, 3, dtype=torch.float64), torch.randn(24, 3, dtype=torch.float64) - 1
    found = posterior_entropy(mu.to(dtype), logvar.to(dtype), sizes)
    classes, tolerance = grid(*sizes), 1e-6 if dtype == torch.float64 else 2e-5
    assert [tuple(c.shape) for c in found.conditional] == [(3, 3), (3, 2), (3, 4)]
    for j in range(3):
        everything = torch.ones(24, dtype=torch.bool)
        assert float(found.marginal[j]) == pytest.approx(
            brute_force(mu[:, j], logvar[:, j], everything), abs=tolerance
        )
        for f, size in enumerate(sizes):
            for c in range(size):
                expected = brute_force(mu[:, j], logvar[:, j], classes[:, f] == c)
                assert float(found.conditional[f][j, c]) == pytest.approx(expected, abs=tolerance)


def gaussian(sigma):
    return 0.5 * math.log(2 * math.pi * math.e * sigma**2)


def test_closed_forms():
    far = torch.arange(6, dtype=torch.float64)[:, None] * 100
    sigma = torch.full((6, 1), 0.3, dtype=torch.float64)
    logvar = 2 * sigma.log()
    one = posterior_entropy(far[:1], logvar[:1], (1,))
    assert float(one.marginal) == pytest.approx(gaussian(0.3), abs=1e-7)
    together = posterior_entropy(torch.zeros_like(far), logvar, (2, 3))
    assert float(together.marginal) == pytest.approx(gaussian(0.3), abs=1e-7)
    apart = posterior_entropy(far, logvar, (2, 3))
    assert float(apart.marginal) == pytest.approx(gaussian(0.3) + math.log(6), abs=1e-6)
    torch.testing.assert_close(
        apart.conditional[0],
        torch.full((1, 2), gaussian(0.3) + math.log(3), dtype=torch.float64),
        rtol=0,
        atol=1e-6,
    )


def test_narrow_posteriors_are_refined_until_the_half_grid_agrees():
    mu = torch.linspace(-3, 3, 40, dtype=torch.float64)[:, None]
    logvar = torch.full((40, 1), 2 * math.log(0.01), dtype=torch.float64)
    found = posterior_entropy(mu, logvar, (40,), nodes=16)
    assert float(found.error) <= 1e-5
    assert float(found.marginal) == pytest.approx(gaussian(0.01) + math.log(40), abs=1e-5)


def test_what_cannot_be_resolved_is_said():
    mu = torch.tensor([[0.0], [1e6]], dtype=torch.float64)
    with pytest.raises(RuntimeError, match="nats is left at"):
        posterior_entropy(mu, torch.full((2, 1), -10.0, dtype=torch.float64), (2,))


def test_the_sampled_estimator_agrees_within_its_error():
    torch.manual_seed(1)
    mu, logvar = torch.randn(600, 2) * torch.tensor([1.0, 0.05]), torch.randn(600, 2) * 0.3 - 2
    index = torch.randint(600, (4000,))
    z = mu[index] + (logvar[index] / 2).exp() * torch.randn(4000, 2)
    entropy, error = sampled_entropy(z, mu, logvar)
    exact = posterior_entropy(mu, logvar, (20, 30)).marginal
    assert bool(((entropy - exact).abs() < 4 * error).all())
    assert bool((error < 0.03).all())


def test_sampled_estimator_is_its_formula():
    torch.manual_seed(2)
    mu, logvar, z = (torch.randn(n, 2, dtype=torch.float64) for n in (7, 7, 5))
    q = torch.distributions.Normal(mu, (logvar / 2).exp()).log_prob(z[:, None]).exp().mean(1)
    entropy, error = sampled_entropy(z, mu, logvar, chunk=2)
    torch.testing.assert_close(entropy, -q.log().mean(0))
    torch.testing.assert_close(error, q.log().std(0) / 5**0.5)


def test_wrong_arguments():
    mu = torch.zeros(6, 2)
    with pytest.raises(ValueError, match=r"mu: expected \[8, D\], the grid of \(2, 4\), got \[6, 2\]"):
        posterior_entropy(mu, mu, (2, 4))
    with pytest.raises(ValueError, match="NaN"):
        posterior_entropy(mu * float("nan"), mu, (2, 3))
    with pytest.raises(ValueError, match="nodes: at least 4"):
        posterior_entropy(mu, mu, (2, 3), nodes=2)
    with pytest.raises(ValueError, match=r"z: expected \[samples, 2\], got \[4, 3\]"):
        sampled_entropy(torch.zeros(4, 3), mu, mu)


def posteriors(*sizes, latents=3, sharpness=1.0):
    generator = torch.Generator().manual_seed(sum(sizes))
    mu, logvar = torch.randn(2, math.prod(sizes), latents, generator=generator)
    return mu, logvar - sharpness


@built
@pytest.mark.parametrize("nodes", [4, 62, 64, 66, 512])
@pytest.mark.parametrize(
    "sizes",
    [
        (1,),
        (5,),
        (2, 3),
        (3, 1, 2),
        (1, 7, 1),
        (600, 2),
        (2, 600),
        (2, 1500),
        (3, 6, 4, 8, 8),
        (2, 2, 2, 2, 2, 2),
    ],
    ids=str,
)
def test_compiled_density_is_the_reference(sizes, nodes):
    mu, logvar = (x.mT.contiguous() for x in posteriors(*sizes))
    low, step = reference.quadrature_grid(mu, logvar, nodes)
    found = torch.ops.pyvae_native.posterior_density(mu, logvar, low, step, list(sizes), nodes)
    exact = reference.posterior_density(mu.double(), logvar.double(), low, step, list(sizes), nodes)
    torch.testing.assert_close(found, exact, rtol=3e-6, atol=1e-10)


@built
@pytest.mark.parametrize("sharpness", [-2.0, 1.0, 6.0, 9.0])
def test_compiled_entropies_are_the_reference(sharpness, monkeypatch):
    sizes = (3, 5, 8)
    mu, logvar = posteriors(*sizes, sharpness=sharpness)
    monkeypatch.setenv("PYVAE_BACKEND", "native")
    found = posterior_entropy(mu, logvar, sizes)
    exact = posterior_entropy(mu.double(), logvar.double(), sizes, tol=1e-9)
    assert bool((found.error <= 1e-5).all())
    for a, b in zip((found.marginal, *found.conditional), (exact.marginal, *exact.conditional), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


@built
def test_posteriors_far_from_zero_are_not_blurred_by_float32_nodes(monkeypatch):
    monkeypatch.setenv("PYVAE_BACKEND", "native")
    mu = torch.linspace(1000, 1001, 24)[:, None]
    found = posterior_entropy(mu, torch.full_like(mu, -9.0), (4, 6))
    exact = posterior_entropy(mu.double(), torch.full_like(mu, -9.0).double(), (4, 6))
    torch.testing.assert_close(found.marginal, exact.marginal, rtol=0, atol=1e-5)


def test_nodes_are_exact_in_float32():
    for scale in (1e-3, 1.0, 300.0):
        mu, logvar = (x.mT for x in posteriors(4, 6))
        low, step = reference.quadrature_grid(mu * scale, logvar - 4, 4096)
        z = low[:, None] + torch.arange(4096) * step[:, None]
        assert torch.equal(z.float().double(), z)
        reach = 8 * torch.exp(logvar / 2 - 2)
        assert bool((z[:, 0] <= (mu * scale - reach).amin(-1)).all())
        assert bool((z[:, -1] >= (mu * scale + reach).amax(-1) - step).all())


def test_latents_are_refined_by_themselves():
    """The wide latent stays at 16 nodes, and with it its entropy; the sharp one does not."""
    calls = []

    def density(mu, logvar, low, step, sizes, nodes):
        calls.append((len(mu), nodes))
        return reference.posterior_density(mu, logvar, low, step, sizes, nodes)

    mu = torch.linspace(-3, 3, 40, dtype=torch.float64)[:, None] * torch.tensor([0.0, 1.0])
    logvar = torch.tensor([0.0, -8.0], dtype=torch.float64).expand(40, 2)
    found = reference.refined_entropy(density, mu, logvar, (5, 8), 16, 1e-5)
    assert calls[0] == (2, 16)
    assert len(calls) > 3
    assert calls[-1] == (1, 16 * 2 ** (len(calls) - 1))
    alone = posterior_entropy(mu[:, :1], logvar[:, :1], (5, 8), nodes=16)
    assert found.marginal[0] == alone.marginal[0]


def test_a_grid_that_misses_every_posterior_is_not_taken():
    mu = torch.tensor([[0.0], [1000.0]], dtype=torch.float64)
    found = posterior_entropy(mu, torch.full_like(mu, -6.0), (2,), nodes=4)
    assert float(found.marginal) == pytest.approx(gaussian(math.exp(-3)) + math.log(2), abs=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(dtype):
    mu, logvar = (x.to(dtype) for x in posteriors(3, 4))
    found, same = posterior_entropy(mu, logvar, (3, 4)), posterior_entropy(mu.float(), logvar.float(), (3, 4))
    assert torch.equal(found.marginal, same.marginal)


def test_the_marginal_is_that_of_every_factor():
    mu, logvar = posteriors(3, 4, 5)
    by_axis = posterior_entropy(mu, logvar, (3, 4, 5)), posterior_entropy(mu, logvar, (12, 5))
    torch.testing.assert_close(by_axis[0].marginal, by_axis[1].marginal, rtol=0, atol=1e-6)
    torch.testing.assert_close(by_axis[0].conditional[2], by_axis[1].conditional[1], rtol=0, atol=1e-6)


@pytest.mark.slow
def test_full_size(capsys):
    sizes = (3, 6, 40, 32, 32)
    torch.manual_seed(0)
    classes = grid(*sizes).float()
    mu = torch.stack([classes[:, 4] / 16 - 1, classes[:, 1] / 3 - 1, torch.zeros(len(classes))], 1)
    logvar = torch.tensor([math.log(0.03), math.log(0.1), 0.0]) * 2 + 0.1 * torch.randn(len(classes), 3)
    start = time.perf_counter()
    found = posterior_entropy(mu, logvar, sizes)
    with capsys.disabled():
        print(f"\n{(time.perf_counter() - start) / 3:.2f} s a latent")
    assert bool((found.error <= 1e-5).all())
    # position: H(z) - H(z | posY) is near log 32 for a sharp code
    information = found.marginal[0] - found.conditional[4][0].mean()
    assert 2.0 < float(information) < math.log(32)
    assert abs(float(found.marginal[2] - found.conditional[0][2].mean())) < 1e-3
