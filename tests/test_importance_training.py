"""Training steps of the importance-weighted objectives, against the same run as anybody would write it in float64."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from pyvae import reference
from pyvae.data.dataset import Dataset
from pyvae.engine.batches import BatchOrder
from pyvae.engine.recipe import Recipe
from pyvae.engine.trainer import Trainer
from pyvae.errors import DataError, RecipeError
from pyvae.nets import build
from pyvae.objectives import CIWAE, IWAE, MIWAE, PIWAE, VAE
from pyvae.random import Stream, make_key, normal, uniform
from pyvae.recipes import RECIPES
from pyvae.schedules import staged
from tiny import GreyData, TinyData

CPU = torch.device("cpu")
RECIPE = Recipe(
    data="tiny", architecture="rainforth", latents=5, batch_size=6, lr=1e-3, seed=7, init="glorot"
)
ALL = {
    "iwae": IWAE(samples=6),
    "miwae": MIWAE(outer=2, samples=3),
    "piwae": PIWAE(outer=2, samples=3),
    "ciwae": CIWAE(samples=6, beta=0.3),
}
STOPPED = {
    "iwae-dreg": IWAE(samples=6, gradient="dreg"),
    "miwae-stl": MIWAE(outer=3, samples=2, gradient="stl"),
    "piwae-dreg": PIWAE(outer=2, samples=3, gradient="dreg"),
    "iwae-rws-dreg": IWAE(samples=6, gradient="rws-dreg"),
    "ciwae-dreg": CIWAE(samples=6, beta=0.3, gradient="dreg"),
}


class Plain:
    """One loop over the formulas: two losses, two backward passes, one for each set of weights."""

    def __init__(self, recipe: Recipe, data: Dataset) -> None:
        self.recipe, self.data = recipe, data
        side = data.image_shape[-1]
        net = build(recipe.architecture, 1, recipe.latents, side=side, init=recipe.init, seed=recipe.seed)
        self.net = net.double()
        self.optimizer = torch.optim.Adam(net.parameters(), lr=recipe.lr)
        self.order = BatchOrder(recipe.seed, len(data), recipe.batch_size, CPU)

    def images(self, step):
        return self.data.images(self.order.draw(step, 1)[0]).double()

    def log_weights(self, step, stopped):
        """log w [B, M, K], and the KL of each latent."""
        m, k = getattr(self.recipe.objective, "outer", 1), self.recipe.objective.samples
        x = self.images(step)
        mu, logvar = self.net.encoder(x)
        b, d = mu.shape
        noise = normal(make_key(self.recipe.seed, step), b * m * k, d, Stream.POSTERIOR).double()
        mean, sigma = mu[:, None, None], (logvar / 2).exp()[:, None, None]
        z = mean + sigma * noise.view(b, m, k, d)
        if stopped:
            mean, sigma = mean.detach(), sigma.detach()
        logits = self.net.decoder(z.flatten(0, 2)).view(b, m, k, -1)
        target = x.flatten(1)[:, None, None].expand_as(logits)
        likelihood = -F.binary_cross_entropy_with_logits(logits, target, reduction="none").sum(-1)
        prior, posterior = torch.distributions.Normal(0.0, 1.0), torch.distributions.Normal(mean, sigma)
        ratio = (prior.log_prob(z) - posterior.log_prob(z)).sum(-1)
        kl = 0.5 * (mu**2 + logvar.exp() - 1 - logvar).mean(0)
        return likelihood + ratio, likelihood, kl

    def losses(self, log_w):
        """Minus the bounds of the decoder and the encoder, by their definitions."""
        objective = self.recipe.objective
        inner = (torch.logsumexp(log_w, 2) - math.log(log_w.shape[2])).mean(1)
        joint = torch.logsumexp(log_w, (1, 2)) - math.log(log_w[0].numel())
        mean = log_w.mean((1, 2))
        bounds = {
            IWAE: (joint, joint),
            MIWAE: (inner, inner),
            PIWAE: (joint, inner),
            CIWAE: (
                b := getattr(objective, "beta", 0.0) * mean + (1 - getattr(objective, "beta", 0.0)) * inner,
                b,
            ),
        }
        return [-bound.mean() for bound in bounds[type(objective)]]

    def step(self, step):
        log_w, likelihood, kl = self.log_weights(step, stopped=False)
        theta, phi = self.losses(log_w)
        decoder, encoder = (list(part.parameters()) for part in (self.net.decoder, self.net.encoder))
        gradients = torch.autograd.grad(theta, decoder, retain_graph=True)
        if self.recipe.objective.gradient == "total":
            gradients = [*torch.autograd.grad(phi, encoder), *gradients]
        else:
            gradients = [*self.stopped(step, encoder), *gradients]
        for parameter, gradient in zip([*encoder, *decoder], gradients, strict=True):
            parameter.grad = gradient
        norm = torch.stack([g.norm() for g in gradients]).norm()
        self.optimizer.step()
        v = torch.softmax(log_w.detach(), 2)
        ess = (1 / v.square().sum(2)).mean()
        named = {"loss": theta, "recon": -likelihood.mean(), "kl": kl.sum(), "elbo": log_w.mean(), "ess": ess}
        return {**{name: value.item() for name, value in named.items()}, "grad_norm": norm.item()}

    def stopped(self, step, encoder):
        """sum c d log w with log q's own parameters held, c by the table of the estimators."""
        log_w, _, _ = self.log_weights(step, stopped=True)
        objective = self.recipe.objective
        outer, samples = log_w.shape[1:]
        v = torch.softmax(log_w.detach(), 2)
        v = {"stl": v, "dreg": v**2, "rws-dreg": v - v**2}[objective.gradient]
        c = v / outer
        if isinstance(objective, CIWAE):
            c = objective.beta / samples + (1 - objective.beta) * v
        return torch.autograd.grad(-(c * log_w).sum((1, 2)).mean(), encoder)


