"""A run that was stopped and resumed equals one that was not, bit for bit."""

import errno
import os
import random
import signal
import subprocess
import sys
import time
import unittest.mock
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import commands
from pyvae.base.files import replacing
from pyvae.engine import checkpoint
from pyvae.engine.files import write_atomically
from pyvae.engine.loop import train
from pyvae.engine.recipe import Recipe
from pyvae.engine.run import RunDirectory
from pyvae.errors import RunError
from pyvae.objectives import PIWAE, FactorVAE
from tiny import GreyData, TinyData
from train_tiny import RECIPE

CPU = torch.device("cpu")
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
# on a GPU enough for steps to be captured
WHOLE, HALF = (20, 10) if DEVICE.type == "cpu" else (100, 50)
ADVERSARIAL = {"objective": FactorVAE(discriminator_layers=2, discriminator_width=64), "architecture": "kim"}
# stages end with the fourth step and the sixteenth, on either side of the interruption
IMPORTANCE = {
    "objective": PIWAE(outer=2, samples=3, gradient="dreg"),
    "architecture": "rainforth",
    "lr_stage_steps": 4,
}
SCRIPT = Path(__file__).with_name("train_tiny.py")


def run_to(path: Path, recipe: Recipe, data=None, device=CPU, **options):
    return train(
        RunDirectory.create_or_resume(path, recipe), data or TinyData(), device, log_every=3, **options
    )


def assert_same(a: Path, b: Path):
    one, two = (checkpoint.load_newest(path / "checkpoints") for path in (a, b))
    assert one.step == two.step
    assert one.tensors.keys() == two.tensors.keys()
    for name, tensor in one.tensors.items():
        assert torch.equal(tensor, two.tensors[name]), name
    assert (a / "trace.csv").read_text() == (b / "trace.csv").read_text()


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    path = tmp_path_factory.mktemp("straight") / "run"
    run_to(path, replace(RECIPE, steps=200))
    return path


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"optimizer": "adagrad", "architecture": "kim"},
        {"precision": "bf16", "architecture": "mlp"},
        ADVERSARIAL,
        IMPORTANCE,
    ],
    ids=["adam", "adagrad", "bf16", "adversarial", "importance"],
)
def test_two_halves_equal_the_whole(tmp_path, change):
    recipe = replace(RECIPE, **change)
    run_to(tmp_path / "whole", replace(recipe, steps=WHOLE), device=DEVICE)
    run_to(tmp_path / "halves", replace(recipe, steps=HALF), device=DEVICE)
    run_to(tmp_path / "halves", replace(recipe, steps=WHOLE), device=DEVICE)
    assert_same(tmp_path / "whole", tmp_path / "halves")


@pytest.mark.usefixtures("triton_backend", "wide_blocks")
@pytest.mark.parametrize("change", [{"precision": "bf16"}, ADVERSARIAL], ids=["bf16", "adversarial"])
def test_two_halves_on_kernels_equal_the_whole(tmp_path, change):
    recipe = replace(RECIPE, **change, batch_size=2)
    run_to(tmp_path / "whole", replace(recipe, steps=4), device=DEVICE)
    run_to(tmp_path / "halves", replace(recipe, steps=2), device=DEVICE)
    run_to(tmp_path / "halves", replace(recipe, steps=4), device=DEVICE)
    assert_same(tmp_path / "whole", tmp_path / "halves")


def test_binarised_halves_equal_the_whole(tmp_path):
    recipe = replace(RECIPE, **IMPORTANCE, binarise="stochastic")
    run_to(tmp_path / "whole", replace(recipe, steps=WHOLE), GreyData(), device=DEVICE)
    run_to(tmp_path / "halves", replace(recipe, steps=HALF), GreyData(), device=DEVICE)
    run_to(tmp_path / "halves", replace(recipe, steps=WHOLE), GreyData(), device=DEVICE)
    assert_same(tmp_path / "whole", tmp_path / "halves")


def test_a_hundred_and_a_hundred(tmp_path, straight):
    run_to(tmp_path / "run", replace(RECIPE, steps=100))
    run_to(tmp_path / "run", replace(RECIPE, steps=200), checkpoint_seconds=0.05)
    assert_same(straight, tmp_path / "run")


