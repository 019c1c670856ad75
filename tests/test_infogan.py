"""InfoGAN and InfoWGAN-GP: the losses, the gradient penalty, the codes, a step, a run."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import gradcheck, gradgradcheck

from pyvae.engine import checkpoint
from pyvae.engine.adversarial import one_storage
from pyvae.engine.batches import BatchOrder
from pyvae.engine.draw import draw
from pyvae.engine.loop import train
from pyvae.engine.recipe import Recipe
from pyvae.engine.run import RunDirectory
from pyvae.engine.trainer import Trainer
from pyvae.engine.training import training
from pyvae.errors import PyvaeError, RecipeError
from pyvae.evaluation import score, score_likelihood
from pyvae.nets.adversarial import CodePosterior, build_pair
from pyvae.nets.layers import Layers
from pyvae.objectives import VAE, InfoGAN, InfoWGANGP
from pyvae.objectives.infogan import Codes, between, gradient_penalty
from pyvae.random import Stream, make_key, normal, uniform
from pyvae.report import report, traverse
from pyvae.report.generated import moved
from tiny import TinyData

CPU = torch.device("cpu")
RECIPE = Recipe(
    objective=InfoGAN(), data="tiny", architecture="kim", latents=5, batch_size=8, lr=1e-3, seed=7
)
WGAN = replace(RECIPE, objective=InfoWGANGP(critic_steps=2))
FIVE = replace(RECIPE, objective=InfoWGANGP(critic_steps=2, continuous=5, categories=0, variance="learned"))
PLAIN = replace(RECIPE, objective=InfoGAN(batch_norm=False, spectral_norm=False, generator_steps=1))
RECIPES = {"gan": RECIPE, "plain": PLAIN, "wgan": WGAN, "five": FIVE}


class TestGradientPenalty:
    @pytest.mark.parametrize("norm", [1.0, 0.3, 2.5])
    def test_of_a_linear_critic(self, norm):
        w = torch.randn(12, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        w = w / w.norm() * norm
        found = gradient_penalty(lambda x: x.flatten(1) @ w, torch.ones(5, 3, 4, dtype=torch.float64))
        torch.testing.assert_close(found, torch.tensor((norm - 1.0) ** 2, dtype=torch.float64))

    def test_double_backward(self):
        g = torch.Generator().manual_seed(3)
        a, b, x = (torch.randn(*s, dtype=torch.float64, generator=g) for s in ((6, 4), (6,), (5, 4)))
        a.requires_grad_()
        b.requires_grad_()

        def penalty(a, b):
            return gradient_penalty(lambda at: torch.tanh(at @ a.T) @ b, x)

        assert gradcheck(penalty, (a, b))
        assert gradgradcheck(penalty, (a, b))

    def test_double_backward_of_convolutions(self):
        g = torch.Generator().manual_seed(4)
        weight = torch.randn(2, 1, 3, 3, dtype=torch.float64, generator=g).requires_grad_()
        last = torch.randn(18, dtype=torch.float64, generator=g).requires_grad_()
        x = torch.randn(3, 1, 6, 6, dtype=torch.float64, generator=g)

        def penalty(weight, last):
            def critic(at):
                return F.softplus(F.conv2d(at, weight, stride=2, padding=1)).flatten(1) @ last

            return gradient_penalty(critic, x)

        assert gradcheck(penalty, (weight, last))
        assert gradgradcheck(penalty, (weight, last))

    def test_a_flat_critic_is_finite(self):
        w = torch.zeros(4, requires_grad=True)
        penalty = gradient_penalty(lambda x: x @ w, torch.ones(3, 4))
        penalty.backward()
        assert float(penalty.detach()) == 1.0
        assert torch.isfinite(w.grad).all()

    def test_of_products_in_bf16(self):
        """The trainer's own loss in either precision: rounding of eight bits, no cast that cuts the gradient off."""
        found = {}
        for precision in ("fp32", "bf16"):
            trainer = training(replace(WGAN, precision=precision), TinyData(), CPU)
            images = TinyData().images(torch.arange(8))
            drawn = draw(trainer._objective, trainer.key, 8, 8)
            with torch.no_grad():
                # of larger weights, a slope that is neither 0 nor 1
                for parameter in trainer.net.critic.parameters():
                    parameter.mul_(2)
            _, (penalty,), _ = trainer._critic_loss(images, drawn)
            loss = trainer._critic_loss(images, drawn)[0]
            loss.backward()
            slopes = torch.cat([p.grad.flatten() for p in trainer.net.critic.parameters()])
            found[precision] = float(penalty), slopes
        assert 0.01 < found["fp32"][0] < 100
        assert abs(found["fp32"][0] - 1) > 0.05
        assert found["bf16"][0] == pytest.approx(found["fp32"][0], rel=0.03)
        cosine = torch.cosine_similarity(found["bf16"][1], found["fp32"][1], dim=0)
        assert float(cosine) > 0.99