def rows(trainer: Trainer, steps: int) -> list[dict[str, float]]:
    found = []
    for _ in range(steps):
        trainer.advance()
        found.append(dict(zip(trainer.fields, trainer.ledger.row.tolist(), strict=True)))
    return found


@pytest.mark.parametrize("store", ["images", "bits", "pixels"])
@pytest.mark.parametrize("objective", [*ALL.values(), *STOPPED.values()], ids=[*ALL, *STOPPED])
def test_steps_equal_a_plain_training_loop(objective, store):
    data = TinyData()
    everything = data.images(torch.arange(len(data)))
    if store == "bits":
        data.bits = reference.pack_bits(everything.flatten(1))
    elif store == "pixels":
        data.pixels = (everything * 255).to(torch.uint8)
    recipe = replace(RECIPE, objective=objective)
    trainer, plain = Trainer(recipe, data, CPU), Plain(recipe, data)
    # log w of -2,850 nats has 2e-4 of rounding in float32
    assert_same_row(rows(trainer, 1)[0], plain.step(0), rel=5e-4)
    for (name, mine), theirs in zip(trainer.net.named_parameters(), plain.net.parameters(), strict=True):
        assert (mine.grad - theirs.grad).norm() < 1e-3 * theirs.grad.norm(), name
    # Adam's first steps are of the size of the learning rate whatever the gradient, so that rounding shows
    for step in (1, 2, 3):
        assert_same_row(rows(trainer, 1)[0], plain.step(step), rel=2e-2)


def assert_same_row(row, expected, rel):
    for name, value in expected.items():
        assert row[name] == pytest.approx(value, rel=rel), name


def trained(objective, steps=3, **changes):
    trainer = Trainer(replace(RECIPE, objective=objective, **changes), TinyData(), CPU)
    return rows(trainer, steps), trainer.tensors()


def assert_same_training(one, other, *, but=()):
    for mine, theirs in zip(one[0], other[0], strict=True):
        for name in set(mine) - set(but):
            assert mine[name] == pytest.approx(theirs[name], rel=1e-5, abs=1e-6), name
    for name, tensor in one[1].items():
        torch.testing.assert_close(tensor, other[1][name], rtol=1e-3, atol=3e-6)


def test_one_group_is_iwae_whatever_the_name():
    iwae = trained(IWAE(samples=5))
    for other in (MIWAE(outer=1, samples=5), PIWAE(outer=1, samples=5), CIWAE(samples=5, beta=0.0)):
        assert_same_training(trained(other), iwae)


def test_groups_of_one_are_the_elbo():
    assert_same_training(
        trained(CIWAE(samples=5, beta=1.0)), trained(MIWAE(outer=5, samples=1)), but=("ess",)
    )
    row = trained(MIWAE(outer=5, samples=1))[0][0]
    assert row["loss"] == pytest.approx(-row["elbo"], rel=1e-6)
    assert row["ess"] == 1


def test_outer_and_inner_are_told_apart():
    few, many = (trained(MIWAE(outer=m, samples=k), 1)[0][0] for m, k in ((5, 2), (2, 5)))
    iwae, vae = (trained(MIWAE(outer=m, samples=k), 1)[0][0] for m, k in ((1, 10), (10, 1)))
    for name in ("elbo", "recon", "kl"):
        assert few[name] == pytest.approx(many[name], rel=1e-6)
    assert iwae["loss"] < many["loss"] < few["loss"] < vae["loss"]
    assert vae["ess"] == 1 < few["ess"] < many["ess"] < iwae["ess"]
    assert few["ess"] <= 2


