"""Runs through kernels that have the whole network: beside torch's trainer, step by step, and gone on with."""

from dataclasses import replace

import pytest
import torch

from fused import INTERPRETED, quick_interpreter
from pyvae.engine.fused import ensemble
from pyvae.engine.fused import plan as plans
from pyvae.engine.fused.ensemble import Ensemble
from pyvae.engine.fused.launch import Options
from pyvae.engine.fused.room import member_bytes
from pyvae.engine.fused.trainer import FusedTrainer
from pyvae.engine.loop import train
from pyvae.engine.recipe import Recipe
from pyvae.engine.run import RunDirectory
from pyvae.engine.stepper import RING_ROWS
from pyvae.engine.trainer import Adversary, Trainer
from pyvae.errors import RunError
from pyvae.objectives import (
    DIPVAE,
    TCVAE,
    AnnealedVAE,
    BetaVAE,
    CapacityVAE,
    ControlVAE,
    FactorVAE,
)
from tiny import packed_data

OBJECTIVES = {
    "beta-vae": BetaVAE(),
    "capacity-vae": CapacityVAE(capacity_steps=4),
    "control-vae": ControlVAE(schedule="adaptive", capacity_steps=40),
    "cyclical": AnnealedVAE(schedule="cyclical", annealing_steps=3, cycles=1),
    "factor-vae": FactorVAE(discriminator_width=20),
    "tc-vae": TCVAE(),
    "dip-vae": DIPVAE(variant="ii"),
}


@pytest.fixture(autouse=True)
def quick(triton_backend, monkeypatch):
    monkeypatch.setattr(plans, "tiles_of", lambda operands: INTERPRETED)
    with quick_interpreter():
        yield


@pytest.fixture(scope="module")
def data():
    return packed_data()


def recipe(objective=BetaVAE(), **changes):  # noqa: B008  # frozen
    plain = {"batch_size": 2, "lr": 1e-3, "seed": 3, "precision": "fp16", "engine": "fused", "steps": 2}
    return Recipe(objective=objective, **{**plain, **changes})


def fused(data, device, **changes):
    """In plain float32, unless something else is asked for."""
    return FusedTrainer([recipe(**{"precision": "fp32", **changes})], data, device)


@pytest.mark.parametrize(
    "objective",
    # weights that kernels move by themselves are held against float64 in test_fused_steps.py
    [
        pytest.param(objective, id=name, marks=[pytest.mark.slow] * (name in ("capacity-vae", "cyclical")))
        for name, objective in OBJECTIVES.items()
    ],
)
def test_steps_are_those_of_torch(objective, data, device, monkeypatch):
    """Rows, weights, moments and what a controller or an adversary carries, to the rounding of float32."""
    mine = fused(data, device, objective=objective, lr_stage_steps=2)
    mine.advance(3)
    monkeypatch.setenv("PYVAE_BACKEND", "auto")
    theirs = Trainer(mine.recipe, data, device)
    theirs.advance(3)
    assert mine.fields == theirs.fields
    for step in range(3):
        torch.testing.assert_close(
            mine.ledger.ring.rows[step], theirs.ledger.ring.rows[step], rtol=5e-5, atol=2e-6
        )
    held, wanted = mine.tensors(), theirs.tensors()
    assert held.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert (held[name].shape, held[name].dtype) == (tensor.shape, tensor.dtype), name
        error = (held[name].double() - tensor.double()).norm()
        assert error <= 2e-4 * tensor.double().norm() + 1e-9, name


@pytest.mark.parametrize(
    ("objective", "precision"),
    [("control-vae", "fp16"), pytest.param("factor-vae", "tf32", marks=pytest.mark.slow)],
)
def test_what_is_gone_on_with_is_what_was_never_stopped(objective, precision, data, device):
    changes = {"objective": OBJECTIVES[objective], "precision": precision}
    through, later = fused(data, device, **changes), fused(data, device, **changes)
    through.advance(2)
    saved = {name: tensor.clone() for name, tensor in through.tensors().items()}
    through.advance(1)
    later.advance(1)  # whatever it holds, it forgets
    later.restore(2, saved)
    later.advance(1)
    for name, tensor in through.tensors().items():
        assert torch.equal(later.tensors()[name], tensor), name
    assert torch.equal(later.ledger.row, through.ledger.row)