def test_a_finished_run_is_left_alone(straight):
    before = {p: p.stat().st_mtime_ns for p in (straight / "checkpoints").iterdir()}
    outcome = run_to(straight, replace(RECIPE, steps=200))
    assert outcome.step == 200
    assert not outcome.interrupted
    assert {p: p.stat().st_mtime_ns for p in (straight / "checkpoints").iterdir()} == before


def test_seeds_give_different_runs(tmp_path, straight):
    run_to(tmp_path / "run", replace(RECIPE, steps=1, seed=4))
    assert (tmp_path / "run/trace.csv").read_text().splitlines()[1] != (
        straight / "trace.csv"
    ).read_text().splitlines()[1]


def start(path: Path, steps: int = 200, checkpoint_seconds: float = 0.1) -> commands.Command:
    return commands.start([SCRIPT, path, steps, checkpoint_seconds])


def wait_for_progress(process: commands.Command, path: Path, steps: int):
    trace = path / "trace.csv"
    while process.poll() is None:
        if trace.exists() and trace.read_text().count("\n") > steps // 3:
            return
        time.sleep(0.01)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_the_run_goes_on(tmp_path, straight, number):
    process = start(tmp_path / "run", checkpoint_seconds=1000)
    wait_for_progress(process, tmp_path / "run", 3)
    process.send_signal(number)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    saved = checkpoint.load_newest(tmp_path / "run/checkpoints").step
    assert 0 < saved < 200
    run_to(tmp_path / "run", replace(RECIPE, steps=200))
    assert_same(straight, tmp_path / "run")


def kill_and_resume(path: Path, straight: Path, kills: int, seed: int):
    moments = random.Random(seed)
    for _ in range(kills):
        process = start(path)
        wait_for_progress(process, path, 3)
        time.sleep(moments.uniform(0.0, 1.0))
        process.kill()
        process.communicate()
    process = start(path)
    _, stderr = process.communicate(timeout=300)
    assert process.returncode == 0, stderr
    assert_same(straight, path)


def test_sigkill(tmp_path, straight):
    kill_and_resume(tmp_path / "run", straight, kills=2, seed=0)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 9))
def test_sigkill_many_times(tmp_path, straight, seed):
    kill_and_resume(tmp_path / "run", straight, kills=5, seed=seed)


def test_another_recipe_is_refused_by_name(straight):
    with pytest.raises(
        RunError, match=r"another recipe \(gamma is 10.0 there and 5.0 here; lr is 0.001 there and 0.1"
    ):
        run_to(straight, replace(RECIPE, objective=replace(RECIPE.objective, gamma=5.0), lr=0.1, steps=300))


def test_other_data_is_refused(straight):
    with pytest.raises(RunError, match="trained on tiny-v1, but the data now is tiny-v2"):
        run_to(straight, replace(RECIPE, steps=300), TinyData(fingerprint="tiny-v2"))


def test_of_a_damaged_checkpoint_the_one_before_is_taken(tmp_path, straight, caplog):
    run_to(tmp_path / "run", replace(RECIPE, steps=150))
    run_to(tmp_path / "run", replace(RECIPE, steps=180))
    newest = checkpoint.paths(tmp_path / "run/checkpoints")[-1]
    content = bytearray(newest.read_bytes())
    content[-1] ^= 1
    newest.write_bytes(content)
    run_to(tmp_path / "run", replace(RECIPE, steps=200))
    assert [message for message in caplog.messages if "taking the one before, of step 150" in message]
    assert newest.with_name(f"{newest.name}.damaged").read_bytes() == content
    assert_same(straight, tmp_path / "run")


def test_a_trace_behind_its_checkpoint_is_said_and_the_run_goes_on(tmp_path, caplog):
    run_to(tmp_path / "whole", replace(RECIPE, steps=9))
    run_to(tmp_path / "run", replace(RECIPE, steps=7))
    trace = tmp_path / "run/trace.csv"
    header, *rows = trace.read_bytes().splitlines(keepends=True)
    trace.write_bytes(header + rows[0] + bytes(100))
    run_to(tmp_path / "run", replace(RECIPE, steps=9))
    said = f"{trace} lacks 2 of the rows before its checkpoint of step 7, as after a power cut (the last is of step 0)"
    assert [message for message in caplog.messages if message.startswith(said)]
    one, two = (checkpoint.load_newest(tmp_path / name / "checkpoints").tensors for name in ("whole", "run"))
    assert all(torch.equal(tensor, two[name]) for name, tensor in one.items())
    assert trace.read_bytes() == header + rows[0]
    # the gap is known from then on
    caplog.clear()
    run_to(tmp_path / "run", replace(RECIPE, steps=10))
    assert not caplog.messages
    whole = (tmp_path / "whole/trace.csv").read_bytes().splitlines(keepends=True)
    assert trace.read_bytes().splitlines(keepends=True)[:2] == whole[:2]