class TestCodes:
    def test_are_philox_of_key_and_row(self):
        objective, key = InfoGAN(), make_key(5, 9)
        codes = objective.draw(key, 40)
        assert torch.equal(codes.noise, normal(key, 40, 5, Stream.NOISE))
        assert torch.equal(codes.continuous, 2 * uniform(key, 40, 4, Stream.CODE) - 1)
        for few, many in zip(objective.draw(key, 7), codes, strict=True):
            assert torch.equal(few, many[:7])
        for one, other in zip(codes, objective.draw(make_key(5, 10), 40), strict=True):
            assert not torch.equal(one, other)

    def test_are_uniform(self):
        n = 60_000
        codes = InfoGAN().draw(make_key(1), n)
        counts = torch.bincount(codes.category, minlength=3)
        assert len(counts) == 3
        assert float(((counts - n / 3) ** 2 / (n / 3)).sum()) < 13.8  # p = .001 of chi^2, 2 degrees
        for code in codes.continuous.unbind(-1):
            bins = torch.histc(code, 10, -1.0, 1.0)
            assert float(bins.sum()) == n
            assert float(((bins - n / 10) ** 2 / (n / 10)).sum()) < 27.9  # 9 degrees
        assert float(torch.corrcoef(codes.continuous.T).fill_diagonal_(0).abs().max()) < 0.02

    def test_input_of_the_generator(self):
        codes = Codes(torch.full((2, 5), 7.0), torch.full((2, 4), 0.5), torch.tensor([2, 0]))
        made = InfoGAN().generator_input(codes)
        assert made.tolist() == [[7.0] * 5 + [0.5] * 4 + [0, 0, 1], [7.0] * 5 + [0.5] * 4 + [1, 0, 0]]

    def test_points_between(self):
        real, fake, at = torch.full((6, 1, 2, 2), 3.0), torch.ones(6, 1, 2, 2), torch.linspace(0, 1, 6)
        points = between(real, fake, at)
        torch.testing.assert_close(points, (1 + 2 * at).view(6, 1, 1, 1).expand(6, 1, 2, 2))


