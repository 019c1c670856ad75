import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from waiting import NoSynchronisation

from pyvae import reference
from pyvae.engine import checkpoint
from pyvae.engine.adam import Adam
from pyvae.engine.arithmetic import settle_arithmetic
from pyvae.engine.batches import BatchOrder
from pyvae.engine.loop import train
from pyvae.engine.recipe import Recipe
from pyvae.engine.run import RunDirectory
from pyvae.engine.trace import read_trace
from pyvae.engine.trainer import Trainer
from pyvae.engine.training import training
from pyvae.errors import PyvaeError, RecipeError, RunError
from pyvae.evaluation import score
from pyvae.nets import build
from pyvae.objectives import (
    CIWAE,
    DIPVAE,
    IWAE,
    MIWAE,
    PIWAE,
    TCVAE,
    AnnealedVAE,
    BetaVAE,
    CapacityVAE,
    ControlVAE,
    FactorVAE,
    InfoGAN,
    InfoWGANGP,
)
from pyvae.random import Stream, make_key, normal
from pyvae.report import report
from tiny import GreyData, TinyData

CPU = torch.device("cpu")
RECIPE = Recipe(objective=BetaVAE(beta=3.0), data="tiny", batch_size=16, lr=1e-3, seed=7)


def plain_losses(recipe: Recipe, data: TinyData, steps: int) -> list[float]:
    """The same run as anybody would write it, from the formulas."""
    net = build(recipe.architecture, 1, recipe.latents, init=recipe.init, seed=recipe.seed)
    optimizer = torch.optim.Adam(net.parameters(), lr=recipe.lr)
    order = BatchOrder(recipe.seed, len(data), recipe.batch_size, CPU)
    losses = []
    for step in range(steps):
        x = data.images(order.draw(step, 1)[0])
        mu, logvar = net.encoder(x)
        noise = normal(make_key(recipe.seed, step), recipe.batch_size, recipe.latents, Stream.POSTERIOR)
        logits = net.decoder(mu + (logvar / 2).exp() * noise)
        recon = F.binary_cross_entropy_with_logits(logits, x, reduction="sum") / len(x)
        kl = 0.5 * (mu**2 + logvar.exp() - 1 - logvar).sum() / len(x)
        loss = recon + recipe.objective.beta * kl
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append([loss.item(), recon.item(), kl.item()])
    return losses


def advanced(trainer: Trainer) -> torch.Tensor:
    trainer.advance()
    return trainer.ledger.row.clone()


def test_steps_equal_a_plain_training_loop():
    data = TinyData()
    trainer = Trainer(RECIPE, data, CPU)
    rows = torch.stack([advanced(trainer)[:3] for _ in range(8)])
    torch.testing.assert_close(
        rows, torch.tensor(plain_losses(RECIPE, data, 8), dtype=torch.float64), rtol=2e-4, atol=0
    )


def test_a_row_names_its_values():
    trainer = Trainer(replace(RECIPE, objective=CapacityVAE(gamma=2.0, capacity_steps=10)), TinyData(), CPU)
    trainer.advance()
    row = dict(zip(trainer.fields, advanced(trainer).tolist(), strict=True))
    assert row["capacity"] == 2.5
    assert row["kl"] == pytest.approx(sum(row[f"kl_{j}"] for j in range(10)), rel=1e-6)
    assert row["loss"] == pytest.approx(row["recon"] + 2 * abs(row["kl"] - 2.5), rel=1e-6)
    assert row["beta"] == -2


def test_training_learns():
    trainer = Trainer(replace(RECIPE, objective=BetaVAE(beta=1.0), init="kaiming"), TinyData(), CPU)
    rows = [advanced(trainer) for _ in range(150)]
    first, last = rows[0][1], torch.stack(rows[-10:])[:, 1].mean()
    assert last < 0.15 * first


def test_three_channels():
    trainer = Trainer(replace(RECIPE, batch_size=4), TinyData(channels=3), CPU)
    assert torch.isfinite(advanced(trainer)).all()


def test_bits_and_bytes_give_what_images_do():
    plain, packed, bytes_ = TinyData(), TinyData(), TinyData()
    everything = plain.images(torch.arange(len(plain)))
    packed.bits = reference.pack_bits(everything.flatten(1))
    bytes_.pixels = (everything * 255).to(torch.uint8)
    trainers = [Trainer(RECIPE, data, CPU) for data in (plain, packed, bytes_)]
    for _ in range(3):
        first, *others = (advanced(trainer) for trainer in trainers)
        for other in others:
            torch.testing.assert_close(other, first, rtol=1e-6, atol=1e-7)


