import json
from dataclasses import FrozenInstanceError

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from pyvae import reference
from pyvae.engine.recipe import Recipe
from pyvae.errors import RecipeError
from pyvae.nets.adversarial import CodePosterior
from pyvae.objectives import (
    DIPVAE,
    OBJECTIVES,
    TCVAE,
    TERMS,
    VAE,
    AnnealedVAE,
    BetaVAE,
    CapacityVAE,
    ControlVAE,
    ImportanceWeighted,
    InfoGAN,
    Outputs,
)
from pyvae.random import make_key
from pyvae.recipes import RECIPES
from pyvae.schedules import linear


def outputs(recon=100.0, kl=(1.0, 2.0, 0.5), lead=()):
    generator = torch.Generator().manual_seed(0)
    shape = (*lead, 6, 3)
    return Outputs(
        torch.as_tensor(recon, dtype=torch.float64).requires_grad_(),
        torch.as_tensor(kl, dtype=torch.float64).requires_grad_(),
        *(torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_() for _ in range(3)),
        dataset_size=100,
    )


def gradients(objective, out, step=0):
    terms = objective.terms(out, torch.tensor(step))
    return terms, *torch.autograd.grad(terms["loss"], out[:2])


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
    terms = CapacityVAE(gamma=100.0).terms(outputs(recon=0.0, kl=kl), torch.tensor(100_000))
    assert terms["loss"] == 0


class TestAnnealedVAE:
    @pytest.mark.parametrize(
        ("schedule", "step", "beta"),
        [
            ("linear", 0, 0.0),
            ("linear", 2_500, 0.25),
            ("logistic", 5_000, 0.5),
            ("cyclical", 2_500, 0.0),
            ("cyclical", 3_125, 0.5),
            ("cyclical", 4_999, 1.0),
            *((schedule, 10_000, 1.0) for schedule in ("linear", "logistic", "cyclical")),
        ],
    )
    def test_the_kl_has_its_weight(self, schedule, step, beta):
        terms, d_recon, d_kl = gradients(AnnealedVAE(schedule=schedule), outputs(), step)
        assert terms["beta"].dtype == torch.float64
        assert terms["beta"] == beta
        assert terms["loss"] == 100 + 3.5 * beta
        assert d_recon == 1
        assert d_kl.tolist() == [beta] * 3

    def test_single_precision_losses_stay_so(self):
        out = Outputs(*(x.detach().float() for x in outputs()[:5]), dataset_size=100)
        assert AnnealedVAE().terms(out, torch.tensor(3))["loss"].dtype == torch.float32

    @pytest.mark.parametrize("change", [{"annealing_steps": 0}, {"cycles": 0}, {"proportion": 0.0}])
    def test_what_cannot_be_is_refused(self, change):
        with pytest.raises(RecipeError, match=f"{next(iter(change))} must be"):
            AnnealedVAE(**change)

    def test_an_unknown_schedule_is_named(self):
        with pytest.raises(
            RecipeError, match="schedule must be 'linear' or 'logistic' or 'cyclical', got 'cos"
        ):
            AnnealedVAE(schedule="cosine")

    def test_a_cycle_has_a_step(self):
        with pytest.raises(RecipeError, match="cycles must be at most annealing_steps, got 5 in 4 steps"):
            AnnealedVAE(schedule="cyclical", cycles=5, annealing_steps=4)
        assert AnnealedVAE(schedule="linear", cycles=5, annealing_steps=4).cycles == 5

    def test_the_published_cycles(self):
        recipe = RECIPES["cyclical-annealing"][1]
        assert recipe.objective == AnnealedVAE("cyclical", recipe.steps, cycles=4, proportion=0.5)
        assert RECIPES["kl-annealing"][1].objective == AnnealedVAE("logistic", 10_000)


