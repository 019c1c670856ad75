"""log p(x), IWAE-64, effective sample size and active units, against one-shot sums, quadrature and closed forms."""

import json
import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pyvae.data.subset import subset
from pyvae.engine.loop import train
from pyvae.engine.recipe import Recipe
from pyvae.engine.run import RunDirectory
from pyvae.errors import PyvaeError
from pyvae.evaluation import marginal_likelihood as module
from pyvae.evaluation import score, score_likelihood
from pyvae.evaluation.averages import evaluate
from pyvae.evaluation.marginal_likelihood import GROUP, active_units, estimate, marginal_likelihood
from pyvae.metrics import encode, unsupervised
from pyvae.nets import build
from pyvae.objectives import IWAE, VAE, CapacityVAE
from pyvae.random import Stream, normal
from pyvae.report import report, traversal, traverse
from tiny import GreyData, TinyData

CPU = torch.device("cpu")
RECIPE = Recipe(
    objective=IWAE(samples=5),
    data="tiny",
    architecture="rainforth",
    latents=3,
    batch_size=8,
    steps=6,
    lr=1e-3,
)


def keys(rows, seed=5):
    return torch.tensor([[seed, row] for row in rows])


def posteriors(batch=4, latents=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    mu, logvar = torch.randn(2, batch, latents, generator=generator, dtype=torch.float64)
    target = (torch.rand(batch, 1, 5, 5, generator=generator) < 0.4).double()
    decoder = nn.Sequential(nn.Linear(latents, 25), nn.Tanh(), nn.Unflatten(1, (1, 5, 5))).double()
    for parameter in decoder.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return mu, logvar, target, decoder.requires_grad_(False)


def log_weights_at_once(mu, logvar, target, decoder, samples, key):
    """float64 [B, K] by the definition; all noise at once."""
    groups = -(-samples // GROUP)
    offsets = torch.arange(groups)[:, None, None] * torch.tensor([0, 2**32])
    noise = torch.cat([normal(key + o, GROUP, mu.shape[1], Stream.METRIC, torch.float64) for o in offsets], 1)
    noise = noise[:, :samples]
    mean, sigma = mu[:, None], (logvar / 2).exp()[:, None]
    z = mean + sigma * noise
    logits = decoder(z.flatten(0, 1)).view(*z.shape[:2], -1)
    x = target.flatten(1)[:, None].expand_as(logits)
    likelihood = -F.binary_cross_entropy_with_logits(logits, x, reduction="none").sum(-1)
    ratio = 0.5 * (noise**2 - z**2).sum(-1) + 0.5 * logvar.sum(-1)[:, None]
    return likelihood + ratio


@pytest.mark.parametrize("samples", [64, 65, 128, 1000])
def test_the_stream_equals_one_sum(samples):
    mu, logvar, target, decoder = posteriors()
    key = keys([3, 8, 1, 70_000])
    got = estimate(mu, logvar, target, decoder, samples, key)
    log_w = log_weights_at_once(mu, logvar, target, decoder, samples, key)
    whole = samples // GROUP
    groups = log_w[:, : whole * GROUP].view(4, whole, GROUP)
    w = torch.softmax(log_w, 1)
    expected = (
        log_w.mean(1),
        (torch.logsumexp(groups, 2) - math.log(GROUP)).mean(1),
        torch.logsumexp(log_w, 1) - math.log(samples),
        1 / w.square().sum(1),
    )
    for mine, theirs in zip(got, expected, strict=True):
        assert mine.dtype == torch.float64
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-10)
    assert (got.elbo < got.iwae).all()
    assert ((got.effective_sample_size > 1) & (got.effective_sample_size < samples)).all()


def test_no_two_samples_are_the_same():
    mu, logvar, target, decoder = posteriors()
    log_w = log_weights_at_once(mu, logvar, target, decoder, 1000, keys([0, 1, 2, 3]))
    assert len(log_w.unique()) == 4000
    once, twice = (estimate(mu, logvar, target, decoder, k, keys([0, 1, 2, 3])) for k in (64, 128))
    assert not torch.isclose(once.iwae, twice.iwae, rtol=1e-6).any()


def test_what_an_image_draws_does_not_depend_on_its_batch():
    mu, logvar, target, decoder = posteriors()
    together = estimate(mu, logvar, target, decoder, 100, keys([5, 6, 7, 8]))
    alone = estimate(mu[2:3], logvar[2:3], target[2:3], decoder, 100, keys([7]))
    for a, b in zip(alone, together, strict=True):
        torch.testing.assert_close(a, b[2:3], rtol=1e-12, atol=1e-12)


def test_an_exact_posterior_leaves_no_gap():
    """A decoder that looks away makes the prior the posterior: every weight is p(x)."""
    _, _, target, _ = posteriors()
    logits = torch.linspace(-3, 3, 25, dtype=torch.float64).view(1, 5, 5)
    zero = torch.zeros(4, 3, dtype=torch.float64)
    got = estimate(zero, zero, target, lambda z: logits.expand(len(z), 1, 5, 5), 1000, keys(range(4)))
    log_p = -F.binary_cross_entropy_with_logits(logits.expand(4, 1, 5, 5), target, reduction="none").sum(
        (1, 2, 3)
    )
    for value in (got.elbo, got.iwae, got.log_p):
        torch.testing.assert_close(value, log_p, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(got.effective_sample_size, torch.full((4,), 1000.0, dtype=torch.float64))


def test_log_p_is_the_integral_and_the_elbo_is_below_by_the_kl():
    """One latent: log p(x) and KL(q || p(z|x)) by quadrature."""
    _, _, target, decoder = posteriors(batch=3, latents=1, seed=4)
    z = torch.linspace(-12, 12, 200_001, dtype=torch.float64)
    logits = decoder(z[:, None]).flatten(1)
    x = target.flatten(1)
    joint = -F.binary_cross_entropy_with_logits(
        logits[None].expand(3, -1, -1), x[:, None].expand(3, len(z), 25), reduction="none"
    ).sum(-1)
    joint = joint - 0.5 * z**2 - 0.5 * math.log(2 * math.pi)
    log_p = torch.logsumexp(joint, 1) + math.log(24 / 200_000)
    # so wide that the weights have a variance: the decoder saturates, and the posterior's tails are the prior's
    p = torch.softmax(joint, 1)
    mean = (p * z).sum(1, keepdim=True)
    mu, logvar = mean, (p * (z - mean) ** 2).sum(1, keepdim=True).clamp_min(0.7).log()
    log_q = torch.distributions.Normal(mu, (logvar / 2).exp()).log_prob(z)
    kl = (log_q.exp() * (log_q - joint + log_p[:, None])).sum(1) * 24 / 200_000
    got = estimate(mu, logvar, target, decoder, 40_000, keys(range(3)))
    torch.testing.assert_close(got.log_p, log_p, rtol=0, atol=0.02)
    torch.testing.assert_close(got.elbo, log_p - kl, rtol=0, atol=0.03)
    assert (kl > 0.05).all()
    # the second moment of the weights is an integral as well
    second = (2 * (joint - log_p[:, None]) - log_q).exp().sum(1) * 24 / 200_000
    torch.testing.assert_close(got.effective_sample_size, 40_000 / second, rtol=0.05, atol=0)


def test_one_sample_inside_the_logarithm_is_the_elbo(monkeypatch):
    monkeypatch.setattr(module, "GROUP", 1)
    mu, logvar, target, decoder = posteriors()
    got = estimate(mu, logvar, target, decoder, 50, keys(range(4)))
    torch.testing.assert_close(got.iwae, got.elbo, rtol=1e-12, atol=1e-12)


class Memory(TorchDispatchMode):
    """Elements of the largest tensor that any operation gave, and the most bytes that were held at once."""

    def __init__(self):
        super().__init__()
        self.largest = self.most = 0
        self.held = {}

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        out = op(*args, **(kwargs or {}))
        for x in tree_leaves(out):
            if isinstance(x, torch.Tensor):
                self.largest = max(self.largest, x.numel())
                storage = x.untyped_storage()
                self.held[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        self.held = {key: (alive, size) for key, (alive, size) in self.held.items() if not alive.expired()}
        self.most = max(self.most, sum(size for _, size in self.held.values()))
        return out


def peak(samples, images=64):
    data, net = TinyData(), build("rainforth", 1, 10).eval()
    with Memory() as seen:
        marginal_likelihood(
            net, data.images, torch.arange(images), device=CPU, samples=samples, progress=False
        )
    return seen


def test_five_thousand_samples_need_no_more_memory_than_few():
    few, many = peak(2 * GROUP), peak(5000)
    assert many.largest == few.largest <= 1024 * 4096
    assert many.most == few.most
    # what the one-shot sum would take for its logits alone: 5 GB
    assert many.most < 0.05 * 64 * 5000 * 4096 * 4


def test_the_network_is_evaluated_image_by_image_in_order(monkeypatch):
    """Batches of the images change nothing; nor does anything else of theirs but their index."""
    data, net = TinyData(), build("rainforth", 1, 4, seed=2).eval()
    index = torch.tensor([7, 100, 3, 3, 55])
    at_once, means = marginal_likelihood(net, data.images, index, device=CPU, samples=100, progress=False)
    monkeypatch.setattr(module, "_ROWS", {"cpu": 2 * GROUP})
    in_twos, _ = marginal_likelihood(net, data.images, index, device=CPU, samples=100, progress=False)
    for a, b in zip(at_once, in_twos, strict=True):
        assert a.shape == (5,)
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-3)
    assert at_once.log_p[2] == at_once.log_p[3]
    with torch.no_grad():
        shown = data.images(index)
        mu, logvar = net.encoder(shown)
        expected = estimate(mu, logvar, shown, net.decoder, 100, keys(index.tolist(), seed=0))
    torch.testing.assert_close(means, mu)
    for a, b in zip(at_once, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-3)
    other, _ = marginal_likelihood(net, data.images, index, device=CPU, samples=100, seed=1, progress=False)
    assert not torch.isclose(at_once.log_p, other.log_p, rtol=1e-7).any()


def test_active_units():
    means = torch.stack([torch.tensor([0.0, 0.19]), torch.tensor([0.0, 0.21]), torch.tensor([5.0, 5.0])], 1)
    # variances 0.0090, 0.0110 and 0
    assert active_units(means) == 1
    assert active_units(means[:1]) == 0


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    run = RunDirectory.create_or_resume(tmp_path_factory.mktemp("likelihood") / "run", RECIPE)
    train(run, TinyData(), CPU, log_every=1)
    return run


def saved(run):
    return json.loads((run.path / "metrics.json").read_text())["marginal_likelihood"]


class TestScore:
    def score(self, run, data=None, **options):
        options = {"samples": 64, "images": 30, **options}
        return score_likelihood(run, data or TinyData(), device=CPU, progress=False, **options)

    def test_averages_are_those_of_the_newest_weights(self, run):
        data, net = TinyData(), run.load_net()[0]
        got = self.score(run, samples=130, images=30, seed=3)
        index = subset(data, 30)
        found, means = marginal_likelihood(
            net, data.images, index, device=CPU, samples=130, seed=3, progress=False
        )
        assert got["log_p"] == pytest.approx(float(found.log_p.mean()), rel=1e-9)
        assert got["iwae_64"] == pytest.approx(float(found.iwae.mean()), rel=1e-9)
        assert got["elbo"] == pytest.approx(float(found.elbo.mean()), rel=1e-9)
        assert got["difference"] == pytest.approx(float((found.iwae - found.log_p).mean()), rel=1e-6)
        assert got["log_p_error"] == pytest.approx(float(found.log_p.std()) / 30**0.5, rel=1e-9)
        assert got["effective_sample_size"] == pytest.approx(float(found.effective_sample_size.mean()))
        assert got["active_units"] == active_units(means)
        assert (got["images"], got["samples"], got["latents"], got["seed"]) == (30, 130, 3, 3)
        assert got["elbo"] < got["iwae_64"] < got["log_p"] < 0
        assert saved(run) == got

    def test_the_elbo_is_that_of_the_report(self, run):
        """Of all images, a sampled KL for an integrated one."""
        got = self.score(run, samples=640, images=1000)
        report(run, TinyData())
        other = json.loads((run.path / "metrics.json").read_text())
        assert got["images"] == 120
        assert got["elbo"] == pytest.approx(other["elbo"], rel=1e-2)

    def test_the_page_shows_it_until_the_weights_change(self, tmp_path):
        run = RunDirectory.create_or_resume(tmp_path / "run", RECIPE)
        train(run, TinyData(), CPU, log_every=1)
        assert "IWAE-64" not in report(run, TinyData()).read_text()
        got = self.score(run)
        page = report(run, TinyData()).read_text()
        assert f"{got['log_p']:.2f} ± {got['log_p_error']:.2f} nats, 30 images</td>" in page
        assert f"{got['iwae_64']:.2f} nats, {got['difference']:.2f} from log p(x)" in page
        assert f"{got['effective_sample_size']:.1f} of 64" in page
        assert f"{got['active_units']} of 3" in page
        assert saved(run) == got
        score(run, TinyData(), ["beta-vae"], device=CPU)
        assert saved(run) == got
        longer = RunDirectory.create_or_resume(run.path, replace(RECIPE, steps=8))
        train(longer, TinyData(), CPU, log_every=1)
        assert "IWAE-64" not in report(longer, TinyData()).read_text()

    def test_held_out_images(self, run):
        class Mirrored(TinyData):
            def images(self, index):
                return super().images(index).flip(-1)

        mine = self.score(run)
        other = self.score(run, held_out=Mirrored(fingerprint="mirrored"))
        assert other["log_p"] != mine["log_p"]
        assert (other["data"], other["trained_on"]) == ("mirrored", "tiny-v1")
        assert "images of mirrored" in report(run, TinyData()).read_text()

    def test_what_cannot_be_is_one_line(self, run, tmp_path):
        with pytest.raises(PyvaeError, match="IWAE-64 needs at least 64 samples, got 63"):
            self.score(run, samples=63)
        with pytest.raises(PyvaeError, match="at least 1 image is needed, got 0"):
            self.score(run, images=0)
        with pytest.raises(
            PyvaeError, match=r"trained on images of shape \(1, 64, 64\), but those of grey-v1"
        ):
            self.score(run, held_out=GreyData())
        gaussian = RunDirectory.create_or_resume(
            tmp_path / "run", replace(RECIPE, objective=VAE(), likelihood="gaussian")
        )
        with pytest.raises(PyvaeError, match=r"of bernoulli pixels, but the likelihood of .* is gaussian"):
            self.score(gaussian)
        with pytest.raises(PyvaeError, match="has no checkpoint yet"):
            self.score(RunDirectory.create_or_resume(tmp_path / "other", RECIPE))

    def test_a_code_of_true_factors(self, tmp_path):
        recipe = replace(RECIPE, objective=CapacityVAE(), code="factors", latents=3)
        run = RunDirectory.create_or_resume(tmp_path / "run", recipe)
        train(run, TinyData(), CPU, log_every=1)
        got = self.score(run)
        assert got["elbo"] < got["log_p"] < 0
        with pytest.raises(PyvaeError, match="true factors, which held-out images do not have"):
            self.score(run, held_out=TinyData(fingerprint="other"))


class TestGreyImages:
    def run(self, tmp_path, **changes):
        run = RunDirectory.create_or_resume(tmp_path / "run", replace(RECIPE, data="grey", **changes))
        train(run, GreyData(), CPU, log_every=1)
        return run

    def test_without_binarisation_they_have_no_likelihood(self, tmp_path):
        with pytest.raises(PyvaeError, match="grey-v1: grey images have no Bernoulli likelihood: train with"):
            score_likelihood(self.run(tmp_path), GreyData(), device=CPU, samples=64, progress=False)

    def test_with_it_all_of_the_evaluation_sees_one_fixed_binarisation(self, tmp_path, monkeypatch):
        run = self.run(tmp_path, binarise="stochastic")
        got = score_likelihood(run, GreyData(), device=CPU, samples=64, progress=False)
        assert got == score_likelihood(run, GreyData(), device=CPU, samples=64, progress=False)
        shown = run.shown(GreyData())
        images = shown.images(torch.arange(40))
        assert ((images == 0) | (images == 1)).all()
        assert float(images.mean()) == pytest.approx(
            float(GreyData().images(torch.arange(40)).mean()), abs=0.02
        )
        assert torch.equal(shown.images([[7], [3]]), images[[7, 3]].unsqueeze(1))
        page = report(run, GreyData()).read_text()
        assert "other data than it was trained on" not in page
        metrics = json.loads((run.path / "metrics.json").read_text())
        assert got["images"] == 40
        net = run.load_net()[0]
        assert metrics["recon"] == evaluate(net, shown).recon != evaluate(net, GreyData()).recon
        table = encode(net, shown, device=CPU, progress=False)
        scores = score(run, GreyData(), ["unsupervised"], device=CPU)
        assert scores["unsupervised"] == unsupervised(table, points=None)._asdict()
        drawn = []
        compute = traversal.compute
        monkeypatch.setattr(traversal, "compute", lambda *a: drawn.append(a[1]) or compute(*a))
        traverse(run, GreyData())
        assert all(((image == 0) | (image == 1)).all() for image in drawn)
        assert len(drawn) == 3
