"""Importance-weighted bounds and gradient estimators, against plain definitions in float64."""

import math
from itertools import product

import pytest
import torch
from torch import nn
from torch.distributions import Bernoulli, Normal

import pyvae
from pyvae import random, reference
from pyvae.errors import RecipeError
from pyvae.objectives.importance import (
    GRADIENTS,
    effective_sample_size,
    importance_bounds,
    importance_loss,
    importance_samples,
    sample_posterior,
)
from pyvae.objectives.iwae import CIWAE, IWAE, MIWAE, PIWAE
from pyvae.objectives.objective import TERMS
from pyvae.random import Stream, make_key

BETA = 0.3
STOPPED = [gradient for gradient in GRADIENTS if gradient != "total"]


def weights(*shape, scale=2.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(shape, generator=generator, dtype=torch.float64) - 90


def bounds_of(log_w, bound, gradient="total"):
    return importance_bounds(log_w, bound, beta=BETA if bound == "ciwae" else None, gradient=gradient)


def log_mean_exp(values):
    highest = max(values)
    return highest + math.log(sum(math.exp(v - highest) for v in values) / len(values))


def values_by_hand(log_w):
    """Bounds of one image from a nested list of M lists of K."""
    everything = [v for group in log_w for v in group]
    miwae = sum(log_mean_exp(group) for group in log_w) / len(log_w)
    elbo = sum(everything) / len(everything)
    iwae = log_mean_exp(everything)
    return {
        "iwae": (iwae, iwae),
        "miwae": (miwae, miwae),
        "piwae": (iwae, miwae),
        "ciwae": (BETA * elbo + (1 - BETA) * miwae,) * 2,
    }


@pytest.mark.parametrize("sizes", [(2, 5), (5, 2), (1, 7), (7, 1)])
@pytest.mark.parametrize("bound", ["iwae", "miwae", "piwae", "ciwae"])
def test_values_are_those_of_the_definitions(bound, sizes):
    log_w = weights(3, *sizes)
    got = bounds_of(log_w, bound)
    for b in range(3):
        expected = values_by_hand(log_w[b].tolist())[bound]
        assert (float(got.value[b]), float(got.phi_value[b])) == pytest.approx(expected, rel=1e-13)
    assert got.theta.shape == got.phi.shape == log_w.shape


@pytest.mark.parametrize("bound", ["iwae", "miwae", "piwae", "ciwae"])
def test_coefficients_of_the_total_gradient_are_the_derivatives_of_the_values(bound):
    log_w = weights(3, 2, 5).requires_grad_()
    everything = log_w.flatten(1)
    iwae = torch.logsumexp(everything, 1)
    miwae = torch.logsumexp(log_w, 2).mean(1)
    ciwae = BETA * everything.mean(1) + (1 - BETA) * miwae
    targets = {
        "iwae": (iwae, iwae),
        "miwae": (miwae, miwae),
        "piwae": (iwae, miwae),
        "ciwae": (ciwae, ciwae),
    }
    got = bounds_of(log_w, bound)
    for coefficients, target in zip((got.theta, got.phi), targets[bound], strict=True):
        (expected,) = torch.autograd.grad(target.sum(), log_w, retain_graph=True)
        torch.testing.assert_close(coefficients, expected, rtol=1e-12, atol=1e-16)
        torch.testing.assert_close(coefficients.sum((1, 2)), torch.ones(3, dtype=torch.float64))
    assert not any(x.requires_grad for x in got)


def test_coefficients_of_the_other_estimators():
    """The table: v is normalised over K for STL, DReG and RWS-DReG of MIWAE, over all samples for IWAE."""
    log_w = weights(3, 2, 5)
    inner = log_w.exp() / log_w.exp().sum(2, keepdim=True)
    joint = log_w.exp() / log_w.exp().sum((1, 2), keepdim=True)
    makes = {"stl": lambda v: v, "dreg": lambda v: v**2, "rws-dreg": lambda v: v - v**2}
    for gradient, make in makes.items():
        expected = {
            "iwae": (joint, make(joint)),
            "miwae": (inner / 2, make(inner) / 2),
            "piwae": (joint, make(inner) / 2),
        }
        if gradient != "rws-dreg":
            expected["ciwae"] = tuple(BETA / 10 + (1 - BETA) * v / 2 for v in (inner, make(inner)))
        for bound, pair in expected.items():
            got = bounds_of(log_w, bound, gradient)
            torch.testing.assert_close((got.theta, got.phi), pair, rtol=1e-11, atol=1e-15)


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_one_bound_is_another_at_the_ends(gradient):
    def same(a, b):
        for x, y in zip(a, b, strict=True):
            torch.testing.assert_close(x, y, rtol=1e-12, atol=1e-15)

    one_group = weights(3, 1, 6)
    iwae = importance_bounds(one_group, "iwae", gradient=gradient)
    same(importance_bounds(one_group, "miwae", gradient=gradient), iwae)
    same(importance_bounds(one_group, "piwae", gradient=gradient), iwae)
    if gradient == "rws-dreg":
        return
    same(importance_bounds(one_group, "ciwae", beta=0, gradient=gradient), iwae)
    single = weights(3, 6, 1)
    vae = importance_bounds(single, "miwae", gradient=gradient)
    torch.testing.assert_close(vae.value, single.mean((1, 2)))
    assert torch.equal(vae.theta, torch.full_like(single, 1 / 6))
    assert torch.equal(vae.phi, vae.theta)
    if gradient != "dreg":
        ends = importance_bounds(one_group, "ciwae", beta=1, gradient=gradient)
        torch.testing.assert_close(ends.value, one_group.mean((1, 2)))
        assert torch.equal(ends.theta, torch.full_like(one_group, 1 / 6))
        assert torch.equal(ends.phi, ends.theta)


def test_stl_is_dreg_with_one_sample():
    log_w = weights(3, 4, 1)
    for bound in ("miwae", "ciwae", "piwae"):
        stl, dreg = (bounds_of(log_w, bound, gradient) for gradient in ("stl", "dreg"))
        assert torch.equal(stl.phi, dreg.phi)
    apart = (importance_bounds(weights(3, 4, 2), "miwae", gradient=g).phi for g in ("stl", "dreg"))
    assert not torch.allclose(*apart)


def test_the_value_is_no_weighted_mean_of_log_weights():
    log_w = weights(3, 1, 6)
    bounds = importance_bounds(log_w)
    weighted = (bounds.theta * log_w).sum((1, 2))
    entropy = -torch.xlogy(bounds.theta, bounds.theta).sum((1, 2))
    torch.testing.assert_close(weighted, bounds.value + math.log(6) - entropy)
    assert bool((weighted > bounds.value + 0.1).all())


def test_effective_sample_size():
    log_w = weights(100, 3, 6)
    ess = effective_sample_size(log_w)
    assert ess.shape == (100, 3)
    w = log_w.exp()
    torch.testing.assert_close(ess, w.sum(2) ** 2 / w.square().sum(2))
    assert 1 <= float(ess.min()) < float(ess.max()) <= 6
    torch.testing.assert_close(effective_sample_size(log_w + 1e4), ess, rtol=1e-9, atol=0)
    assert torch.equal(effective_sample_size(torch.zeros(4)), torch.tensor(4.0))
    assert float(effective_sample_size(torch.tensor([0.0, -1e4, -1e4]))) == 1


def toy(rows, samples, latents=20, seed=1):
    """log w - log p(x) of z ~ N(0, I), x|z ~ N(z, I) and q = N(x / 2, 2/3 I), whose mean is the posterior's."""
    generator = torch.Generator().manual_seed(seed)
    x = 3 * torch.randn((rows, 1, latents), generator=generator)
    eps = torch.randn((rows, samples, latents), generator=generator)
    return toy_log_weight(x, x / 2 + math.sqrt(2 / 3) * eps, 2 / 3)


def toy_log_weight(x, z, variance):
    # scales in the dtype of x: a plain number becomes a float32
    prior, spread, marginal = (x.new_tensor(v).sqrt() for v in (1.0, variance, 2.0))
    joint = Normal(0 * prior, prior).log_prob(z) + Normal(z, prior).log_prob(x)
    return (joint - Normal(x / 2, spread).log_prob(z) - Normal(0 * marginal, marginal).log_prob(x)).sum(-1)


def test_the_gap_of_the_toy_is_exact_with_one_sample():
    """log w is quadratic in z: its mean over these 2 D points is its expectation."""
    latents = 20
    x = torch.linspace(-3, 4, latents, dtype=torch.float64)
    directions = torch.eye(latents, dtype=torch.float64) * math.sqrt(latents * 2 / 3)
    z = x / 2 + torch.cat([directions, -directions])
    bounds = importance_bounds(toy_log_weight(x, z, 2 / 3).view(1, 2 * latents, 1), "miwae")
    assert float(-bounds.value) == pytest.approx(10 * (math.log(0.75) + 1 / 3), abs=1e-12)
    assert float(-bounds.value) == pytest.approx(0.4565, abs=1e-4)


def test_more_samples_are_tighter():
    gaps = []
    for samples, rows in [(1, 40_000), (8, 20_000), (64, 3_000)]:
        log_w = toy(rows, samples)
        value = importance_bounds(log_w.unsqueeze(1)).value
        # mean w / p(x) has expectation 1 and most of the variance
        control = log_w.exp().mean(1) - 1
        gaps.append(float((control - value).mean()))
    assert gaps == pytest.approx([0.4565, 0.0545, 0.0066], abs=0.006)
    assert gaps[0] > gaps[1] > gaps[2] > 0


def test_an_exact_posterior_has_no_gap():
    x = torch.randn(5, 1, 3, dtype=torch.float64)
    z = x / 2 + math.sqrt(0.5) * torch.randn(5, 8, 3, dtype=torch.float64)
    log_w = toy_log_weight(x, z, 0.5).unsqueeze(1)
    torch.testing.assert_close(log_w, torch.zeros_like(log_w), rtol=0, atol=1e-12)
    for bound in ("iwae", "miwae", "ciwae"):
        assert float(bounds_of(log_w, bound).value.abs().max()) < 1e-12
    torch.testing.assert_close(effective_sample_size(log_w), torch.full((5, 1), 8.0, dtype=torch.float64))


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"bound": "vae"}, ValueError, "bound: expected one of iwae, miwae, piwae, ciwae, got 'vae'"),
        ({"gradient": "vimco"}, ValueError, "gradient: expected one of total, stl"),
        ({"bound": "ciwae"}, ValueError, "beta: needed by 'ciwae'"),
        ({"beta": 0.5}, ValueError, "beta: needed by 'ciwae' and by no other"),
        ({"bound": "ciwae", "beta": 1.5}, ValueError, r"beta: expected a number in \[0, 1\], got 1.5"),
        ({"bound": "ciwae", "beta": 0.5, "gradient": "rws-dreg"}, ValueError, "rws-dreg"),
    ],
)
def test_wrong_options(options, error, match):
    with pytest.raises(error, match=match):
        importance_bounds(weights(3, 2, 5), **options)


