"""Many runs from one command: ``pyvae train ... --seeds 0-7 --sweep beta=1,4``."""

import signal
import sys

import numpy as np
import pytest
import torch

from pyvae import cli
from pyvae.engine import checkpoint
from pyvae.engine.run import RunDirectory

TINY = (
    "--data",
    "images.npy",
    "--architecture",
    "mlp",
    "--image-size",
    "8",
    "--latents",
    "2",
    "--batch-size",
    "4",
)


@pytest.fixture
def call(monkeypatch, capsys, tmp_path):
    """The command line in this process: status or last line, what it printed, and what it complained of."""
    np.save(tmp_path / "images.npy", np.random.default_rng(0).integers(0, 256, (12, 8, 8), dtype=np.uint8))
    monkeypatch.setenv("PYVAE_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)

    def call(*arguments, steps=2):
        line = ["pyvae", *map(str, arguments)]
        if arguments[0] == "train":
            line += [*TINY, "--steps", str(steps)]
        monkeypatch.setattr(sys, "argv", line)
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        printed = capsys.readouterr()
        return ended.value.code, printed.out, printed.err

    return call


def test_a_product_of_runs_each_of_them_ordinary(call, tmp_path):
    many = ("train", "beta-vae", "--seeds", "0-1", "--sweep", "beta=1,4", "--sweep", "lr=1e-3")
    status, out, _ = call(*many, "--out", "x")
    *lines, last = out.splitlines()
    assert status == 0
    assert [line.split(":")[0] for line in lines] == [
        f"x/beta-{beta}-lr-0.001/seed-{seed}" for beta in (1, 4) for seed in (0, 1)
    ]
    assert all(": 2 of 2 steps, " in line for line in lines)
    assert last.startswith("4 of 4 models are trained; 8 model-steps in ")
    assert last.endswith(" model-steps/s")
    # as one made alone
    alone = ("train", "beta-vae", "--beta", "4", "--lr", "1e-3", "--seed", "1", "--out", "alone")
    assert call(*alone)[0] == 0
    one, two = (RunDirectory.open(tmp_path / path) for path in ("x/beta-4-lr-0.001/seed-1", "alone"))
    assert one.recipe == two.recipe
    assert (one.path / "trace.csv").read_bytes() == (two.path / "trace.csv").read_bytes()
    saved = two.newest_checkpoint().tensors
    assert all(torch.equal(tensor, saved[name]) for name, tensor in one.newest_checkpoint().tensors.items())
    # and taken alone
    assert call("evaluate", one.path, "--metrics", "unsupervised")[0] == 0
    # the same command leaves all alone, another goes on
    status, out, _ = call(*many, "--out", "x")
    assert status == 0
    assert out.count("2 of 2 steps, none of them now") == 4
    assert "4 of 4 models are trained; 0 model-steps in" in out
    status, out, _ = call(*many[:-1], "lr=1e-3,1e-2", "--seeds", "0", "--out", "x", steps=3)
    assert status == 0
    assert "4 of 4 models are trained; 8 model-steps" in out


def test_without_a_sweep_or_without_seeds(call, tmp_path):
    assert call("train", "vae", "--seeds", "3,5", "--out", "a")[0] == 0
    assert {path.name for path in (tmp_path / "a").iterdir()} == {"seed-3", "seed-5"}
    assert call("train", "beta-vae", "--seed", "9", "--sweep", "beta=2", "--out", "b")[0] == 0
    assert RunDirectory.open(tmp_path / "b/beta-2").recipe.seed == 9


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--seeds", "7-0"), "seeds '7-0': 7-0 runs backwards; write 0-7"),
        (("--seeds", "a"), "seeds 'a': 'a' is no seed; give some as 3, 0-7 or 0-7,9"),
        (("--seeds", "1,1"), "seeds: 1 stands there twice"),
        (("--seeds", "1", "--seed", "2"), "--seed 2 and --seeds 1: give one of them"),
        (("--sweep", "gamma=1"), "BetaVAE has no setting 'gamma'"),
        (("--sweep", "beta=1,-1"), "beta must be at least 0, got -1"),
        (
            ("--sweep", "beta=1", "--sweep", "beta=2"),
            "sweep beta: it is swept twice; give all values at once",
        ),
        (("--sweep", "beta=1,1.0"), "sweep beta: 1.0 stands there twice"),
        (("--sweep", "beta="), "sweep 'beta=': it names no value"),
        (("--seeds", "0-1", "--profile"), "--profile is of one run: leave --seeds and --sweep out"),
        (("--seeds", "0-9999", "--sweep", "beta=1,2"), "20,000 runs: at most 10,000 can be named at once"),
        (("--seeds", "0-1", "--sweep", "batch_size=4,500", "--sweep", "optimizer=sgd"), "optimizer must be"),
    ],
)
def test_what_is_refused_writes_nothing(options, message, call, tmp_path):
    status, out, _ = call("train", "beta-vae", *options, "--out", "x")
    assert str(status).startswith(f"pyvae: error: {message}")
    assert "\n" not in status
    assert out == ""
    assert not (tmp_path / "x").exists()