class TestInformation:
    def test_of_categories_is_at_most_their_entropy_and_reaches_it(self):
        objective = InfoGAN(continuous=0, categories=3)
        codes = objective.draw(make_key(2), 3000)
        empty = torch.zeros(3000, 0)
        perfect = CodePosterior(empty, empty, 50.0 * F.one_hot(codes.category, 3).float())
        assert float(objective.information(perfect, codes)) == pytest.approx(math.log(3), abs=1e-6)
        know_nothing = perfect._replace(logits=torch.zeros(3000, 3))
        assert float(objective.information(know_nothing, codes)) == pytest.approx(0, abs=1e-6)
        g = torch.Generator().manual_seed(0)
        for scale in (0.1, 1.0, 9.0):
            guess = perfect._replace(logits=scale * torch.randn(3000, 3, generator=g))
            assert float(objective.information(guess, codes)) < math.log(3)

    def test_of_continuous_codes_is_the_gaussian_log_likelihood(self):
        objective = InfoGAN(continuous=2, categories=0, variance="learned")
        codes = objective.draw(make_key(2), 50)
        g = torch.Generator().manual_seed(0)
        mean, logvar = torch.randn(2, 50, 2, generator=g)
        log_q = torch.distributions.Normal(mean, (logvar / 2).exp()).log_prob(codes.continuous).mean(0)
        found = objective.information(CodePosterior(mean, logvar, torch.zeros(50, 0)), codes)
        torch.testing.assert_close(found, log_q + math.log(2))

    def test_of_a_channel_is_at_most_its_information(self):
        """c uniform on [-1, 1], x = c + uniform noise of half-width w <= 1: I = ln 2 + w/2 - ln 2w in closed form."""
        objective, n, w = InfoGAN(continuous=1, categories=0, variance="learned"), 100_000, 0.25
        codes = objective.draw(make_key(6), n)
        x = codes.continuous + w * (2 * uniform(make_key(8), n, 1, Stream.METRIC) - 1)
        true = math.log(2) + w / 2 - math.log(2 * w)
        best = -math.inf
        for variance in (0.005, 0.0208, 0.1, 1.0):
            q = CodePosterior(x, torch.full_like(x, math.log(variance)), x[:, :0])
            best = max(best, float(objective.information(q, codes)))
        assert true - 0.4 < best < true


def test_losses():
    real, fake = torch.tensor([2.0, -1.0]), torch.tensor([0.5, 3.0])

    def log_sigmoid(x):
        return torch.log(torch.sigmoid(x))

    expected = -(log_sigmoid(real).mean() + torch.log(1 - torch.sigmoid(fake)).mean())
    torch.testing.assert_close(InfoGAN().critic_loss(real, fake), expected)
    torch.testing.assert_close(InfoGAN().generator_loss(fake), -log_sigmoid(fake).mean())
    assert float(InfoWGANGP().critic_loss(real, fake)) == pytest.approx(1.25)
    assert float(InfoWGANGP().generator_loss(fake)) == pytest.approx(-1.75)


class TestNetworks:
    def test_sizes(self):
        pair = build_pair(1, continuous=5, categories=0, noise=5)
        count = sum(p.numel() for p in pair.generator.parameters())
        plain = (
            10 * 128
            + 128
            + 128 * 1024
            + 1024
            + 64 * 64 * 16
            + 64
            + 64 * 32 * 16
            + 32
            + 32 * 32 * 16
            + 32
            + 32 * 16
            + 1
        )
        assert count == plain + 2 * (128 + 1024 + 64 + 32 + 32)
        assert not [name for name, _ in pair.named_buffers() if "num_batches" in name]

    def test_the_critics_weights_have_norm_one(self):
        pair = build_pair(1, continuous=2, categories=3, noise=5, seed=1)
        with torch.no_grad():
            for _ in range(100):
                pair.critic(torch.zeros(1, 1, 64, 64))
        layers = [x for x in pair.critic.modules() if isinstance(x, torch.nn.Conv2d | torch.nn.Linear)]
        assert len(layers) == 4 + 1 + 1 + 2
        for layer in layers:
            assert float(torch.linalg.matrix_norm(layer.weight.flatten(1), 2).detach()) == pytest.approx(
                1, abs=0.02
            )

    def test_the_weights_are_drawn_before_they_are_normalised(self):
        one, other = (
            build_pair(1, continuous=2, categories=0, noise=2, init="normal", spectral_norm=s) for s in (0, 1)
        )
        original = other.critic.trunk[0].parametrizations.weight.original
        assert torch.equal(one.critic.trunk[0].weight, original)

    def test_an_image_is_its_own_once_trained(self):
        trainer = training(RECIPE, TinyData(), CPU)
        trainer.advance(3)
        net, objective = trainer.net.eval(), trainer._objective
        inputs = objective.generator_input(objective.draw(make_key(3), 6))
        together = net.generator.images(inputs)
        torch.testing.assert_close(net.generator.images(inputs[2:3]), together[2:3])
        torch.testing.assert_close(net.encoder(together)[0][1:2], net.encoder(together[1:2])[0])

    def test_one_image_has_no_batch_to_be_normalised_by(self):
        with pytest.raises(RecipeError, match="--no-batch-norm"):
            training(replace(RECIPE, batch_size=1), TinyData(), CPU)
        training(replace(PLAIN, batch_size=1), TinyData(), CPU).advance()


