"""FactorVAE: its objective, its discriminator, and that neither's gradient leaks into the other."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from pyvae.engine.recipe import Recipe
from pyvae.engine.trainer import Trainer
from pyvae.nets import build_discriminator, count_weights
from pyvae.objectives import FactorVAE
from pyvae.random import make_key
from pyvae.reference import permute_dims
from tiny import TinyData

CPU = torch.device("cpu")
SMALL = FactorVAE(gamma=5.0, discriminator_layers=2, discriminator_width=32)
RECIPE = Recipe(objective=SMALL, data="tiny", architecture="kim", batch_size=8, lr=1e-3, latents=4)


def grads(module):
    return [p.grad for p in module.parameters()]


def test_published_size():
    assert count_weights(build_discriminator(10)) == 5_018_002


@pytest.mark.parametrize("layers", [1, 5, 6])
def test_discriminator_is_leaky_between_linear_layers(layers):
    net = build_discriminator(3, layers, 16, seed=1)
    x = z = torch.randn(7, 3)
    for layer in [m for m in net if isinstance(m, torch.nn.Linear)][:-1]:
        x = F.leaky_relu(layer(x), 0.2)
    torch.testing.assert_close(net(z), net[-1](x))
    assert sum(isinstance(m, torch.nn.Linear) for m in net) == layers + 1


def test_total_correlation_is_the_mean_log_odds():
    net = SMALL.discriminator(4)
    z = torch.randn(9, 4)
    odds = torch.softmax(net(z), 1)
    expected = (odds[:, 0] / (1 - odds[:, 0])).log().mean()
    torch.testing.assert_close(SMALL.total_correlation(net, z), expected, rtol=1e-4, atol=1e-6)


def test_a_discriminator_that_cannot_tell_sees_no_total_correlation():
    net = SMALL.discriminator(4)
    torch.nn.init.zeros_(net[-1].weight)
    torch.nn.init.zeros_(net[-1].bias)
    assert SMALL.total_correlation(net, torch.randn(9, 4)) == 0


def test_the_discriminators_loss():
    net, z, second, key = SMALL.discriminator(4), torch.randn(6, 4), torch.randn(6, 4), make_key(1, 2)
    joint, product = torch.log_softmax(net(z), 1), torch.log_softmax(net(permute_dims(second, key=key)), 1)
    expected = -0.5 * (joint[:, 0].mean() + product[:, 1].mean())
    torch.testing.assert_close(SMALL.discriminator_loss(net, z, second, key), expected)


def test_no_gradient_leaks_either_way():
    net = SMALL.discriminator(4)
    z, second = (torch.randn(6, 4, requires_grad=True) for _ in range(2))
    SMALL.total_correlation(net, z).backward()
    assert z.grad.abs().sum() > 0
    assert grads(net) == [None] * len(list(net.parameters()))
    z.grad = None
    SMALL.discriminator_loss(net, z, second, make_key(0)).backward()
    assert z.grad is None
    assert second.grad is None
    assert all(g is not None for g in grads(net))


def test_a_step_moves_both_and_each_by_its_own_loss(monkeypatch):
    trainer = Trainer(RECIPE, TinyData(), CPU)
    discriminator = trainer._adversary.trained.module
    seen = {}
    total_correlation = FactorVAE.total_correlation

    def recorded(net, z):
        seen["z"] = z.detach()
        return total_correlation(net, z)

    monkeypatch.setattr(FactorVAE, "total_correlation", staticmethod(recorded))
    before = [p.detach().clone() for p in discriminator.parameters()]
    trainer.advance()
    row = dict(zip(trainer.fields, trainer.ledger.row.tolist(), strict=True))
    assert row["loss"] == pytest.approx(row["recon"] + row["kl"] + 5 * row["tc"], rel=1e-6)
    assert row["discriminator_loss"] == pytest.approx(0.69, abs=0.05)
    assert any(not torch.equal(a, b) for a, b in zip(before, discriminator.parameters(), strict=True))


def test_gamma_zero_trains_the_vae_as_if_there_were_no_discriminator():
    from pyvae.objectives import VAE

    free = Trainer(replace(RECIPE, objective=replace(SMALL, gamma=0.0)), TinyData(), CPU)
    plain = Trainer(replace(RECIPE, objective=VAE()), TinyData(), CPU)
    for _ in range(4):
        free.advance()
        plain.advance()
        assert free.ledger.row[:3].tolist() == plain.ledger.row[:3].tolist()


def test_the_second_batch_is_another_one():
    trainer = Trainer(RECIPE, TinyData(), CPU)
    trainer.advance()
    for step in range(1, 20):
        trainer._batches.prepare(step)
        trainer._second.prepare(step)
        first, second = (b.batch(torch.tensor(step)).images for b in (trainer._batches, trainer._second))
        assert not torch.equal(first, second)


def test_the_discriminator_learns_and_total_correlation_can_be_pushed_down():
    """Two equal coordinates have a large TC: D finds it, and following its gradient in z lowers it."""
    torch.manual_seed(0)
    objective = replace(SMALL, discriminator_lr=3e-3)
    net = objective.discriminator(2)
    optimizer = objective.discriminator_optimizer(net)

    def draw():
        x = torch.randn(256, 1)
        return torch.cat([x, x + 0.1 * torch.randn(256, 1)], 1)

    for step in range(300):
        optimizer.zero_grad()
        objective.discriminator_loss(net, draw(), draw(), make_key(0, step)).backward()
        optimizer.step()
    z = draw().requires_grad_()
    tc = objective.total_correlation(net, z)
    # of two normals with correlation 1 / sqrt(1.01): -1/2 log(1 - rho^2) = 2.31 nats
    assert 1.2 < tc < 3.5
    (gradient,) = torch.autograd.grad(tc, z)
    assert objective.total_correlation(net, z - 5.0 * gradient) < tc


def test_in_bfloat16_the_discriminator_multiplies_in_it_and_its_losses_are_float32(monkeypatch):
    monkeypatch.setenv("PYVAE_BACKEND", "reference")
    trainers = [Trainer(replace(RECIPE, precision=p), TinyData(), CPU) for p in ("fp32", "bf16")]
    seen, losses = [], []
    for layer in trainers[1]._adversary.trained.module:
        layer.register_forward_hook(lambda module, args, y: seen.append(y.dtype))
    for name in ("total_correlation", "loss"):
        plain = getattr(trainers[1]._adversary, name)
        monkeypatch.setattr(
            trainers[1]._adversary, name, lambda *args, plain=plain: losses.append(plain(*args)) or losses[-1]
        )
    for trainer in trainers:
        trainer.advance()
    assert seen == [torch.bfloat16] * 10
    assert [loss.dtype for loss in losses] == [torch.float32] * 2
    assert all(p.grad.dtype == torch.float32 for p in trainers[1]._adversary.trained.module.parameters())
    exact, rough = (dict(zip(t.fields, t.ledger.row.tolist(), strict=True)) for t in trainers)
    for field in ("tc", "discriminator_loss", "discriminator_grad_norm"):
        assert rough[field] != exact[field]
        assert rough[field] == pytest.approx(exact[field], rel=0.03, abs=1e-3)


def test_under_autocast_losses_are_sums_in_float32():
    net, z = SMALL.discriminator(4), torch.randn(6, 4)
    with torch.autocast("cpu", torch.bfloat16):
        tc = SMALL.total_correlation(net, z)
        loss = SMALL.discriminator_loss(net, z, z, make_key(1, 2))
        logits = net(z)
    assert tc.dtype == loss.dtype == torch.float32
    assert logits.dtype == torch.bfloat16
    assert tc == (logits[:, 0].float() - logits[:, 1].float()).mean()
    loss = SMALL.discriminator_loss(net.bfloat16(), z.bfloat16(), z.bfloat16(), make_key(1, 2))
    assert loss.dtype == torch.float32
