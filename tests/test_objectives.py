from dataclasses import FrozenInstanceError

import pytest
import torch

from pyvae.objectives import VAE, BetaVAE, CapacityVAE, Outputs
from pyvae.schedules import linear


def outputs(recon=100.0, kl=(1.0, 2.0, 0.5)):
    return Outputs(
        torch.tensor(recon, dtype=torch.float64, requires_grad=True),
        torch.tensor(kl, dtype=torch.float64, requires_grad=True),
    )


def gradients(objective, out, step=0):
    terms = objective.terms(out, torch.tensor(step))
    return terms, *torch.autograd.grad(terms["loss"], out)


def test_vae_is_the_negative_elbo():
    terms, d_recon, d_kl = gradients(VAE(), outputs())
    assert terms["loss"] == 103.5
    assert terms["kl"] == 3.5
    assert d_recon == 1
    assert d_kl.tolist() == [1, 1, 1]


def test_beta_vae_weighs_the_kl():
    terms, d_recon, d_kl = gradients(BetaVAE(beta=4.0), outputs())
    assert terms["loss"] == 114
    assert terms["beta"] == 4
    assert d_recon == 1
    assert d_kl.tolist() == [4, 4, 4]


def test_beta_one_is_the_vae():
    out = outputs()
    assert BetaVAE(beta=1.0).terms(out, torch.tensor(0))["loss"] == VAE().terms(out, torch.tensor(0))["loss"]


@pytest.mark.parametrize(
    ("step", "capacity"), [(0, 0.0), (1, 25e-5), (50_000, 12.5), (100_000, 25.0), (10**9, 25.0)]
)
def test_capacity_rises_linearly_and_stays(step, capacity):
    terms = CapacityVAE().terms(outputs(), torch.tensor(step))
    assert terms["capacity"].dtype == torch.float64
    assert float(terms["capacity"]) == pytest.approx(capacity, abs=1e-12)


@pytest.mark.parametrize(("kl", "sign"), [(30.0, 1), (20.0, -1), (25.0, 0)])
def test_the_gradient_of_the_kl_flips_at_capacity(kl, sign):
    terms, d_recon, d_kl = gradients(CapacityVAE(gamma=7.0), outputs(kl=(kl, 0.0)), step=200_000)
    assert d_kl.tolist() == [7.0 * sign, 7.0 * sign]
    assert terms["beta"] == 7.0 * sign
    assert d_recon == 1
    assert terms["loss"] == 100 + 7 * abs(kl - 25)


def test_capacity_zero_is_beta_vae():
    out = outputs()
    a = gradients(CapacityVAE(gamma=4.0, capacity=0.0), out, step=17)
    b = gradients(BetaVAE(beta=4.0), out, step=17)
    assert a[0]["loss"] == b[0]["loss"]
    assert a[2].tolist() == b[2].tolist()


def test_the_batch_mean_is_what_capacity_constrains():
    """|mean KL - C|, not the mean of |KL - C|: images at 20 and 30 nats average to 25 and are left alone."""
    kl = torch.tensor([20.0, 30.0]).mean().reshape(1)
    terms = CapacityVAE(gamma=100.0).terms(Outputs(torch.zeros(()), kl), torch.tensor(100_000))
    assert terms["loss"] == 0


@pytest.mark.parametrize("objective", [VAE(), BetaVAE(), CapacityVAE()])
def test_ensemble_members_keep_their_own_terms(objective):
    recon, kl = torch.tensor([100.0, 50.0]), torch.tensor([[1.0, 2.0], [30.0, 4.0]])
    both = objective.terms(Outputs(recon, kl), torch.tensor(50_000))
    for member in range(2):
        alone = objective.terms(Outputs(recon[member], kl[member]), torch.tensor(50_000))
        for name, value in alone.items():
            assert both[name].shape == (2,)
            assert both[name][member] == value


def test_hyperparameters_are_frozen():
    with pytest.raises(FrozenInstanceError):
        BetaVAE().beta = 3.0


def test_linear_schedule_is_exact_in_float64_past_float32_integers():
    step = torch.tensor([0, 2**24 + 1, 2**25])
    assert linear(step, 1.0, 3.0, 2**25).tolist() == [1.0, 1.0 + 2.0 * (2**24 + 1) / 2**25, 3.0]