ALL = [
    VAE(),
    BetaVAE(),
    CapacityVAE(),
    AnnealedVAE("linear", 80_000),
    AnnealedVAE("logistic", 80_000),
    AnnealedVAE("cyclical", 80_000),
    TCVAE(),
    TCVAE(weighting="mss"),
    TCVAE(annealing_from=15.0, annealing_steps=80_000),
    TCVAE(alpha=2.0, gamma=0.5, kl_estimate="exact", annealing_from=15.0, annealing_steps=80_000),
    DIPVAE(),
    DIPVAE(variant="ii"),
]


@pytest.mark.parametrize("objective", ALL)
def test_ensemble_members_keep_their_own_terms(objective):
    both = outputs([100.0, 50.0], [[1.0, 2.0, 3.0], [30.0, 4.0, 0.1]], lead=(2,))
    terms = objective.terms(both, torch.tensor(50_000))
    assert set(terms) == {*TERMS, *objective.extra_terms}
    for member in range(2):
        one = Outputs(*(x[member] for x in both[:5]), dataset_size=100)
        for name, value in objective.terms(one, torch.tensor(50_000)).items():
            assert terms[name].shape == (2,)
            torch.testing.assert_close(terms[name][member], value)


class NoProducts(TorchDispatchMode):
    """Refuses what a library may compute in TF32."""

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        name = op.overloadpacket.__name__
        assert not name.endswith(("mm", "mv", "dot", "linear", "convolution")), name
        return op(*args, **(kwargs or {}))


def loss_of(objective):
    """With elementwise networks around it."""
    mu, logvar, z = (torch.randn(6, 3, requires_grad=True) for _ in range(3))
    key = make_key(1)
    if isinstance(objective, InfoGAN):
        codes = objective.draw(key, 6)
        logits = torch.randn(6, objective.categories, requires_grad=True)
        mean, spread = (torch.randn(6, objective.continuous, requires_grad=True) for _ in range(2))
        scores = mu.sum(-1), z.sum(-1)
        bounds = objective.information(CodePosterior(mean, spread, logits), codes)
        return bounds.sum() + objective.critic_loss(*scores) + objective.generator_loss(scores[1])
    if isinstance(objective, ImportanceWeighted):
        return objective.sampled_terms(
            mu,
            logvar,
            torch.rand(6, 1, 2, 2),
            lambda z: z.sum(-1).view(-1, 1, 1, 1).expand(-1, 1, 2, 2),
            key=key,
        )[0]["loss"]
    control = objective.initial_control("cpu") if isinstance(objective, ControlVAE) else None
    out = Outputs(mu.sum(), (mu * logvar).mean(0), z, mu, logvar, 100, z.mean(), control)
    return objective.terms(out, torch.tensor(3))["loss"]


@pytest.mark.parametrize("objective", [*(kind() for kind in OBJECTIVES.values()), *ALL], ids=str)
def test_a_loss_is_float32_whatever_products_are(objective, monkeypatch):
    monkeypatch.setenv("PYVAE_BACKEND", "reference")
    with pytest.raises(AssertionError, match="mm"), NoProducts():
        torch.ones(2, 2) @ torch.ones(2, 2)
    with NoProducts():
        loss_of(objective).backward()