def test_wrong_arguments():
    with pytest.raises(TypeError, match=r"float32 or float64, got torch\.bfloat16"):
        importance_bounds(weights(3, 2, 5).bfloat16())
    with pytest.raises(ValueError, match=r"expected shape \[..., B, M, K\], got \[3, 5\]"):
        importance_bounds(weights(3, 5))
    with pytest.raises(ValueError, match="log_weight: expected shape"):
        importance_bounds(weights(3, 2, 0))
    mu = torch.zeros(3, 2)
    with pytest.raises(ValueError, match="got M = 0 and K = 4"):
        sample_posterior(mu, mu, 0, 4)
    with pytest.raises(ValueError, match="key: shape"):
        sample_posterior(mu, mu, 2, 4, key=make_key(1).expand(3, 2))
    with pytest.raises(ValueError, match="gradient: expected one of"):
        importance_samples(mu, mu, torch.zeros(3, 5), nn.Linear(2, 5), 2, 3, gradient="vimco")
    for make in (lambda: IWAE(samples=0), lambda: MIWAE(outer=0), lambda: PIWAE(samples=-1)):
        with pytest.raises(RecipeError, match="must be at least 1"):
            make()
    with pytest.raises(RecipeError, match="beta must be at most 1, got 2"):
        CIWAE(beta=2)


