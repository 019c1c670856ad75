"""posterior_entropy against brute force, closed forms and samples; the compiled density against the reference."""

import math
import time

import pytest
import torch

from pyvae import reference
from pyvae.base import native
from pyvae.ops.posterior_entropy import posterior_entropy, sampled_entropy
from pyvae.reference import panels
from pyvae.reference.panels import mixture_entropies
from pyvae.reference.posterior_entropy import _entropy_by_panels

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


def test_sharp_posteriors_that_lie_apart_have_a_closed_form():
    """As after a long training of beta 0: e^-15 wide, at distances of some units."""
    for scale in (1.0, 1e3, 1e6):
        mu = torch.randn(24, 2, generator=torch.Generator().manual_seed(0)) * scale
        for logvar in (-30.0, -60.0, -99.0):
            found = posterior_entropy(mu, torch.full_like(mu, logvar), (2, 3, 4))
            own = gaussian(math.exp(logvar / 2))
            assert bool((found.error <= 1e-5).all())
            for entropy, images in zip((found.marginal, *found.conditional), (24, 12, 8, 6), strict=True):
                assert entropy.flatten().tolist() == pytest.approx(
                    [own + math.log(images)] * entropy.numel(), abs=1e-6
                )


def test_the_grid_is_not_tried_where_it_cannot_do_and_not_kept_where_it_did_not():
    calls = []

    def density(mu, logvar, low, step, sizes, nodes):
        calls.append(nodes)
        return reference.posterior_density(mu, logvar, low, step, sizes, nodes)

    mu = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
    # 1e-5 is less than the 65,536th part of the range; 2e-5 is more, and not enough for every other node
    for sigma, tries in ((1e-5, []), (2e-5, [1 << 15, 1 << 16])):
        calls.clear()
        logvar = torch.full_like(mu, 2 * math.log(sigma))
        found = reference.refined_entropy(density, mu, logvar, (2,), 1 << 15, 1e-6)
        assert calls == tries
        assert float(found.marginal) == pytest.approx(gaussian(sigma) + math.log(2), abs=1e-6)
        assert float(found.error) <= 1e-6


def test_sharp_posteriors_of_a_few_places():
    """Of a latent that is a class, each image of a class at the same place: all that the class leaves is one's own."""
    classes = grid(3, 5, 4)
    mu = torch.stack([classes[:, 1] * 1.7 - 3, classes[:, 0] * 1e-6], 1).float()
    found = posterior_entropy(mu, torch.full_like(mu, -40.0), (3, 5, 4))
    own = gaussian(math.exp(-20))
    assert found.marginal.tolist() == pytest.approx([own + math.log(5), own + math.log(3)], abs=1e-5)
    assert found.conditional[1][0].tolist() == pytest.approx([own] * 5, abs=1e-5)
    assert found.conditional[2][0].tolist() == pytest.approx([own + math.log(5)] * 4, abs=1e-5)
    assert found.conditional[0][1].tolist() == pytest.approx([own] * 3, abs=1e-5)


def test_sharp_posteriors_among_wide_ones():
    """Half of the images 1e-7 wide and apart, half in one wide Gaussian: where each lies, the mixture is known."""
    mu = torch.cat([torch.arange(1, 9) / 4.0, torch.zeros(8)]).double()[:, None]
    sigma = torch.cat([torch.full((8,), 1e-7), torch.ones(8)]).double()[:, None]
    found = posterior_entropy(mu, 2 * sigma.log(), (2, 8))
    # a sharp one has a sixteenth of the mass, before which the wide ones are nothing; these have a half
    sharp, wide = gaussian(1e-7) + math.log(16), gaussian(1) + math.log(2)
    assert float(found.marginal) == pytest.approx(sharp / 2 + wide / 2, abs=2e-5)
    assert found.conditional[0][0].tolist() == pytest.approx(
        [gaussian(1e-7) + math.log(8), gaussian(1)], abs=1e-6
    )
    pairs = gaussian(1e-7) / 2 + gaussian(1) / 2 + math.log(2)
    assert found.conditional[1][0].tolist() == pytest.approx([pairs] * 8, abs=2e-5)


@pytest.mark.parametrize("spread", [0.0, 1.5, 4.0])
def test_panels_agree_with_brute_force(spread):
    """Overlapping Gaussians of widths up to e^(2 spread) apart, in groups of one, two and many."""
    generator = torch.Generator().manual_seed(3)
    mu = torch.randn(70, generator=generator, dtype=torch.float64)
    logvar = 2 * spread * torch.rand(70, generator=generator, dtype=torch.float64) - spread - 5
    group = torch.cat([torch.tensor([3, 2, 0, 2]), torch.full((66,), 1)])
    entropy, error = mixture_entropies(mu, (logvar / 2).exp(), group, 4, 1e-9)
    assert bool((error <= 1e-9).all())
    for g in range(4):
        assert float(entropy[g]) == pytest.approx(brute_force(mu, logvar, group == g), abs=1e-7)