class TestTCVAE:
    def test_with_all_weights_one_it_is_the_vae_with_a_sampled_kl(self):
        out = outputs()
        terms = TCVAE(beta=1.0).terms(out, torch.tensor(0))
        normal = torch.distributions.Normal
        given = normal(out.mu, (out.logvar / 2).exp()).log_prob(out.z).sum(1)
        sampled = (given - normal(0.0, 1.0).log_prob(out.z).sum(1)).mean()
        torch.testing.assert_close(terms["mi"] + terms["tc"] + terms["dwkl"], sampled)
        torch.testing.assert_close(terms["loss"], 100 + sampled)

    def test_each_part_has_its_weight(self):
        terms = TCVAE(alpha=2.0, beta=6.0, gamma=0.5).terms(outputs(), torch.tensor(0))
        expected = 100 + 2 * terms["mi"] + 6 * terms["tc"] + 0.5 * terms["dwkl"]
        torch.testing.assert_close(terms["loss"], expected)

    def test_the_exact_kl_replaces_the_sampled_one(self):
        out = outputs()
        sampled, exact = (
            TCVAE(alpha=2.0, beta=6.0, gamma=0.5, kl_estimate=estimate).terms(out, torch.tensor(0))
            for estimate in ("sampled", "exact")
        )
        difference = out.kl.sum() - sum(exact[name] for name in ("mi", "tc", "dwkl"))
        assert abs(float(difference.detach())) > 0.01
        torch.testing.assert_close(exact["loss"], sampled["loss"] + 2 * difference)

    @pytest.mark.parametrize(("step", "multiple"), [(0, 16.0), (25, 8.0), (50, 4.0), (100, 1.0), (1000, 1.0)])
    def test_annealed_weights_halve_in_equal_times(self, step, multiple):
        objective = TCVAE(alpha=2.0, beta=6.0, gamma=0.5, annealing_from=16.0, annealing_steps=100)
        terms = objective.terms(outputs(), torch.tensor(step))
        penalty = 2 * terms["mi"] + 6 * terms["tc"] + 0.5 * terms["dwkl"]
        torch.testing.assert_close(terms["loss"], 100 + multiple * penalty)
        torch.testing.assert_close(float(terms["beta"]), multiple * 6)

    def test_the_parts_are_those_of_the_estimator(self):
        out = outputs()
        joint, product = reference.aggregate_log_density(
            out.z, out.mu, out.logvar, dataset_size=100, weighting="mss"
        )
        terms = TCVAE(weighting="mss").terms(out, torch.tensor(0))
        torch.testing.assert_close(terms["tc"], (joint - product).mean())


class TestDIPVAE:
    def penalty(self, out, second):
        """From numpy's covariance, which divides by the batch."""
        s = torch.tensor(np.cov(out.mu.detach().numpy().T, bias=True))
        if second:
            s = s + torch.diag(out.logvar.detach().exp().mean(0))
        off = s - torch.diag(s.diag())
        return 10 * (off**2).sum() + 100 * ((s.diag() - 1) ** 2).sum()

    @pytest.mark.parametrize("variant", ["i", "ii"])
    def test_penalty(self, variant):
        out = outputs()
        terms = DIPVAE(variant=variant).terms(out, torch.tensor(0))
        torch.testing.assert_close(terms["dip"], self.penalty(out, variant == "ii"))
        torch.testing.assert_close(terms["loss"], 103.5 + terms["dip"])

    def test_an_identity_covariance_costs_nothing(self):
        out = outputs()
        corners = torch.tensor([[1.0, 1], [1, -1], [-1, 1], [-1, -1]], dtype=torch.float64)
        terms = DIPVAE().terms(out._replace(mu=corners), torch.tensor(0))
        assert terms["dip"] == 0


def test_hyperparameters_are_frozen():
    with pytest.raises(FrozenInstanceError):
        BetaVAE().beta = 3.0


def test_linear_schedule_is_exact_in_float64_past_float32_integers():
    step = torch.tensor([0, 2**24 + 1, 2**25])
    assert linear(step, 1.0, 3.0, 2**25).tolist() == [1.0, 1.0 + 2.0 * (2**24 + 1) / 2**25, 3.0]


@pytest.mark.parametrize("name", RECIPES)
def test_a_published_recipe_survives_its_file(name):
    recipe = RECIPES[name][1]
    assert Recipe.from_json(json.loads(json.dumps(recipe.to_json()))) == recipe


def test_every_objective_has_a_name_and_a_recipe():
    assert {type(recipe.objective) for _, recipe in RECIPES.values()} == set(OBJECTIVES.values())


def test_objectives_of_another_version_are_named():
    values = Recipe().to_json()
    with pytest.raises(RecipeError, match="unknown objective 'gvae'"):
        Recipe.from_json({**values, "objective": {"name": "gvae"}})
    with pytest.raises(RecipeError, match="unknown field 'alpha' of beta-vae"):
        Recipe.from_json({**values, "objective": {"name": "beta-vae", "beta": 2.0, "alpha": 1.0}})