def test_several_steps_at_once_are_the_same_steps():
    one, many = Trainer(RECIPE, TinyData(), CPU), Trainer(RECIPE, TinyData(), CPU)
    rows = [(step, advanced(one).tolist()) for step in range(7)]
    many.advance(5)
    many.advance(2)
    assert many.ledger.ring.copy(0, 7).wait() == rows
    assert many.key.tolist() == [7, 7]
    assert all(torch.equal(t, many.tensors()[name]) for name, t in one.tensors().items())


def test_the_mode_sees_what_waits():
    with NoSynchronisation():
        for wait in (float, bool, torch.Tensor.item, torch.nonzero, lambda x: x[x > 0]):
            with pytest.raises(AssertionError, match="waits for the device"):
                wait(torch.ones(1))


OBJECTIVES = {
    "beta-vae": BetaVAE(),
    "capacity-vae": CapacityVAE(),
    "control-vae": ControlVAE(schedule="adaptive", capacity_steps=40),
    "annealed-vae": AnnealedVAE(),
    "factor-vae": FactorVAE(discriminator_width=20),
    "tc-vae": TCVAE(),
    "dip-vae": DIPVAE(),
    "iwae": IWAE(samples=3),
    "miwae": MIWAE(outer=2, samples=3, gradient="dreg"),
    "piwae": PIWAE(outer=2, samples=3),
    "ciwae": CIWAE(samples=3),
    "infogan": InfoGAN(),
    "infogan-without-buffers": InfoGAN(batch_norm=False, spectral_norm=False),
    "infowgan-gp": InfoWGANGP(critic_steps=2),
    "infowgan-gp-learned": InfoWGANGP(critic_steps=2, continuous=5, categories=0, variance="learned"),
}


def recipe_of(objective, **changes):
    adversarial = {"architecture": "kim", "latents": 5} if isinstance(objective, InfoGAN) else {}
    return replace(RECIPE, objective=objective, **adversarial, **changes)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES)
@pytest.mark.parametrize("store", ["bits", "pixels"])
def test_a_step_never_waits_for_the_device(objective, precision, store, monkeypatch):
    """The reference and the steps around it; on a CPU the compiled loss reads its upstream gradient."""
    monkeypatch.setenv("PYVAE_BACKEND", "reference")
    data = TinyData()
    everything = data.images(torch.arange(len(data)))
    if store == "bits":
        data.bits = reference.pack_bits(everything.flatten(1))
    else:
        data.pixels = (everything * 255).to(torch.uint8)
    trainer = training(recipe_of(objective, precision=precision, batch_size=4), data, CPU, log_every=2)
    trainer.advance()
    with NoSynchronisation() as mode:
        trainer._step()
        trainer._step()
    assert mode.calls > 100
    assert trainer.key.tolist() == [RECIPE.seed, 3]


def test_binarisation_and_stages_never_wait_for_the_device(monkeypatch):
    monkeypatch.setenv("PYVAE_BACKEND", "reference")
    recipe = replace(
        RECIPE, objective=PIWAE(), architecture="rainforth", binarise="stochastic", lr_stage_steps=1
    )
    trainer = Trainer(recipe, GreyData(), CPU)
    trainer.advance()
    before = trainer.ledger.row.clone()
    with NoSynchronisation() as mode:
        trainer._step()
    assert mode.calls > 100
    assert not torch.equal(before, trainer.ledger.row)


@pytest.mark.parametrize("optimizer", ["adam", "adagrad"])
@pytest.mark.parametrize("kind", ["beta-vae", "factor-vae", "control-vae", "piwae"])
@pytest.mark.parametrize("where", ["loss", "gradient", "discriminator"])
def test_a_step_that_is_not_finite_changes_nothing(kind, optimizer, where, monkeypatch):
    objective = OBJECTIVES[kind]
    if where == "discriminator" and not isinstance(objective, FactorVAE):
        pytest.skip("has none")
    trainer = Trainer(replace(RECIPE, objective=objective, optimizer=optimizer), TinyData(), CPU)
    assert_a_bad_step_changes_nothing(trainer, where, monkeypatch)


@pytest.mark.usefixtures("triton_backend", "wide_blocks")
@pytest.mark.parametrize(
    ("kind", "where"),
    [
        pytest.param("beta-vae", "gradient", marks=pytest.mark.slow),
        pytest.param("beta-vae", "loss", marks=pytest.mark.slow),
        pytest.param("factor-vae", "discriminator", marks=pytest.mark.slow),
    ],
)
def test_nor_does_it_on_kernels(kind, where, device, monkeypatch):
    trainer = Trainer(recipe_of(OBJECTIVES[kind], batch_size=4), TinyData(), device, capture=False)
    assert isinstance(trainer._trained.optimizer, Adam)
    assert_a_bad_step_changes_nothing(trainer, where, monkeypatch)