def test_panels_and_the_grid_agree_where_both_can():
    mu, logvar = (x.double() for x in posteriors(3, 5, 8, sharpness=6.0))
    found = posterior_entropy(mu, logvar, (3, 5, 8), tol=1e-7)
    for d in range(3):
        entropy, error = _entropy_by_panels(mu[:, d], logvar[:, d], [3, 5, 8], 1e-7)
        assert float(error) <= 1e-7
        expected = torch.cat([found.marginal[d : d + 1], *(c[d] for c in found.conditional)])
        torch.testing.assert_close(entropy, expected, rtol=0, atol=2e-7)


def test_panels_in_slabs_are_those_of_one(monkeypatch):
    mu = torch.cat([torch.arange(300) * 5.0, torch.randn(300), torch.full((3,), 1e9)]).double()
    sigma = torch.ones(603, dtype=torch.float64) * 0.5
    group = torch.arange(603) % 2
    whole, _ = mixture_entropies(mu, sigma, group, 2, 1e-6)
    for at_once in (1, 7, 250):
        monkeypatch.setattr(panels, "_AT_ONCE", at_once)
        monkeypatch.setattr(panels, "_VALUES_AT_ONCE", 1000)
        torch.testing.assert_close(mixture_entropies(mu, sigma, group, 2, 1e-6)[0], whole, rtol=0, atol=1e-12)


def test_what_cannot_be_resolved_is_said():
    mu = torch.tensor([[0.0], [0.5]], dtype=torch.float64)
    with pytest.raises(ValueError, match="Gaussians lie among others more than 1e15 times as wide"):
        posterior_entropy(mu, torch.tensor([[0.0], [-90.0]], dtype=torch.float64), (2,))
    with pytest.raises(ValueError, match=r"nats is left in latent 0, more than 1e-15: ask for a larger tol"):
        posterior_entropy(torch.randn(8, 1).double(), torch.full((8, 1), -40.0).double(), (8,), tol=1e-15)


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
    for mu in (torch.zeros(0, 2), torch.zeros(2, 3, 4)):
        with pytest.raises(ValueError, match=r"mu: expected \[N, D\] with N at least 1, got"):
            posterior_entropy(mu, mu)
    mu = torch.zeros(6, 2)
    with pytest.raises(ValueError, match=r"mu: expected \[8, D\], the grid of \(2, 4\), got \[6, 2\]"):
        posterior_entropy(mu, mu, (2, 4))
    with pytest.raises(ValueError, match="NaN"):
        posterior_entropy(mu * float("nan"), mu, (2, 3))
    with pytest.raises(ValueError, match="nodes: at least 4"):
        posterior_entropy(mu, mu, (2, 3), nodes=2)
    with pytest.raises(ValueError, match=r"z: expected \[samples, 2\], got \[4, 3\]"):
        sampled_entropy(torch.zeros(4, 3), mu, mu)
    with pytest.raises(ValueError, match="logvar: NaN or a magnitude above 100"):
        sampled_entropy(mu, mu, mu + 101)
    with pytest.raises(ValueError, match="z: holds NaN"):
        sampled_entropy(mu / 0, mu, mu)
    with pytest.raises(ValueError, match="chunk: expected at least 1, got -1"):
        sampled_entropy(mu, mu, mu, chunk=-1)


@pytest.mark.parametrize("logvar", [-99.0, 99.0])
def test_samples_of_the_sharpest_and_the_widest(logvar):
    noise = torch.randn(4000, 1, generator=torch.Generator().manual_seed(0))
    entropy, error = sampled_entropy(
        math.exp(logvar / 2) * noise, torch.zeros(3, 1), torch.full((3, 1), logvar)
    )
    assert abs(float(entropy) - gaussian(math.exp(logvar / 2))) < 4 * float(error) < 0.1


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


@pytest.mark.parametrize("rows", [1, 2, 6, 1001])
def test_posteriors_of_any_number_have_marginal_entropies(rows):
    torch.manual_seed(0)
    mu, logvar = torch.randn(rows, 3), torch.randn(rows, 3) - 1
    logvar[:, 2] = -30.0
    found = posterior_entropy(mu, logvar)
    one_factor = posterior_entropy(mu, logvar, (rows,))
    assert found.conditional == ()
    assert found.marginal.tolist() == pytest.approx(one_factor.marginal.tolist(), abs=2e-6)
    assert float(found.error.max()) <= 1e-5
    exact = reference.posterior_entropy(mu[:, :2].double(), logvar[:, :2].double())
    expected = [brute_force(mu[:, j], logvar[:, j], torch.ones(rows, dtype=torch.bool)) for j in (0, 1)]
    assert exact.marginal.tolist() == pytest.approx(expected, abs=1e-6)


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


def test_it_is_no_constant_of_a_loss():
    mu = torch.zeros(6, 1, requires_grad=True)
    for function in (posterior_entropy, reference.posterior_entropy):
        with pytest.raises(RuntimeError, match=r"no derivative: give it x.detach\(\)"):
            function(mu, torch.zeros(6, 1), (2, 3))
        with torch.no_grad():
            assert torch.isfinite(function(mu, torch.zeros(6, 1), (2, 3)).marginal).all()