def test_a_run_is_not_a_place_for_many(call, tmp_path):
    assert call("train", "vae", "--out", "x")[0] == 0
    status, *_ = call("train", "vae", "--seeds", "0-1", "--out", "x")
    assert (
        status
        == "pyvae: error: --out x holds a run: name another directory for the runs of --seeds and --sweep"
    )
    assert call("train", "vae", "--seeds", "0", "--out", "y")[0] == 0
    status, *_ = call("train", "vae", "--out", "y")
    assert "--out y is not empty and holds no run" in status
    # nor is one of those that a sweep has made
    assert call("train", "beta-vae", "--sweep", "beta=4", "--out", "z")[0] == 0
    status, *_ = call("train", "beta-vae", "--sweep", "beta=1,4", "--seeds", "0-1", "--out", "z")
    assert status == (
        "pyvae: error: z/beta-4, in --out, is a run: name another directory for the runs of --seeds and --sweep"
    )
    assert {path.name for path in (tmp_path / "z").iterdir()} == {"beta-4"}
    # one of them is of another recipe
    status, *_ = call("train", "vae", "--seeds", "0-1", "--lr", "0.1", "--out", "y")
    assert "y/seed-0 holds a run of another recipe (lr is 0.0005 there and 0.1 here)" in status
    assert not (tmp_path / "y/seed-1").exists()


def test_one_that_is_not_finite_is_named_and_the_others_are_trained(call, tmp_path):
    wild = ("train", "beta-vae", "--sweep", "lr=1e-3,1.0", "--beta", "1e9", "--seeds", "0-1", "--out", "x")
    status, out, err = call(*wild, steps=30)
    assert status == 1
    assert out.count("30 of 30 steps") == 2
    assert "2 of 4 models are trained" in out
    lines = [line for line in err.splitlines() if line.startswith("pyvae: error: ")]
    assert len(lines) == 2
    for seed, line in enumerate(lines):
        assert line.startswith(f"pyvae: error: x/lr-1/seed-{seed}: ")
        assert "is not finite in step" in line
    assert not checkpoint.paths(tmp_path / "x/lr-1/seed-0/checkpoints")


def test_interrupted_it_says_how_to_go_on(call, tmp_path, monkeypatch):
    from pyvae.engine.trainer import Trainer

    step = Trainer._step

    def interrupting(self):
        step(self)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Trainer, "_step", interrupting)
    status, out, _ = call("train", "beta-vae", "--seeds", "0-1", "--out", "x", steps=5)
    assert status == 130
    assert "x/seed-0: 1 of 5 steps" in out
    assert "x/seed-1: 0 of 5 steps" in out
    assert "0 of 2 models are trained; 1 model-steps" in out
    assert out.splitlines()[-1].startswith(
        "interrupted and saved; go on with: pyvae train beta-vae --seeds 0-1"
    )
    monkeypatch.setattr(Trainer, "_step", step)
    assert call("train", "beta-vae", "--seeds", "0-1", "--out", "x", steps=5)[0] == 0


def test_a_schedule_that_is_cut_short_is_said_once(call, caplog):
    assert call("train", "capacity-vae", "--seeds", "0-2", "--out", "x")[0] == 0
    said = [message for message in caplog.messages if "after 2 steps of a schedule of 100,000" in message]
    assert len(said) == 1