def assert_a_bad_step_changes_nothing(trainer, where, monkeypatch):
    trainer.advance(4)
    before = {name: t.clone() for name, t in trainer.tensors().items()}
    if where == "loss":
        poison = torch.tensor(float("nan"), device=trainer.device)
        monkeypatch.setattr(
            trainer.net.decoder[-1], "forward", lambda x, old=trainer.net.decoder[-1].forward: old(x) + poison
        )
        first = "loss"
    elif where == "gradient":
        trainer.net.encoder.head.bias.register_hook(lambda grad: grad * torch.inf)
        first = "grad_norm"
    else:
        parameter = next(trainer._adversary.trained.module.parameters())
        parameter.register_hook(lambda grad: grad * torch.nan)
        first = "discriminator"
    trainer.advance(3)
    assert int(trainer.ledger.bad_step) == 4
    after = trainer.tensors()
    untouched = [n for n in before if not (first == "discriminator" and n.startswith("net."))]
    assert untouched
    for name in untouched:
        if not name.endswith(".step") or trainer.recipe.optimizer == "adam":
            assert torch.equal(before[name], after[name]), name
    if first != "discriminator":
        row = dict(zip(trainer.fields, trainer.ledger.bad_row.tolist(), strict=True))
        assert next(name for name, value in row.items() if not math.isfinite(value)) == first


def test_divergence_stops_the_run_and_spares_the_checkpoint(tmp_path, monkeypatch):
    run = RunDirectory.create_or_resume(tmp_path / "run", replace(RECIPE, steps=3))
    train(run, TinyData(), CPU, log_every=1)
    good = checkpoint.load_newest(run.checkpoints)
    advance = Trainer.advance

    def poisoned(self, count=1):
        if self.step == 5:
            self.net.encoder.head.bias.data[0] = float("nan")
        advance(self, count)

    monkeypatch.setattr(Trainer, "advance", poisoned)
    longer = RunDirectory.create_or_resume(tmp_path / "run", replace(RECIPE, steps=20))
    said = (
        r"loss is not finite in step 5, so nothing was learnt from it on; the checkpoint of step 3 is intact"
    )
    with pytest.raises(RunError, match=said):
        train(longer, TinyData(), CPU, log_every=1)
    after = checkpoint.load_newest(run.checkpoints)
    assert after.step == 3
    assert all(torch.equal(t, after.tensors[name]) for name, t in good.tensors.items())


def test_the_controller_follows_its_equations_and_is_restored():
    """KL of each step, beta and C of the trace, by Python's own float64."""
    # from above, so that beta never comes to its limit and the integral is the plain sum
    objective = ControlVAE(
        schedule="linear", capacity_start=0.0, capacity_steps=10**6, kp=0.3, ki=0.05, beta_min=-99.0
    )
    trainer = Trainer(replace(RECIPE, objective=objective), TinyData(), CPU)
    integral = 0.0
    for step in range(12):
        if step == 6:
            other = Trainer(replace(RECIPE, objective=objective), TinyData(), CPU)
            other.restore(6, {name: t.clone() for name, t in trainer.tensors().items()})
            trainer = other
        row = dict(zip(trainer.fields, advanced(trainer).tolist(), strict=True))
        capacity = 16 * step / 10**6
        error = capacity - row["kl"]
        integral -= 0.05 * error
        beta = 0.3 / (1 + math.exp(error)) + integral - 99.0
        assert row["capacity"] == pytest.approx(capacity, rel=1e-6)
        assert row["beta"] == pytest.approx(beta, abs=1e-9)
        assert row["loss"] == pytest.approx(row["recon"] + beta * row["kl"], rel=1e-5)


def test_a_code_of_true_factors(tmp_path):
    data = TinyData()
    recipe = replace(
        RECIPE, code="factors", latents=3, steps=40, objective=CapacityVAE(gamma=50, capacity_steps=40)
    )
    run = RunDirectory.create_or_resume(tmp_path / "run", recipe)
    train(run, data, CPU, log_every=1)
    net, _ = run.load_net()
    assert net.reads_factors
    assert not torch.equal(net.encoder.scale, torch.full((3,), 0.1))
    with pytest.raises(PyvaeError, match=r"the code of .* is its true factors"):
        score(run, data, ["mig"], device=CPU)
    report(run, data)
    assert {"recon", "kl"} <= read_trace(run.path / "trace.csv").keys()
    with pytest.raises(RecipeError, match="tiny has 3 factors: --latents 3"):
        Trainer(replace(recipe, latents=10), data, CPU)