def test_one_storage():
    buffers = [torch.arange(3.0), torch.tensor(7.0), torch.ones(2, 2)]
    whole = one_storage(buffers, CPU)
    assert whole.tolist() == [0, 1, 2, 7, 1, 1, 1, 1]
    whole.mul_(2)
    buffers[2][0, 0] = 9
    assert buffers[1].item() == 14
    assert whole.tolist() == [0, 2, 4, 14, 9, 2, 2, 2]
    nothing = one_storage([], torch.device("meta"))
    # where a step joins it with what lies there
    assert (nothing.shape, nothing.device.type) == ((0,), "meta")


def plain_steps(recipe, data, steps):
    """The same run as anybody would write it."""
    o = recipe.objective
    pair = build_pair(
        1,
        continuous=o.continuous,
        categories=o.categories,
        noise=o.noise,
        learned_variance=o.variance == "learned",
        batch_norm=o.batch_norm,
        spectral_norm=o.spectral_norm,
        seed=recipe.seed,
    )
    generator, critic = pair.generator, pair.critic
    g_adam = torch.optim.Adam(generator.parameters(), lr=recipe.lr, betas=o.betas)
    c_adam = torch.optim.Adam(critic.parameters(), lr=o.critic_lr, betas=o.betas)
    b, n, m = recipe.batch_size, o.critic_steps, o.generator_steps
    order = BatchOrder(recipe.seed, len(data), b * n, CPU)

    def bound(posterior, code, category):
        logvar = torch.zeros_like(code) if posterior.logvar is None else posterior.logvar
        error = (code - posterior.mean) ** 2 / logvar.exp()
        nll = 0.5 * (math.log(2 * math.pi) + logvar + error).mean(0).sum()
        entropy = o.continuous * math.log(2)
        if o.categories:
            nll = nll + F.cross_entropy(posterior.logits, category)
            entropy += math.log(o.categories)
        return entropy - nll

    losses = []
    for step in range(steps):
        key = make_key(recipe.seed, step)
        codes = o.draw(key, b * (n + m))
        lines = uniform(key, b * n, 1, Stream.INTERPOLATION).view(-1, 1, 1, 1)
        images = data.images(order.draw(step, 1)[0])
        of_critic, of_generator = [], []
        for k in range(n + m):
            noise, code, category = (each[k * b : (k + 1) * b] for each in codes)
            one_of = F.one_hot(category, o.categories).float() if o.categories else code[:, :0]
            fake = torch.sigmoid(generator(torch.cat([noise, code, one_of], 1)))
            if k >= n:
                score, posterior = critic(fake)
                adversarial = -score.mean() if isinstance(o, InfoWGANGP) else F.softplus(-score).mean()
                loss = adversarial - o.information_weight * bound(posterior, code, category)
                g_adam.zero_grad()
                loss.backward()
                g_adam.step()
                of_generator.append(loss.item())
                continue
            fake, real = fake.detach(), images[k * b : (k + 1) * b]
            scores, posterior = critic(torch.cat([fake, real]))
            on_fake, on_real = scores.split(b)
            posterior = CodePosterior(*(each if each is None else each[:b] for each in posterior))
            if isinstance(o, InfoWGANGP):
                at = fake + lines[k * b : (k + 1) * b] * (real - fake)
                at.requires_grad_()
                (slope,) = torch.autograd.grad(critic(at)[0].sum(), at, create_graph=True)
                adversarial = on_fake.mean() - on_real.mean()
                adversarial = adversarial + o.penalty * ((slope.flatten(1).norm(dim=1) - 1) ** 2).mean()
            else:
                adversarial = F.softplus(-on_real).mean() + F.softplus(on_fake).mean()
            loss = adversarial - o.information_weight * bound(posterior, code, category)
            c_adam.zero_grad()
            loss.backward()
            c_adam.step()
            of_critic.append(loss.item())
        losses.append([sum(of_generator) / m, sum(of_critic) / n])
    return losses, pair, {"generator": g_adam, "critic": c_adam}


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_steps_equal_a_plain_loop(recipe, monkeypatch):
    # whichever: beside a batch normalised by eight images, Adam makes steps of what rounding left of no gradient
    monkeypatch.setattr(Layers, "own_convolutions", False)
    data = TinyData()
    trainer = training(recipe, data, CPU)
    rows, after = [], []
    for _ in range(3):
        trainer.advance()
        row = dict(zip(trainer.fields, trainer.ledger.row.tolist(), strict=True))
        rows.append([row["loss"], row["discriminator_loss"]])
        after.append({name: tensor.clone() for name, tensor in trainer.tensors().items()})
    losses, pair, _ = plain_steps(recipe, data, 3)
    torch.testing.assert_close(torch.tensor(rows), torch.tensor(losses), rtol=3e-4, atol=1e-5)
    for name, buffer in pair.named_buffers():
        torch.testing.assert_close(after[-1][name], buffer, rtol=5e-3, atol=1e-3)
    # Adam's first moment is a sum of gradients: an update alone hides their scale. Of one step, since normalisation by
    # a batch of eight makes much of a rounding.
    tensors = after[0]
    _, pair, adams = plain_steps(recipe, data, 1)
    for name, adam in adams.items():
        for part, parameter in getattr(pair, name).named_parameters():
            found, expected = tensors[f"{name}.optimizer.{part}.exp_avg"], adam.state[parameter]["exp_avg"]
            assert float((found - expected).norm()) <= 5e-3 * float(expected.norm()) + 1e-9, (name, part)