def test_groups_of_one_descend_what_a_vae_of_as_many_samples_does():
    """The same step of :class:`VAE`, whose batch holds every image M times; the KL by samples instead of its integral.

    So the decoder's gradient is the same, the encoder's the same on average.
    """
    outer = 4
    recipe = replace(RECIPE, objective=MIWAE(outer=outer, samples=1))
    data = TinyData()
    trainer = Trainer(recipe, data, CPU)
    plain = Plain(recipe, data)
    x = plain.images(0).repeat_interleave(outer, 0)
    mu, logvar = plain.net.encoder(x)
    noise = normal(make_key(recipe.seed, 0), len(x), recipe.latents, Stream.POSTERIOR).double()
    logits = plain.net.decoder(mu + (logvar / 2).exp() * noise)
    recon = F.binary_cross_entropy_with_logits(logits, x, reduction="sum") / len(x)
    kl = 0.5 * (mu**2 + logvar.exp() - 1 - logvar).mean(0)
    outputs = type("Outputs", (), {"recon": recon, "kl": kl})
    vae = VAE().terms(outputs, torch.tensor(0))
    row = rows(trainer, 1)[0]
    assert row["recon"] == pytest.approx(vae["recon"].item(), rel=1e-6)
    assert row["kl"] == pytest.approx(vae["kl"].item(), rel=1e-5)
    expected = torch.autograd.grad(vae["loss"], list(plain.net.decoder.parameters()))
    for parameter, gradient in zip(trainer.net.decoder.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad.double(), gradient, rtol=1e-3, atol=1e-5)


def test_half_precision_networks_give_the_same_bound():
    full, half = (trained(IWAE(samples=8), 2, precision=p)[0] for p in ("fp32", "bf16"))
    for a, b in zip(full, half, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-2)
        assert a["loss"] != b["loss"]


@pytest.mark.parametrize("objective", [IWAE(), MIWAE(), PIWAE(), CIWAE()], ids=lambda o: type(o).__name__)
def test_other_likelihoods_are_refused(objective):
    with pytest.raises(RecipeError, match=r"likelihood gaussian: importance-weighted .* of bernoulli pixels"):
        replace(RECIPE, objective=objective, likelihood="gaussian")


class TestStochasticBinarisation:
    recipe = replace(RECIPE, objective=IWAE(samples=6), binarise="stochastic")

    def test_steps_equal_a_plain_training_loop(self):
        """Networks of 12 x 12 pixels; the same grey image is another one in every step."""

        class Binary(Plain):
            def images(self, step):
                grey = super().images(step)
                drawn = uniform(make_key(self.recipe.seed, step), len(grey), 144, Stream.BINARISATION)
                return (drawn.view(grey.shape) < grey).double()

        data = GreyData()
        plain = Binary(self.recipe, data)
        for step, row in enumerate(rows(Trainer(self.recipe, data, CPU), 4)):
            assert_same_row(row, plain.step(step), rel=2e-2)

    def test_pixels_are_white_as_often_as_they_are_bright(self):
        data = GreyData()
        batches = Trainer(replace(self.recipe, batch_size=40), data, CPU)._batches
        total, steps = torch.zeros(40, 1, 12, 12), 400
        for step in range(steps):
            batches.prepare(step)
            images, target, target_max, which = batches.batch(torch.tensor(step))
            assert ((images == 0) | (images == 1)).all()
            assert torch.equal(images, target)
            assert target_max is None
            total.index_add_(0, which, images)
        grey = data.images(torch.arange(40))
        deviation = (grey * (1 - grey) / steps).sqrt()
        assert ((total / steps - grey).abs() <= 5 * deviation + 1e-6).all()
        chi2 = (((total / steps - grey) / deviation.clamp_min(1e-9)) ** 2)[deviation > 0.005]
        assert float(chi2.mean()) == pytest.approx(1.0, abs=0.05)

    def test_second_batches_have_draws_of_their_own(self):
        recipe = replace(RECIPES["factor-vae"][1], architecture="mlp", binarise="stochastic", data="grey")
        data = GreyData()
        data.pixels = torch.full_like(data.pixels, 128)
        trainer = Trainer(recipe, data, CPU)
        both = (trainer._batches, trainer._second)
        for batches in both:
            batches.prepare(0)
        first, second = (batches.batch(torch.tensor(0)).images for batches in both)
        assert float((first != second).float().mean()) == pytest.approx(0.5, abs=0.03)

    def test_images_with_factors_are_refused(self):
        with pytest.raises(DataError, match="those of tiny are not: --binarise none"):
            Trainer(self.recipe, TinyData(), CPU)