@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
def test_likelihoods(likelihood):
    trainer = Trainer(replace(RECIPE, likelihood=likelihood, sampling="replacement"), TinyData(), CPU)
    index = BatchOrder(RECIPE.seed, 120, RECIPE.batch_size, CPU, replacement=True).draw(0, 1)[0]
    x = TinyData().images(index)
    with torch.no_grad():
        mu, logvar = trainer.net.encoder(x)
        noise = normal(make_key(RECIPE.seed, 0), len(x), RECIPE.latents, Stream.POSTERIOR)
        logits = trainer.net.decoder(mu + (logvar / 2).exp() * noise)
    exact = {
        "bernoulli": F.binary_cross_entropy_with_logits(logits, x, reduction="sum"),
        "gaussian": 0.5 * ((logits.sigmoid() - x) ** 2).sum(),
    }[likelihood]
    row = dict(zip(trainer.fields, advanced(trainer).tolist(), strict=True))
    assert row["recon"] == pytest.approx(float(exact) / len(x), rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    "objective", [BetaVAE(), FactorVAE(discriminator_width=20)], ids=["beta-vae", "factor-vae"]
)
def test_compiled_networks_train_alike(objective):
    recipe = replace(RECIPE, objective=objective)
    plain, compiled, again = (Trainer(recipe, TinyData(), CPU, compile=c) for c in (False, True, True))
    assert plain.tensors().keys() == compiled.tensors().keys()
    for _ in range(3):
        rows = [advanced(trainer) for trainer in (plain, compiled, again)]
        torch.testing.assert_close(rows[0], rows[1], rtol=1e-3, atol=1e-4)
        assert torch.equal(rows[1], rows[2])


def test_images_of_another_size_are_refused():
    data = TinyData()
    data.image_shape = (1, 32, 32)
    with pytest.raises(RecipeError, match=r"32 x 32, but the networks take 64 x 64: --image-size 64"):
        Trainer(RECIPE, data, CPU)


@pytest.mark.gpu
def test_cpu_and_gpu_agree_at_first():
    settle_arithmetic("fp32")
    cpu, gpu = (Trainer(RECIPE, TinyData(), torch.device(d)) for d in ("cpu", "cuda"))
    for _ in range(3):
        torch.testing.assert_close(advanced(gpu).cpu(), advanced(cpu), rtol=1e-3, atol=1e-4)


@pytest.mark.gpu
@pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES)
@pytest.mark.parametrize("store", ["bits", "pixels", "images"])
def test_captured_steps_are_the_eager_ones(objective, store):
    """Bit for bit: the same kernels run; other noise, batches and permutations in every replay."""
    data = TinyData()
    everything = data.images(torch.arange(len(data)))
    if store == "bits":
        data.bits = reference.pack_bits(everything.flatten(1))
    elif store == "pixels":
        data.pixels = (everything * 255).to(torch.uint8)
    assert_captured_steps_are_eager(recipe_of(objective), data)


@pytest.mark.gpu
def test_captured_stages_and_binarisation_are_the_eager_ones():
    recipe = replace(
        RECIPE,
        objective=PIWAE(gradient="dreg"),
        architecture="rainforth",
        binarise="stochastic",
        lr_stage_steps=7,
    )
    assert_captured_steps_are_eager(recipe, GreyData())


def assert_captured_steps_are_eager(recipe, data):
    settle_arithmetic("fp32")
    eager, captured = (training(recipe, data, torch.device("cuda"), capture=c) for c in (False, True))
    for portion in (5, 70, 3, 32):
        eager.advance(portion)
        captured.advance(portion)
    assert captured._capture is not None
    rows = [trainer.ledger.ring.copy(0, 110).wait() for trainer in (eager, captured)]
    assert rows[0] == rows[1]
    assert len({row[1][1] for row in rows[1]}) == 110
    for name, tensor in eager.tensors().items():
        assert torch.equal(tensor, captured.tensors()[name]), name


@pytest.mark.gpu
def test_checks_of_values_leave_steps_uncaptured(monkeypatch):
    monkeypatch.setenv("PYVAE_CHECK", "1")
    trainer = Trainer(RECIPE, TinyData(), torch.device("cuda"))
    trainer.advance(64)
    assert trainer._capture is None


@pytest.mark.gpu
def test_a_captured_run_resumes_bit_for_bit():
    device = torch.device("cuda")
    settle_arithmetic("fp32")
    straight, first, second = (Trainer(RECIPE, TinyData(), device) for _ in range(3))
    straight.advance(150)
    first.advance(77)
    second.restore(first.step, {name: t.cpu() for name, t in first.tensors().items()})
    second.advance(150 - 77)
    for name, tensor in straight.tensors().items():
        assert torch.equal(tensor, second.tensors()[name]), name