def test_the_generators_step_leaves_the_critic_alone():
    trainer = training(RECIPE, TinyData(), CPU)
    loss, *_ = trainer._generator_loss(draw(trainer._objective, trainer.key, 4, 0))
    loss.backward()
    assert all(p.grad is None for p in trainer.net.critic.parameters())
    assert all(p.grad is not None for p in trainer.net.generator.parameters())


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_a_resumed_run_is_the_same(recipe, tmp_path):
    straight, halves = (tmp_path / name for name in ("straight", "halves"))
    train(RunDirectory.create_or_resume(straight, replace(recipe, steps=8)), TinyData(), CPU, log_every=1)
    for steps in (3, 8):
        train(
            RunDirectory.create_or_resume(halves, replace(recipe, steps=steps)), TinyData(), CPU, log_every=1
        )
    one, two = (checkpoint.load_newest(path / "checkpoints") for path in (straight, halves))
    assert one.step == two.step == 8
    assert one.tensors.keys() == two.tensors.keys()
    for name, tensor in one.tensors.items():
        assert torch.equal(tensor, two.tensors[name]), name
    assert (straight / "trace.csv").read_text() == (halves / "trace.csv").read_text()


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_a_bad_step_is_learnt_nothing_from(recipe):
    trainer = training(recipe, TinyData(), CPU)
    trainer.advance(2)
    with torch.no_grad():
        trainer.net.critic.score.bias.fill_(math.nan)
    before = {name: t.clone() for name, t in trainer.tensors().items() if "optimizer" not in name}
    trainer.advance(2)
    assert int(trainer.ledger.bad_step) == 2
    for name, tensor in before.items():
        torch.testing.assert_close(trainer.tensors()[name], tensor, rtol=0, atol=0, equal_nan=True)