def latents(*shape, dtype=torch.float64, seed=3):
    generator = torch.Generator().manual_seed(seed)
    return tuple(
        torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
        for _ in range(2)
    )


@pytest.mark.parametrize("backend", ["reference", "triton"])
def test_rows_of_the_noise(device, monkeypatch, backend):
    monkeypatch.setenv("PYVAE_BACKEND", backend)
    mu, logvar = (x.detach().to(device) for x in latents(3, 5, dtype=torch.float32))
    key = make_key(4, 7, device)
    z, kl = sample_posterior(mu, logvar, 2, 4, key=key)
    noise = random.normal(key, 3 * 2 * 4, 5, Stream.POSTERIOR)
    assert z.shape == (3, 2, 4, 5)
    for b, m, k in product(range(3), range(2), range(4)):
        expected = mu[b] + (logvar[b] / 2).exp() * noise[(b * 2 + m) * 4 + k]
        torch.testing.assert_close(z[b, m, k], expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(kl, pyvae.reparameterize_kl(mu, logvar)[1], rtol=1e-5, atol=1e-6)


def test_members_draw_what_they_would_draw_alone():
    mu, logvar = latents(2, 3, 5)
    keys = torch.stack([make_key(1, 9), make_key(2, 9)])
    z, kl = sample_posterior(mu, logvar, 2, 4, key=keys)
    for i in range(2):
        alone = sample_posterior(mu[i], logvar[i], 2, 4, key=keys[i])
        assert torch.equal(z[i], alone[0])
        torch.testing.assert_close(kl[i], alone[1])
    together = sample_posterior(mu, logvar, 2, 4, key=keys[0])[0]
    assert torch.equal(together[0], z[0])
    assert int((together[1] == z[1]).sum()) == 0


def test_gradients_of_the_samples():
    mu, logvar = latents(3, 2)
    key = make_key(1)
    z, _ = sample_posterior(mu, logvar, 2, 4, key=key)
    upstream = torch.randn(z.shape, dtype=torch.float64)
    noise = random.normal(key, 24, 2, Stream.POSTERIOR, torch.float64).view(z.shape)
    got = torch.autograd.grad(z, (mu, logvar), upstream)
    slope = 0.5 * (logvar / 2).exp()[:, None, None] * noise
    torch.testing.assert_close(got, (upstream.sum((1, 2)), (upstream * slope).sum((1, 2))))


class Model(nn.Module):
    """An encoder and a decoder with weights and biases at every depth; counts passes through the decoder."""

    def __init__(self, pixels=6, width=5, dims=2, dtype=torch.float64, gain=1.0):
        super().__init__()
        torch.manual_seed(5)
        self.encoder = nn.Linear(pixels, 2 * dims)
        self.decoder = nn.Sequential(nn.Linear(dims, width), nn.Tanh(), nn.Linear(width, pixels))
        self.to(dtype)
        with torch.no_grad():
            self.decoder[2].weight *= gain
        self.backwards = 0

    def encode(self, x):
        return self.encoder(x).chunk(2, -1)

    def decode(self, z):
        logits = self.decoder(z)
        if logits.requires_grad:
            logits.register_hook(self._count)
        return logits

    def _count(self, grad):
        self.backwards += 1

    def gradients(self, loss):
        loss.backward()
        return [p.grad.clone() for p in self.parameters()]


def images(batch=4, pixels=6, dtype=torch.float64):
    return (torch.rand((batch, pixels), generator=torch.Generator().manual_seed(2)) < 0.5).to(dtype)


def plain_gradients(model, x, bound, gradient, outer, samples, key):
    """Gradients of minus the bound for decoder and encoder by autograd of the definitions, one pass for each."""
    mu, logvar = model.encode(x)
    noise = random.normal(key, len(x) * outer * samples, mu.shape[-1], Stream.POSTERIOR, mu.dtype)
    scale = (logvar / 2).exp()[:, None, None]
    z = mu[:, None, None] + scale * noise.view(len(x), outer, samples, -1)
    log_p = Bernoulli(logits=model.decoder(z)).log_prob(x[:, None, None]).sum(-1)
    log_p = log_p + Normal(torch.zeros_like(z), 1.0).log_prob(z).sum(-1)
    q = (
        Normal(mu[:, None, None], scale)
        if gradient == "total"
        else Normal(mu.detach()[:, None, None], scale.detach())
    )
    log_w = log_p - q.log_prob(z).sum(-1)
    inner = torch.logsumexp(log_w, 2).mean(1)
    joint = torch.logsumexp(log_w.flatten(1), 1)
    mean = log_w.mean((1, 2))
    v_inner, v_joint = (
        torch.softmax(log_w, 2).detach(),
        torch.softmax(log_w.flatten(1), 1).view_as(log_w).detach(),
    )
    theta = {"iwae": joint, "miwae": inner, "piwae": joint, "ciwae": BETA * mean + (1 - BETA) * inner}[bound]
    if gradient in ("total", "stl"):
        phi = {**dict.fromkeys(("miwae", "piwae"), inner), "iwae": joint, "ciwae": theta}[bound]
    else:
        v = v_joint if bound == "iwae" else v_inner
        c = (v**2 if gradient == "dreg" else v - v**2) / (1 if bound == "iwae" else outer)
        phi = (c * log_w).sum((1, 2))
        if bound == "ciwae":
            phi = BETA * mean + (1 - BETA) * phi
    grads = [
        *torch.autograd.grad(-phi.mean(), list(model.encoder.parameters()), retain_graph=True),
        *torch.autograd.grad(-theta.mean(), list(model.decoder.parameters())),
    ]
    shift = {"iwae": outer * samples, "piwae": outer * samples, "miwae": samples}
    value = theta.mean() - math.log(shift[bound]) if bound in shift else None
    if bound == "ciwae":
        value = (BETA * mean + (1 - BETA) * (inner - math.log(samples))).mean()
    return float(-value.detach()), grads


CASES = [
    (bound, gradient)
    for bound, gradient in product(("iwae", "miwae", "piwae", "ciwae"), GRADIENTS)
    if (bound, gradient) != ("ciwae", "rws-dreg")
]


@pytest.mark.parametrize("sizes", [(2, 5), (3, 1)])
@pytest.mark.parametrize(("bound", "gradient"), CASES)
def test_one_backward_pass_gives_both_gradients(bound, gradient, sizes):
    model, x, key = Model(), images(), make_key(11)
    value, expected = plain_gradients(model, x, bound, gradient, *sizes, key)
    drawn = importance_samples(*model.encode(x), x, model.decode, *sizes, gradient=gradient, key=key)
    loss = importance_loss(drawn, bound, beta=BETA if bound == "ciwae" else None)
    assert float(loss.detach()) == pytest.approx(value, rel=1e-12)
    got = model.gradients(loss)
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-11)
    assert model.backwards == 1


