"""The start of ControlVAE's runs, and how long each was at its last capacity, as docs/findings/capacity.md has them."""

from dataclasses import replace

import numpy as np
import pytest

import pyvae
from pyvae import data
from pyvae.metrics import mig_chen
from pyvae.studies.plan import read_plan
from scripts import ROOT, module, scripts  # noqa: F401
from tiny import TinyData


def test_the_study_is_the_beginning_of_the_other():
    """Every setting but the length, the snapshots and the seeds is that of the runs which go on."""
    whole, begun = (
        {(model.method, model.recipe.seed): model.recipe for model in plan.models}
        for plan in (
            read_plan(ROOT / f"examples/studies/findings/{name}.toml") for name in ("capacity", "starts")
        )
    )
    starts = module("questions.starts")
    assert {arm for arm, _ in begun} == set(starts.ARMS)
    for arm in starts.ARMS:
        long, short = whole[arm, 0], begun[arm, 0]
        assert short.steps == starts.STEPS
        assert set(short.keep_at) == {step for step in long.keep_at if step < short.steps}
        assert replace(long, steps=short.steps, keep_at=short.keep_at) == short


def test_a_start_is_measured_at_its_level(tmp_path, monkeypatch):
    starts = module("questions.starts")
    monkeypatch.setattr(starts, "GRID", (1, 1, 1))
    monkeypatch.setattr(starts, "STEPS", 9)
    monkeypatch.setattr(starts, "_WINDOW", 2)
    monkeypatch.setattr(starts, "_FRESH", 2)
    monkeypatch.setattr(data, "load", lambda path, **options: TinyData())
    run = pyvae.train(
        "control-vae-linear", out=tmp_path, steps=12, keep_at=(3, 6), log_every=1, batch_size=8, data="tiny",
        device="cpu", capacity_period=1,
    )  # fmt: skip
    # the last step is beyond what is looked at, though it is at the level
    monkeypatch.setattr(starts, "LEVEL", module("questions.capacity").snapshot_of(run, 12)["kl"])
    found = starts.measure(run)
    kl = run.trace()["kl"][2:9]
    assert found["lowest_kl"] == pytest.approx(((kl[1:] + kl[:-1]) / 2).min(), abs=1e-3)
    assert found["highest_beta"] == pytest.approx(run.trace()["beta"][2:9].max(), abs=0.01)
    at = found["at_level"]
    assert at["step"] in (3, 6)
    score = mig_chen(module("questions.runs").grid_codes(run, at["step"], (1, 1, 1)), progress=False).score
    assert sum(at["mig_gaps"].values()) / len(at["mig_gaps"]) == pytest.approx(score, abs=1e-4)


def test_the_low_of_the_kl_is_not_that_of_new_weights_nor_of_what_comes_later():
    step = np.arange(0, 30_000, 10)
    kl = np.where(step < 900, 1.0, np.where(step < 20_000, 3.0, 0.5))
    kl[(step >= 5_000) & (step < 5_500)] = 2.0
    beta = np.where(step < 20_000, step / 100.0, 900.0)
    assert module("questions.starts").pressed({"step": step, "kl": kl, "beta": beta}) == {
        "lowest_kl": 2.0,
        "highest_beta": 199.9,
    }


def test_latents_of_position_are_open_and_follow_it():
    at = {
        "kl_of_latents": [2.0, 1.5, 0.1, 3.0],
        "effects": {
            "scale": [0.1, 0.4, 0.0, 0.9],
            "posX": [0.5, 0.5, 1.0, 0.1],
            "posY": [0.4, 0.1, 0.0, 0.1],
        },
    }
    assert module("questions.starts").of_position(at) == 2  # the third is closed, the fourth tells scale


def test_time_at_the_last_capacity():
    tables = module("questions.capacity_tables")
    step = np.arange(125.0, 75_000, 250)
    result = {
        "arm": "linear",
        "seed": 0,
        "trace": {
            "step": step.tolist(),
            "kl": np.minimum(step / 1_000, 15.9).tolist(),
            "capacity": np.full(len(step), 16.0).tolist(),
            "recon": (100 - step / 1_000).tolist(),
        },
    }
    never = {**result, "seed": 1, "trace": {**result["trace"], "kl": [10.0] * len(step)}}
    lines = tables.full([result, never]).splitlines()
    assert len(lines) == 3
    first = 15_875  # the first row from which the KL is within 0.2 nats of 16
    after = [100 - (first + each) / 1_000 for each in tables._AFTER]
    assert (
        lines[2] == f"| `linear`, seed 0 | {first:,} | " + " | ".join(f"{each:.1f}" for each in after) + " |"
    )
    assert tables.full([never]) == tables.NONE_YET
    assert tables.mean_at(step, step, 74_700.0) is None


def test_nothing_measured_yet():
    question = module("questions.starts").QUESTION
    assert {table([]) for table in question.tables.values()} == {"No run has been measured yet."}
