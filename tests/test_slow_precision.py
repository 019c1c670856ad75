"""Training in bfloat16 on a processor without instructions for it: refused in one line, and nothing is lost."""

import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from study_tiny import data_in, plan_of

from pyvae import cli
from pyvae.base import processor
from pyvae.cli import doctor
from pyvae.engine.arithmetic import check_precision
from pyvae.engine.recipe import Recipe
from pyvae.errors import RecipeError
from pyvae.studies import reproduce
from pyvae.studies.runner import run_study
from pyvae.studies.work import Settings
from tiny import TinyData

CPU = torch.device("cpu")
BF16 = Recipe(precision="bf16", engine="torch")
REFUSAL = (
    r"precision bf16: this processor \(Old\) has no instructions for bfloat16.*: take --precision fp32.*"
    "PYVAE_INSIST=1"
)
TRAIN = [
    *("train", "beta-vae", "--data", "images.npy", "--image-size", "8", "--architecture", "mlp"),
    *("--latents", "2", "--batch-size", "4", "--precision", "bf16", "--device", "cpu"),
]


@pytest.fixture(autouse=True)
def old(monkeypatch):
    """A processor without the instructions, and nobody insists."""
    monkeypatch.setattr(processor, "bfloat16", lambda: False)
    monkeypatch.setattr(processor, "name", lambda: "Old")
    monkeypatch.delenv("PYVAE_INSIST")


@pytest.fixture
def call(monkeypatch, capsys, tmp_path):
    """The command line in this process: its status, and what it complained of."""
    np.save(tmp_path / "images.npy", np.random.default_rng(0).integers(0, 256, (12, 8, 8), dtype=np.uint8))
    monkeypatch.setenv("PYVAE_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["pyvae", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return ended.value.code

    return call


def content(path):
    return {p: p.read_bytes() for p in path.rglob("*") if p.is_file()}


@pytest.mark.parametrize("many", [[], ["--seeds", "0-1"], ["--sweep", "precision=fp32,bf16"], ["--profile"]])
def test_nothing_is_begun(call, tmp_path, many):
    code = call(*TRAIN, "--steps", 2, "--out", "run", *many)
    assert str(code).count("\n") == 0
    assert "has no instructions for bfloat16" in str(code)
    assert not (tmp_path / "run").exists()


def test_who_insists_trains_and_what_has_begun_stays_as_it_is(call, tmp_path, monkeypatch):
    monkeypatch.setenv("PYVAE_INSIST", "1")
    assert call(*TRAIN, "--steps", 2, "--out", "run") == 0
    monkeypatch.delenv("PYVAE_INSIST")
    assert call(*TRAIN, "--steps", 2, "--out", "run") == 0  # finished
    before = content(tmp_path / "run")
    assert "--precision fp32 and another --out, or" in str(call(*TRAIN, "--steps", 4, "--out", "run"))
    assert content(tmp_path / "run") == before
    monkeypatch.setenv("PYVAE_INSIST", "1")
    assert call(*TRAIN, "--steps", 4, "--out", "run") == 0
    assert (tmp_path / "run/trace.csv").read_bytes().startswith(before[tmp_path / "run/trace.csv"])


def test_a_study_is_refused_and_a_finished_one_is_not(tmp_path, monkeypatch):
    plan = plan_of(data_in(tmp_path), betas=(1.0,), seeds=(0,), precision="bf16", steps=1)
    with pytest.raises(RecipeError, match=REFUSAL):
        run_study(plan, tmp_path / "study", Settings(device="cpu"))
    assert not (tmp_path / "study/beta-vae").exists()
    monkeypatch.setenv("PYVAE_INSIST", "1")
    assert not run_study(plan, tmp_path / "study", Settings(device="cpu")).problems
    monkeypatch.delenv("PYVAE_INSIST")
    (tmp_path / "study/results.csv").unlink()
    assert len(run_study(plan, tmp_path / "study", Settings(device="cpu")).rows) == 1


def test_a_reproduction_is_refused_before_its_first_step(tmp_path):
    recipe = replace(BF16, data="tiny", steps=1)
    with pytest.raises(RecipeError, match=REFUSAL):
        reproduce._check_run(tmp_path / "run", recipe, TinyData(), CPU)
    # a cluster's devices are asked where they are
    reproduce._check_run(tmp_path / "run", recipe, TinyData(), None)


def test_what_is_refused_is_slow(monkeypatch):
    with pytest.raises(RecipeError, match=REFUSAL):
        check_precision(BF16, CPU)
    check_precision(replace(BF16, precision="fp32"), CPU)
    check_precision(replace(BF16, engine="fused"), CPU)
    check_precision(BF16, torch.device("cuda"))
    for known in (True, None):
        monkeypatch.setattr(processor, "bfloat16", lambda known=known: known)
        check_precision(BF16, CPU)


@pytest.mark.parametrize(
    ("known", "said"),
    [
        (True, ", instructions for bfloat16"),
        (False, ", no instructions for bfloat16, so precision bf16 is slow"),
        (None, ", not known whether it has instructions for bfloat16"),
    ],
)
def test_the_doctor_says_so(monkeypatch, known, said):
    monkeypatch.setattr(processor, "bfloat16", lambda: known)
    (line,) = [x for x in doctor.describe().splitlines() if x.startswith("  cpu: ") and "threads" in x]
    assert line.endswith(said)
