from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from pyvae import reference
from pyvae.engine import checkpoint
from pyvae.engine.loop import train
from pyvae.engine.recipe import Recipe
from pyvae.engine.run import Run
from pyvae.engine.trainer import Trainer
from pyvae.errors import RunError
from pyvae.nets import build
from pyvae.objectives import BetaVAE, CapacityVAE
from pyvae.random import Stream, make_key, normal
from tiny import TinyData

CPU = torch.device("cpu")
RECIPE = Recipe(objective=BetaVAE(beta=3.0), data="tiny", batch_size=16, lr=1e-3, seed=7)


def plain_losses(recipe: Recipe, data: TinyData, steps: int) -> list[float]:
    """The same run as anybody would write it, from the formulas."""
    net = build(recipe.architecture, 1, recipe.latents, init=recipe.init, seed=recipe.seed)
    optimizer = torch.optim.Adam(net.parameters(), lr=recipe.lr)
    order = Trainer(recipe, data, CPU)._order
    losses = []
    for step in range(steps):
        x = data.images(order.index(step))
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


def test_steps_equal_a_plain_training_loop():
    data = TinyData()
    trainer = Trainer(RECIPE, data, CPU)
    rows = torch.stack([trainer.advance()[:3] for _ in range(8)])
    torch.testing.assert_close(
        rows, torch.tensor(plain_losses(RECIPE, data, 8), dtype=torch.float64), rtol=2e-4, atol=0
    )


def test_a_row_names_its_values():
    trainer = Trainer(replace(RECIPE, objective=CapacityVAE(gamma=2.0, capacity_steps=10)), TinyData(), CPU)
    trainer.advance()
    row = dict(zip(trainer.fields, trainer.advance().tolist(), strict=True))
    assert row["capacity"] == 2.5
    assert row["kl"] == pytest.approx(sum(row[f"kl_{j}"] for j in range(10)), rel=1e-6)
    assert row["loss"] == pytest.approx(row["recon"] + 2 * abs(row["kl"] - 2.5), rel=1e-6)
    assert row["beta"] == -2


def test_training_learns():
    trainer = Trainer(replace(RECIPE, objective=BetaVAE(beta=1.0), init="kaiming"), TinyData(), CPU)
    rows = [trainer.advance() for _ in range(150)]
    first, last = rows[0][1], torch.stack(rows[-10:])[:, 1].mean()
    assert last < 0.15 * first


def test_three_channels():
    trainer = Trainer(replace(RECIPE, batch_size=4), TinyData(channels=3), CPU)
    assert torch.isfinite(trainer.advance()).all()


def test_bits_on_a_device_give_what_images_do(monkeypatch):
    """The path that keeps bits resident, which only other devices take, on the CPU."""
    data = TinyData()
    data.bits = reference.pack_bits(data.images(torch.arange(len(data))).flatten(1))
    plain, packed = Trainer(RECIPE, data, CPU), Trainer(RECIPE, data, CPU)
    packed._source._bits = data.bits
    for _ in range(3):
        assert torch.equal(plain.advance(), packed.advance())


def test_divergence_stops_the_run_and_spares_the_checkpoint(tmp_path, monkeypatch):
    run = Run.create_or_resume(tmp_path / "run", replace(RECIPE, steps=3))
    train(run, TinyData(), CPU, log_every=1)
    good = checkpoint.load_newest(run.checkpoints)
    advance = Trainer.advance

    def poisoned(self):
        if self.step == 5:
            self.net.encoder.head.bias.data[0] = float("nan")
        return advance(self)

    monkeypatch.setattr(Trainer, "advance", poisoned)
    longer = Run.create_or_resume(tmp_path / "run", replace(RECIPE, steps=20))
    with pytest.raises(RunError, match=r"not finite from step 5 on; the checkpoint of step 3 is intact"):
        train(longer, TinyData(), CPU, log_every=1)
    after = checkpoint.load_newest(run.checkpoints)
    assert after.step == 3
    assert all(torch.equal(t, after.tensors[name]) for name, t in good.tensors.items())


@pytest.mark.gpu
def test_cpu_and_gpu_agree_at_first():
    cpu, gpu = (Trainer(RECIPE, TinyData(), torch.device(d)) for d in ("cpu", "cuda"))
    for _ in range(3):
        torch.testing.assert_close(gpu.advance().cpu(), cpu.advance(), rtol=1e-3, atol=1e-4)