@pytest.fixture(scope="module", params=RECIPES)
def run(request, tmp_path_factory):
    recipe = replace(RECIPES[request.param], steps=6, keep_at=(2, 4))
    run = RunDirectory.create_or_resume(tmp_path_factory.mktemp("runs") / request.param, recipe)
    train(run, TinyData(), CPU, log_every=1)
    return run


def test_report_and_traversal(run):
    text = report(run, TinyData()).read_text()
    assert "Generated images" in text
    assert "information bound" in text
    assert "Reconstructions" not in text
    assert text.count("data:image/png") == 4 + 2 + 13  # those of the explorer
    assert text.index("Codes on the way") < text.index("After step 2") < text.index("After step 4")
    early, late = ((run.figures / f"snapshot-{step}.png").read_bytes() for step in (2, 4))
    assert early != late
    files = traverse(run, TinyData(), seeds=(11,), columns=6)
    assert [path.name for path in files] == ["codes-11.png"]
    with pytest.raises(PyvaeError, match="2 to 100 columns"):
        traverse(run, TinyData(), columns=1)


def test_codes_are_moved_one_at_a_time(run):
    objective, pair = run.recipe.objective, run.pair_of(run.newest_checkpoint())
    codes = objective.draw(make_key(4), 1)
    images = moved(objective, pair, codes, 6)
    assert images.shape == (5, 6, 1, 64, 64)
    value = codes.continuous.clone()
    value[:, 1] = -1.0
    with torch.no_grad():
        expected = pair.generator.images(objective.generator_input(codes._replace(continuous=value)))
    torch.testing.assert_close(images[1, 0], expected[0])
    if objective.categories:
        assert torch.equal(images[4, 0], images[4, 1])
        assert not torch.equal(images[4, 0], images[4, 2])


def test_scores_are_of_the_information_head(run):
    data = TinyData()
    scores = score(run, data, ["mig", "factor-vae"], device=CPU)
    assert scores.keys() == {"mig", "factor-vae"}
    if run.recipe.objective.variance == "learned":
        assert "mig-chen" in score(run, data, ["mig-chen"], device=CPU)
    else:
        with pytest.raises(PyvaeError, match="mig-chen: needs the variance of every code"):
            score(run, data, ["mig", "mig-chen"], device=CPU)
    with pytest.raises(PyvaeError, match="marginal-likelihood needs a decoder's likelihood"):
        score_likelihood(run, data, device=CPU)


def test_the_categorical_code_is_its_most_probable_class():
    logits = torch.tensor([[9.0, 0, 0], [0, 9, 0], [0, 0, 9]])
    mean, logvar = CodePosterior(torch.zeros(3, 1), torch.zeros(3, 1), logits).codes()
    assert mean.tolist() == [[0, -1], [0, 0], [0, 1]]
    assert logvar.shape == mean.shape


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"latents": 10}, "--latents 5"),
        ({"architecture": "burgess"}, "kim alone"),
        ({"optimizer": "adagrad"}, "adam alone"),
        ({"likelihood": "gaussian"}, "bernoulli alone"),
    ],
)
def test_impossible_recipes(change, words):
    with pytest.raises(RecipeError, match=words):
        replace(RECIPE, **change)


@pytest.mark.parametrize(
    "change",
    [{"categories": 1}, {"continuous": 0, "categories": 0}, {"noise": -1}, {"critic_steps": 0}],
)
def test_impossible_objectives(change):
    with pytest.raises(RecipeError):
        InfoGAN(**change)


def test_the_other_kind_of_training_is_refused():
    with pytest.raises(RecipeError, match="has no decoder"):
        Trainer(RECIPE, TinyData(), CPU)
    with pytest.raises(RecipeError, match="compile"):
        training(RECIPE, TinyData(), CPU, compile=True)
    assert isinstance(training(replace(RECIPE, objective=VAE()), TinyData(), CPU), Trainer)