def test_what_killed_processes_left_is_removed(tmp_path):
    run = RunDirectory.create_or_resume(tmp_path / "run", replace(RECIPE, steps=1))
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    run.path.mkdir()
    run.write_recipe()
    for directory in (run.path, run.checkpoints, run.snapshots, run.figures):
        directory.mkdir(exist_ok=True)
        with replacing(directory / "new") as temporary:
            name = temporary.name.replace(f"-{os.getpid()}-", f"-{child.pid}-")
            temporary.write_bytes(b"")
        for left in (name, f".new.{child.pid}.tmp", ".trace.csv.tmp"):
            (directory / left).write_bytes(b"half")
        (directory / f".old.{os.getpid()}.tmp").write_bytes(b"being written")
    run_to(run.path, replace(RECIPE, steps=1))
    for directory in (run.path, run.checkpoints, run.snapshots, run.figures):
        assert {path.name for path in directory.glob(".*.tmp")} == {f".old.{os.getpid()}.tmp"}


@pytest.mark.parametrize("change", [{}, {"optimizer": "adagrad"}], ids=["adam", "adagrad"])
def test_a_checkpoint_of_another_network_is_refused(tmp_path, change):
    recipe = replace(RECIPE, architecture="kim", steps=1, **change)
    run = RunDirectory.create_or_resume(tmp_path / "run", recipe)
    run_to(run.path, recipe)
    (path,) = checkpoint.paths(run.checkpoints)
    saved = checkpoint.load(path)
    for name, tensor in (("net.encoder.head.bias", torch.zeros(3)), ("net.encoder.head.bias", None)):
        tensors = {**saved.tensors, name: tensor} if tensor is not None else {**saved.tensors}
        if tensor is None:
            del tensors[name]
        checkpoint.save(run.checkpoints, saved._replace(tensors=tensors))
        with pytest.raises(
            RunError, match=r"the checkpoint of step 1 in .* does not fit its recipe: .*head.bias"
        ):
            run_to(run.path, replace(recipe, steps=2))


def full(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("where", ["trace", "trace on the thread", "checkpoint", "the last checkpoint"])
def test_a_full_disk_is_one_line_and_loses_nothing(tmp_path, monkeypatch, where):
    run_to(tmp_path / "run", replace(RECIPE, steps=4))
    before = (tmp_path / "run/trace.csv").read_bytes()
    if where == "trace":
        monkeypatch.setattr("pyvae.engine.trace.append_all", full)
    elif where == "trace on the thread":
        monkeypatch.setattr("pyvae.engine.trace.TraceFile.sync", failing_sync)
    else:
        monkeypatch.setattr("pyvae.engine.checkpoint.write_atomically", failing_write)
    seconds = 1000 if where == "the last checkpoint" else 0
    with pytest.raises(RunError, match=r"cannot write .*; what was saved before is intact") as caught:
        run_to(tmp_path / "run", replace(RECIPE, steps=8), checkpoint_seconds=seconds)
    assert "\n" not in str(caught.value)
    monkeypatch.undo()
    assert checkpoint.load_newest(tmp_path / "run/checkpoints").step == 4
    assert (tmp_path / "run/trace.csv").read_bytes().startswith(before)
    run_to(tmp_path / "run", replace(RECIPE, steps=8))
    run_to(tmp_path / "whole", replace(RECIPE, steps=8))
    assert_same(tmp_path / "whole", tmp_path / "run")


def failing_sync(file):
    raise file._failed(OSError(errno.EIO, os.strerror(errno.EIO)))


def failing_write(path, content):
    with unittest.mock.patch("os.replace", full):
        write_atomically(path, content)


def test_a_second_process_is_refused(straight):
    run = RunDirectory.open(straight)
    with run.locked(), pytest.raises(RunError, match="being trained by another process"):
        run_to(straight, replace(RECIPE, steps=300))