def test_torch_goes_on_from_a_checkpoint_in_float32(data, device, monkeypatch):
    """Which the command line refuses: names, shapes and meanings of the tensors are the same."""
    mine = fused(data, device)
    mine.advance(2)
    saved = {name: tensor.clone() for name, tensor in mine.tensors().items()}
    mine.advance(1)
    monkeypatch.setenv("PYVAE_BACKEND", "auto")
    theirs = Trainer(mine.recipe, data, device)
    theirs.restore(2, saved)
    theirs.advance(1)
    torch.testing.assert_close(mine.ledger.row, theirs.ledger.row, rtol=5e-5, atol=2e-6)


def test_a_run_says_its_engine_and_goes_on_with_it_alone(data, device, tmp_path):
    run = RunDirectory.create_or_resume(tmp_path / "run", recipe())
    train(run, data, device, log_every=1)
    saved = run.newest_checkpoint()
    assert saved.metadata["engine"] == "fused"
    mu, _ = run.net_of(saved).encoder(data.images(torch.arange(3)))
    assert torch.isfinite(mu).all()
    assert not torch.equal(mu[0], mu[1])
    with pytest.raises(RunError, match=r"engine is fused there and torch here"):
        RunDirectory.create_or_resume(run.path, recipe(engine="torch", precision="tf32"))
    auto = RunDirectory.create_or_resume(run.path, recipe(engine="auto", steps=3))
    assert train(auto, data, device, log_every=1).step == 3
    assert auto.newest_checkpoint().metadata["engine"] == "fused"


def test_a_run_of_torch_is_not_gone_on_with(data, device, tmp_path, monkeypatch):
    begun = recipe(engine="auto", precision="tf32")
    monkeypatch.setenv("PYVAE_BACKEND", "auto")
    train(RunDirectory.create_or_resume(tmp_path / "run", begun), data, device)
    monkeypatch.setenv("PYVAE_BACKEND", "triton")
    run = RunDirectory.create_or_resume(tmp_path / "run", replace(begun, engine="fused", steps=3))
    with pytest.raises(RunError, match=r"trained by the torch engine, and the fused one rounds otherwise"):
        train(run, data, device)
    assert run.newest_checkpoint().step == 2


def test_a_gradient_beyond_fp16_stops_the_run_and_spoils_nothing(data, device, tmp_path):
    run = RunDirectory.create_or_resume(tmp_path / "run", recipe(BetaVAE(beta=1e9), steps=3))
    with pytest.raises(RunError, match=r"grad_norm is not finite in step 0, .*--precision tf32, whose range"):
        train(run, data, device, log_every=1)


def test_weights_stay_from_a_bad_step_on(data, device):
    mine = fused(data, device, precision="fp16")
    mine.advance(1)
    before = {name: tensor.clone() for name, tensor in mine.tensors().items()}
    mine.ensemble.members.buffers["weights"][
        0, mine.ensemble.plan.layout.parameters["decoder.0.weight"].offset
    ] = float("inf")
    mine.advance(2)
    assert int(mine.ledger.bad_step) == 1
    assert not torch.isfinite(mine.ledger.bad_row).all()
    assert mine.key.tolist() == [3, 3]
    for name, tensor in mine.tensors().items():
        if not name.endswith(".step"):
            assert torch.equal(tensor, before[name]), name