class TestStagesOfTheLearningRate:
    def test_the_published_ones(self):
        """Burda et al. 2016: 3^i epochs at 0.001 * 10^(-i/7), written as the loop that their code is."""
        expected = [10 ** (-i / 7) for i in range(8) for _ in range(3**i)]
        assert len(expected) == 3280
        got = staged(torch.arange(3400) * 3000, 3000)
        assert got.tolist()[:3280] == pytest.approx(expected, rel=1e-14)
        assert got[3280:].tolist() == pytest.approx([0.1] * 120)
        edges = staged(torch.tensor([2_999, 3_000, 11_999, 12_000, 1093 * 3000 - 1, 1093 * 3000]), 3000)
        assert edges.tolist() == pytest.approx([10 ** (-i / 7) for i in (0, 1, 1, 2, 6, 7)])

    def test_steps_equal_a_plain_training_loop(self):
        recipe = replace(RECIPE, objective=VAE(), lr_stage_steps=2, lr=1e-2)
        data = TinyData()
        trainer = Trainer(recipe, data, CPU)
        net = build(recipe.architecture, 1, recipe.latents, init=recipe.init, seed=recipe.seed)
        optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
        for step, row in enumerate(rows(trainer, 10)):
            optimizer.param_groups[0]["lr"] = 1e-2 * 10 ** -((step >= 2) / 7 + (step >= 8) / 7)
            x = data.images(BatchOrder(recipe.seed, len(data), recipe.batch_size, CPU).draw(step, 1)[0])
            mu, logvar = net.encoder(x)
            noise = normal(make_key(recipe.seed, step), len(x), recipe.latents, Stream.POSTERIOR)
            logits = net.decoder(mu + (logvar / 2).exp() * noise)
            loss = F.binary_cross_entropy_with_logits(logits, x, reduction="sum") / len(x)
            loss = loss + 0.5 * (mu**2 + logvar.exp() - 1 - logvar).sum() / len(x)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            assert row["loss"] == pytest.approx(loss.item(), rel=2e-4)
        assert float(trainer._trained.optimizer.param_groups[0]["lr"]) == pytest.approx(1e-2 * 10 ** (-2 / 7))

    def test_a_resumed_run_is_in_the_stage_where_it_was(self):
        recipe = replace(RECIPE, objective=VAE(), lr_stage_steps=3)
        straight, other = (Trainer(recipe, TinyData(), CPU) for _ in range(2))
        straight.advance(13)
        other.restore(13, {name: t.clone() for name, t in straight.tensors().items()})
        straight.advance(3)
        other.advance(3)
        for name, tensor in straight.tensors().items():
            assert torch.equal(tensor, other.tensors()[name]), name

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            ({"lr_stage_steps": 0}, "lr_stage_steps must be at least 1, got 0"),
            (
                {"lr_stage_steps": 5, "optimizer": "adagrad"},
                "adagrad has a constant rate: give --optimizer adam",
            ),
        ],
    )
    def test_what_cannot_be_is_refused(self, change, words):
        with pytest.raises(RecipeError, match=words):
            replace(RECIPE, **change)


class TestNetworksOfAnySide:
    def test_other_networks_name_the_size_they_take(self):
        with pytest.raises(
            RecipeError, match="images are 12 x 12, but the networks take 64 x 64: --image-size 64"
        ):
            Trainer(replace(RECIPE, architecture="burgess"), GreyData(), CPU)
        with pytest.raises(ValueError, match="side: kim takes images of 64 x 64, got 12"):
            build("kim", 1, 4, side=12)

    def test_images_must_be_square(self):
        data = TinyData()
        data.image_shape = (1, 32, 64)
        with pytest.raises(RecipeError, match="images are 32 x 64"):
            Trainer(RECIPE, data, CPU)


@pytest.mark.parametrize("name", ["iwae", "miwae", "piwae", "ciwae"])
def test_a_recipe_is_the_published_one(name):
    _, recipe = RECIPES[name]
    outer, samples = recipe.objective.sizes
    assert outer * samples == 64
    assert (recipe.architecture, recipe.latents, recipe.batch_size, recipe.lr) == ("rainforth", 50, 20, 1e-3)
    # the stages fill the run
    assert recipe.lr_stage_steps * sum(3**i for i in range(8)) == recipe.steps