@pytest.mark.parametrize(
    "objective", [PIWAE(2, 3, "total"), PIWAE(2, 3, "dreg"), IWAE(5, "stl"), CIWAE(4, BETA)]
)
def test_the_kernels_give_both_gradients(device, triton_backend, objective):
    model, x, key = (
        Model(dtype=torch.float32).to(device),
        images(dtype=torch.float32).to(device),
        make_key(11),
    )
    exact = Model().to(device)
    key = key.to(device)
    value, expected = plain_gradients(
        exact, x.double(), objective.bound, objective.gradient, *objective.sizes, key
    )
    terms, _ = objective.sampled_terms(*model.encode(x), reference.pack_bits(x), model.decode, key=key)
    assert float(terms["loss"].detach()) == pytest.approx(value, rel=1e-5)
    for a, b in zip(model.gradients(terms["loss"]), expected, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("gradient", ["total", "dreg"])
def test_samples_that_one_gradient_all_but_ignores_keep_the_other(gradient):
    """Groups hundreds of nats apart: in float32 theta's coefficients of most rows underflow, phi's must not."""
    model, x, key = Model(dtype=torch.float32, gain=1000.0), images(dtype=torch.float32), make_key(11)
    exact = Model(gain=1000.0)
    exact.load_state_dict(model.state_dict())
    drawn = importance_samples(*model.encode(x), x, model.decode, 4, 2, gradient=gradient, key=key)
    coefficients = importance_bounds(drawn.log_weight, "piwae", gradient=gradient)
    lost = (coefficients.theta == 0) & (coefficients.phi > 1e-3)
    assert int(lost.sum()) > 4
    value, expected = plain_gradients(exact, x.double(), "piwae", gradient, 4, 2, key)
    loss = importance_loss(drawn, "piwae")
    assert float(loss.detach()) == pytest.approx(value, rel=1e-5)
    for a, b in zip(model.gradients(loss), expected, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-3, atol=1e-3 * float(b.abs().max()))


def test_a_decoder_that_ignores_z_leaves_an_exact_posterior():
    """q is the prior and the posterior: w is constant, and only the total gradient is noisy."""
    x = images()
    for objective in (IWAE(6, "stl"), IWAE(6, "dreg"), MIWAE(2, 3, "dreg"), PIWAE(2, 3, "stl"), IWAE(6)):
        model = Model()
        nn.init.zeros_(model.decoder[2].weight)
        mu, logvar = (torch.zeros(4, 2, dtype=torch.float64, requires_grad=True) for _ in range(2))
        terms, kl = objective.sampled_terms(mu, logvar, x, model.decode)
        log_p = Bernoulli(logits=model.decoder[2].bias).log_prob(x).sum(1).mean()
        assert float(terms["loss"].detach()) == pytest.approx(-float(log_p.detach()), rel=1e-13)
        torch.testing.assert_close(terms["ess"], torch.tensor(objective.sizes[1], dtype=torch.float64))
        assert int(kl.count_nonzero()) == 0
        terms["loss"].backward()
        moved = [int(g.count_nonzero()) for g in (mu.grad, logvar.grad)]
        if objective.gradient == "total":
            # sampling noise alone, in logvar: that of the mean cancels between z and q
            assert float(logvar.grad.abs().max()) > 1e-3
        else:
            assert moved == [0, 0]


def replicate_gradients(bound, gradient, sizes, rows=60_000, seed=0):
    """Gradients [rows, 4] for mu and logvar of one image, one estimate a row."""
    torch.manual_seed(6)
    decoder = nn.Linear(2, 3, dtype=torch.float64)
    with torch.no_grad():
        decoder.weight *= 3
    x = torch.tensor([[1.0, 0.0, 1.0]], dtype=torch.float64).expand(rows, 3)
    mu = torch.tensor([[0.3, -0.2]], dtype=torch.float64).repeat(rows, 1).requires_grad_()
    logvar = torch.tensor([[-0.5, 0.4]], dtype=torch.float64).repeat(rows, 1).requires_grad_()
    drawn = importance_samples(mu, logvar, x, decoder, *sizes, gradient=gradient, key=make_key(seed))
    loss = importance_loss(drawn, bound, beta=BETA if bound == "ciwae" else None) * -rows
    return torch.cat(torch.autograd.grad(loss, (mu, logvar)), 1), drawn, (mu, logvar)


def deviations(a, b):
    """Distance of two means in standard errors, of the worst parameter."""
    error = (a.var(0) / len(a) + b.var(0) / len(b)).sqrt()
    return float(((a.mean(0) - b.mean(0)).abs() / error).max())


def test_estimators_agree_on_average():
    for bound, sizes in [("iwae", (1, 4)), ("miwae", (2, 3)), ("ciwae", (1, 3))]:
        total = replicate_gradients(bound, "total", sizes)[0]
        dreg = replicate_gradients(bound, "dreg", sizes, seed=1)[0]
        assert deviations(total, dreg) < 4.5
        # what the other estimator is for
        assert float((dreg.var(0) / total.var(0)).max()) < 1
    total = replicate_gradients("miwae", "total", (3, 1))[0]
    stl = replicate_gradients("miwae", "stl", (3, 1), seed=1)[0]
    assert deviations(total, stl) < 4.5
    biased = replicate_gradients("iwae", "stl", (1, 4), seed=1)[0]
    assert deviations(replicate_gradients("iwae", "total", (1, 4))[0], biased) > 6


def test_rws_dreg_ascends_the_posteriors_log_density_of_q():
    """On average sum_k v_k d log q(z_k) with z held still, which it is the reparameterised form of."""
    dreg, drawn, (mu, logvar) = replicate_gradients("iwae", "rws-dreg", (1, 4))
    v = torch.softmax(drawn.log_weight.detach(), 2)
    z = drawn.decoder_input.detach().view(len(mu), 1, 4, 2)
    log_q = Normal(mu[:, None, None], (logvar / 2).exp()[:, None, None]).log_prob(z).sum(-1)
    wake = torch.cat(torch.autograd.grad((v * log_q).sum(), (mu, logvar)), 1)
    assert deviations(wake, replicate_gradients("iwae", "rws-dreg", (1, 4), seed=1)[0]) < 4.5
    assert deviations(wake, -dreg) > 6


@pytest.mark.parametrize(
    ("objective", "sizes"),
    [
        (IWAE(), (1, 64)),
        (MIWAE(64, 1), (64, 1)),
        (MIWAE(), (8, 8)),
        (MIWAE(4, 16), (4, 16)),
        (PIWAE(), (8, 8)),
        (PIWAE(4, 16), (4, 16)),
        (CIWAE(), (1, 64)),
        (CIWAE(beta=0.05), (1, 64)),
    ],
)
def test_terms_of_the_published_settings(objective, sizes):
    model, x, key = Model(), images(), make_key(11)
    mu, logvar = model.encode(x)
    terms, kl = objective.sampled_terms(mu, logvar, x, model.decode, key=key)
    assert objective.sizes == sizes
    assert set(terms) == {*TERMS, *objective.extra_terms}
    assert {value.shape for value in terms.values()} == {()}
    assert [name for name, value in terms.items() if value.requires_grad] == ["loss"]
    torch.testing.assert_close(kl, pyvae.reparameterize_kl(mu, logvar)[1].detach())
    z, _ = sample_posterior(mu, logvar, *sizes, key=key)
    logits = model.decoder(z)
    log_w = pyvae.importance_log_weight(logits, x, z, mu, logvar)
    recon = pyvae.bernoulli_nll(logits, x[:, None, None].expand_as(logits), reduction="none", event_dims=1)
    expected = {
        "recon": recon.mean(),
        "kl": kl.sum(),
        "elbo": log_w.mean(),
        "ess": effective_sample_size(log_w).mean(),
        "beta": torch.ones(()),
        "capacity": torch.zeros(()),
    }
    for name, value in expected.items():
        assert float(terms[name]) == pytest.approx(float(value.detach()), rel=1e-10), name
    beta = {"beta": objective.beta} if isinstance(objective, CIWAE) else {}
    bound = importance_bounds(log_w, objective.bound, **beta).value.mean()
    assert float(terms["loss"].detach()) == pytest.approx(-float(bound), rel=1e-12)
    assert float(terms["loss"].detach()) <= -float(terms["elbo"]) + 1e-12


def test_members_are_apart():
    model, x = Model(), images()
    mu, logvar = (t.detach().requires_grad_() for t in latents(2, 4, 2))
    keys = torch.stack([make_key(1), make_key(2)])
    terms, kl = PIWAE(2, 3).sampled_terms(mu, logvar, x, model.decode, key=keys)
    assert terms["loss"].shape == (2,)
    got = torch.autograd.grad(terms["loss"].sum(), (mu, logvar))
    for i in range(2):
        alone = [t[i].detach().requires_grad_() for t in (mu, logvar)]
        single, single_kl = PIWAE(2, 3).sampled_terms(*alone, x, model.decode, key=keys[i])
        for name, value in single.items():
            torch.testing.assert_close(terms[name][i], value)
        torch.testing.assert_close(kl[i], single_kl)
        torch.testing.assert_close([g[i] for g in got], list(torch.autograd.grad(single["loss"], alone)))


def test_nothing_is_needed_of_gradients():
    model, x = Model(), images()
    with torch.no_grad():
        terms, _ = PIWAE(2, 3, "dreg").sampled_terms(*model.encode(x), x, model.decode)
    assert not terms["loss"].requires_grad
    frozen = [t.detach() for t in model.encode(x)]
    PIWAE(2, 3).sampled_terms(*frozen, x, model.decode)[0]["loss"].backward()
    assert all(p.grad is None for p in model.encoder.parameters())
    assert all(p.grad is not None for p in model.decoder.parameters())


@pytest.mark.parametrize("objective", [IWAE(4, "dreg"), CIWAE(4), MIWAE(2, 3, "stl"), PIWAE(2, 3)])
def test_compiled_terms_equal_eager_ones(objective):
    torch._dynamo.reset()
    model, x, key = Model(dtype=torch.float32), images(dtype=torch.float32), make_key(3)

    def loss(x, key):
        return objective.sampled_terms(*model.encode(x), x, model.decoder, key=key)[0]["loss"]

    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    expected, eager = float(loss(x, key).detach()), model.gradients(loss(x, key))
    model.zero_grad()
    assert float(compiled(x, key).detach()) == pytest.approx(expected, rel=1e-6)
    for a, b in zip(model.gradients(compiled(x, key)), eager, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