@pytest.mark.parametrize(
    "objective",
    # the one with most of its own: a second batch, a network beside it, the seam
    [
        "factor-vae",
        pytest.param("capacity-vae", marks=pytest.mark.slow),
        pytest.param("dip-vae", marks=pytest.mark.slow),
    ],
)
def test_a_run_computes_what_it_would_alone(objective, data, device):
    """Bit for bit: what kernels have of it, and what is plain torch."""
    one = recipe(OBJECTIVES[objective], precision="tf32")
    others = {"capacity-vae": {"gamma": 3.0}, "factor-vae": {"gamma": 2.0}, "dip-vae": {"lambda_d": 1.0}}
    other = replace(
        one, objective=replace(one.objective, **others[objective]), seed=8, lr=3e-4, lr_stage_steps=1
    )
    both, alone = (Ensemble(recipes, data, device, rows=8, log_every=1) for recipes in ([other, one], [one]))
    for each in (both, alone):
        for step in range(2):
            each.prepare(step)
            each.step()
    for name, tensor in alone.tensors().items():
        assert torch.equal(both.tensors(1)[name], tensor), name
    assert torch.equal(both.ledgers[1].row, alone.ledgers[0].row)
    assert not torch.equal(both.ledgers[0].row, alone.ledgers[0].row)
    # and is gone on with among others
    saved = {name: tensor.clone() for name, tensor in alone.tensors().items()}
    both.restore(2, saved, member=0)
    assert all(torch.equal(both.tensors(0)[name], tensor) for name, tensor in saved.items())


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"latents": 9}, r"latents: members share it, got 10 and 9"),
        ({"objective": TCVAE()}, r"objective: members share it, got BetaVAE and TCVAE"),
        ({"precision": "bf16"}, r"precision"),
        ({"batch_size": 3}, r"batch_size"),
    ],
)
def test_what_members_must_share_is_named(changes, named, data, device):
    with pytest.raises(ValueError, match=named):
        Ensemble([recipe(), recipe(**changes)], data, device, rows=8, log_every=1)


def test_members_share_the_options_of_a_controller(data, device):
    recipes = [recipe(ControlVAE(schedule=schedule)) for schedule in ("linear", "adaptive")]
    with pytest.raises(ValueError, match=r"^schedule: members share it, got linear and adaptive"):
        Ensemble(recipes, data, device, rows=8, log_every=1)


def test_a_member_takes_the_bytes_that_are_said(data, device):
    both = Ensemble([recipe(seed=s) for s in (3, 8)], data, device, rows=RING_ROWS, log_every=1)
    held = {name: both.members.buffers[name].nbytes for name in (*both.plan.buffers, "ring")}
    # which has a row for the steps that are not logged
    held["ring"] -= 2 * 8 * len(both.fields)
    said = member_bytes(recipe(), data.image_shape[0], data.bits is not None)
    assert sum(held.values()) == 2 * (said - 8 * RING_ROWS)
    # its step, gradients, weights and moments, none of which the plan has
    adversary = Adversary(recipe(FactorVAE()), FactorVAE(), device).trained.tensors()
    weights = sum(t.nbytes for name, t in adversary.items() if ".optimizer." not in name)
    assert member_bytes(recipe(FactorVAE()), data.image_shape[0], True) > said + 4 * weights


def test_members_are_at_one_step(data, device):
    both = Ensemble([recipe(seed=s) for s in (3, 8)], data, device, rows=8, log_every=1)
    both.restore(2, both.tensors(1), member=1)
    with pytest.raises(ValueError, match=r"members stand at steps \[0, 2\]: load all of them at one"):
        both.prepare(0)
    both.restore(2, both.tensors(0), member=0)
    both.prepare(2)


@pytest.mark.parametrize(
    ("changes", "lacks"),
    [
        ({"batch_size": 4}, set()),
        ({"batch_size": 8, "lr_stage_steps": 1}, {"pdl"}),
        ({"batch_size": 8, "objective": DIPVAE()}, {"pdl"}),
        ({"batch_size": 6}, {"descriptors"}),
    ],
)
def test_what_pays_on_a_card_is_left_out_where_it_has_no_use(changes, lacks, data, device, monkeypatch):
    monkeypatch.setattr(ensemble, "options_on", lambda *_: Options(True, True, True))
    plan = ensemble.plan_for([recipe(**changes)], data, device)
    assert {name for name in Options._fields if not getattr(plan, name)} == lacks
