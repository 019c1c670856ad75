"""Runs that train together: each becomes what it would have become alone, bit for bit, whatever befalls the others."""

import errno
import gc
import os
import random
import signal
import threading
import time
import weakref
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

import commands
from abreast import CPU, OBJECTIVES, RECIPE, Abreast, eight, put_abreast, runs_of
from pyvae.engine import checkpoint, loop, trainer
from pyvae.engine.loop import train, train_together
from pyvae.engine.run import RunDirectory
from pyvae.engine.together import shape_of
from pyvae.engine.training import training
from pyvae.errors import RecipeError, RunError
from pyvae.objectives import TCVAE, ControlVAE
from tiny import Corner

SCRIPT = Path(__file__).with_name("abreast.py")
LENGTH = 90


@pytest.fixture(autouse=True)
def abreast(monkeypatch):
    put_abreast(monkeypatch)


def assert_same(a: Path, b: Path):
    one, two = (checkpoint.load_newest(path / "checkpoints") for path in (a, b))
    assert one.step == two.step
    assert one.tensors.keys() == two.tensors.keys()
    for name, tensor in one.tensors.items():
        assert torch.equal(tensor, two.tensors[name]), name
    assert (a / "trace.csv").read_bytes() == (b / "trace.csv").read_bytes()
    kept = [{path.name for path in checkpoint.paths(each / "snapshots")} for each in (a, b)]
    assert kept[0] == kept[1]


def together(out: Path, recipes, **options):
    return train_together(runs_of(out, recipes), Corner(), CPU, log_every=3, **options)


def alone(out: Path, recipes):
    for run in runs_of(out, recipes):
        train(run, Corner(), CPU, log_every=3)


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """The eight of the script, each trained alone."""
    out = tmp_path_factory.mktemp("straight")
    with pytest.MonkeyPatch.context() as patch:
        put_abreast(patch)
        alone(out, eight("control-vae", steps=LENGTH))
    return out


@pytest.mark.parametrize("kind", OBJECTIVES)
def test_together_is_as_alone(kind, tmp_path):
    recipes = eight(kind, steps=24)
    outcomes = together(tmp_path / "together", recipes, checkpoint_seconds=0.05)
    assert Abreast.made == [list(range(8))]
    assert {(o.step, o.interrupted, o.failure, o.made) for o in outcomes} == {(24, False, None, 24)}
    alone(tmp_path / "alone", recipes)
    for n in range(8):
        assert_same(tmp_path / f"together/seed-{n}", tmp_path / f"alone/seed-{n}")
    snapshots = tmp_path / "together/seed-5/snapshots"
    assert [checkpoint.step_of(path) for path in checkpoint.paths(snapshots)] == [7, 20]


def test_torch_trains_one_after_another(tmp_path):
    """Without anything in the place of the fused engine."""
    recipes = [replace(each, engine="torch", steps=4) for each in eight("factor-vae")[:3]]
    outcomes = together(tmp_path / "together", recipes)
    assert Abreast.made == [[0], [1], [2]]
    alone(tmp_path / "alone", recipes)
    for n, outcome in enumerate(outcomes):
        assert_same(tmp_path / f"together/seed-{n}", tmp_path / f"alone/seed-{n}")
        assert outcome.steps_per_second > 0


@torch._dynamo.config.patch(recompile_limit=1)
def test_more_networks_are_compiled_than_torch_keeps_versions_of(tmp_path, monkeypatch):
    """As a sweep of latents asks for. Traced, and not made into machine code, which takes long."""
    traced = partial(torch.compile, fullgraph=True, dynamic=False, backend="eager")
    monkeypatch.setattr(trainer, "_compiled", traced)
    monkeypatch.setattr(loop, "training", training)
    recipes = [replace(RECIPE, latents=1 + n // 2, seed=n, steps=1) for n in range(6)]
    outcomes = together(tmp_path, recipes, compile=True)
    assert [o.step for o in outcomes] == [1] * 6


def test_groups_are_of_one_shape_and_not_too_large(tmp_path):
    recipes = eight("beta-vae", steps=2)
    recipes[1], recipes[6] = (replace(recipes[n], batch_size=3) for n in (1, 6))
    together(tmp_path, recipes, at_once=4)
    assert Abreast.made == [[0, 2, 3, 4], [5, 7], [1, 6]]


@pytest.mark.parametrize(("free", "size"), [(4_000_000, 8), (1_000_000, 4), (10_000, 1), (0, 1)])
@pytest.mark.parametrize("cached", [0, 500_000])
def test_an_ensemble_fits_into_the_memory_of_its_card(free, size, cached, monkeypatch):
    """Half of what the data leaves."""
    data = Corner()
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free + 1000 - cached, 80 << 30))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 7000 + cached)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 7000)
    monkeypatch.setattr(loop, "fitting", lambda dataset, device: torch.zeros(1000, dtype=torch.uint8))
    monkeypatch.setattr(loop, "member_bytes", lambda recipe, channels, bits: 120_000)
    assert loop._size(8, RECIPE, data, torch.device("cuda")) == size
    assert loop._size(8, RECIPE, data, CPU) == 8


def test_what_is_of_one_shape():
    def shape(**changes):
        return shape_of(replace(RECIPE, **changes))

    assert len({shape_of(each) for each in eight("control-vae")}) == 1
    assert shape(lr_stage_steps=3) == shape(lr_stage_steps=4, lr=0.1, seed=9, keep_at=(1,)) != shape()
    for change in (
        {"latents": 3},
        {"batch_size": 3},
        {"precision": "bf16"},
        {"optimizer": "adagrad"},
        {"steps": 41},
        {"sampling": "replacement"},
        {"objective": OBJECTIVES["beta-vae"]},
    ):
        assert shape(**change) != shape()
    for change in ({"schedule": "linear"}, {"beta_max": 9.0}, {"adaptive_smoothing": 0.5}):
        assert shape(objective=ControlVAE(**change)) != shape(objective=ControlVAE())
    wide = replace(OBJECTIVES["factor-vae"], discriminator_width=9)
    assert shape(objective=wide) != shape(objective=OBJECTIVES["factor-vae"])


def test_one_that_is_not_finite_stands_still_and_the_others_go_on(tmp_path, straight, caplog, monkeypatch):
    monkeypatch.setattr("pyvae.engine.course._DRAIN_SECONDS", 0)
    Abreast.spoiled[3] = 50
    out = tmp_path / "runs"
    outcomes = together(out, eight("control-vae", steps=LENGTH), checkpoint_seconds=0.05)
    failed = outcomes.pop(3)
    assert {(o.step, o.interrupted, o.failure) for o in outcomes} == {(LENGTH, False, None)}
    saved = checkpoint.load_newest(out / "seed-3/checkpoints")
    assert 0 < saved.step <= 50 == failed.step
    assert failed.failure == (
        f"loss is not finite in step 50, so nothing was learnt from it on; the checkpoint of step {saved.step} is "
        "intact, and another --out leaves it so: try a lower --lr"
    )
    assert not failed.interrupted
    assert Abreast.stood == [3]
    assert caplog.messages == [f"{out}/seed-3: {failed.failure}"]
    assert all(torch.isfinite(tensor).all() for tensor in saved.tensors.values())
    steps = RunDirectory.open(out / "seed-3").trace()["step"]
    assert steps.max() < 50
    for n in (0, 1, 2, 4, 5, 6, 7):
        assert_same(out / f"seed-{n}", straight / f"seed-{n}")
    # once the fault is gone it goes on from there, and becomes what it would have become
    Abreast.spoiled.clear()
    Abreast.made.clear()
    assert [o.made for o in together(out, eight("control-vae", steps=LENGTH))] == [
        LENGTH - saved.step if n == 3 else 0 for n in range(8)
    ]
    assert Abreast.made == [[3]]
    assert_same(out / "seed-3", straight / "seed-3")


def test_where_all_fail_the_steps_end(tmp_path, monkeypatch):
    monkeypatch.setattr("pyvae.engine.course._DRAIN_SECONDS", 0)
    Abreast.spoiled.update({0: 2, 1: 4})
    outcomes = together(tmp_path, eight("beta-vae", steps=10**9)[:2])
    assert [o.step for o in outcomes] == [2, 4]
    assert all("nothing had been saved yet" in o.failure for o in outcomes)


def test_one_that_fails_where_they_train_one_after_another(tmp_path, caplog):
    recipes = [replace(each, engine="torch") for each in eight("beta-vae")[:3]]
    recipes[1] = replace(recipes[1], lr=1.0, objective=replace(recipes[1].objective, beta=1e9))
    outcomes = together(tmp_path, recipes)
    assert [o.failure is None for o in outcomes] == [True, False, True]
    assert [o.step == 40 for o in outcomes] == [True, False, True]
    assert f"{tmp_path}/seed-1: {outcomes[1].failure}" in caplog.messages


def test_those_behind_catch_up_and_the_finished_are_left_alone(tmp_path, straight):
    recipes = eight("control-vae", steps=LENGTH)
    for steps, members in ((15, (1, 2)), (35, (4,)), (LENGTH, (6,))):
        together(tmp_path, [replace(recipes[n], steps=steps) for n in members])
    finished = {path: path.stat().st_mtime_ns for path in (tmp_path / "seed-6").rglob("*")}
    Abreast.made.clear()
    with runs_of(tmp_path, recipes)[6].locked():  # as by who evaluates it
        outcomes = together(tmp_path, recipes)
    assert Abreast.made == [[0, 3, 5, 7], [0, 1, 2, 3, 5, 7], [0, 1, 2, 3, 4, 5, 7]]
    assert [o.made for o in outcomes] == [LENGTH - before for before in (0, 15, 15, 0, 35, 0, LENGTH, 0)]
    assert {o.step for o in outcomes} == {LENGTH}
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "seed-6").rglob("*")} == finished
    for n in range(8):
        assert_same(tmp_path / f"seed-{n}", straight / f"seed-{n}")


def test_those_who_have_caught_up_leave_their_memory_to_the_next(tmp_path, monkeypatch):
    recipes, make, alive, beside = eight("control-vae", steps=9), Abreast.__init__, weakref.WeakSet(), []
    together(tmp_path, [replace(recipes[1], steps=3)])

    def making(self, *args, **options):
        make(self, *args, **options)
        beside.append(len(alive))
        alive.add(self)

    monkeypatch.setattr(Abreast, "__init__", making)
    gc.disable()  # a device's memory is not waited for
    try:
        together(tmp_path, recipes)
    finally:
        gc.enable()
    assert beside == [0, 0]


def test_of_many_the_one_that_another_engine_began_is_named(tmp_path):
    recipes = [replace(each, engine="auto", precision="tf32", steps=1) for each in eight("beta-vae")[:2]]
    together(tmp_path, recipes)
    at = tmp_path / "seed-1/checkpoints"
    saved = checkpoint.load_newest(at)
    checkpoint.save(at, saved._replace(metadata={**saved.metadata, "engine": "fused"}))
    with pytest.raises(RecipeError, match=r"seed-1: the fused engine began this run, and cannot go on"):
        together(tmp_path, [replace(each, steps=2) for each in recipes])


def test_a_shorter_recipe_is_written_though_nothing_is_left_to_train(tmp_path):
    recipes = eight("beta-vae", steps=3)[:2]
    together(tmp_path, recipes)
    for run in runs_of(tmp_path, [replace(each, steps=99) for each in recipes]):
        run.write_recipe()  # as when they are stopped at step 3 of 99
    together(tmp_path, recipes)
    assert [RunDirectory.open(tmp_path / f"seed-{n}").recipe for n in range(2)] == recipes


def test_a_damaged_checkpoint_of_one_is_told_once_and_set_aside(tmp_path, straight, caplog):
    recipes = eight("control-vae", steps=LENGTH)
    for steps in (15, 35):
        together(tmp_path, [replace(each, steps=steps) for each in recipes])
    damaged = checkpoint.paths(tmp_path / "seed-3/checkpoints")[-1]
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"\1")
    outcomes = together(tmp_path, recipes)
    # all are saved where one of them is kept
    assert [o.made for o in outcomes] == [LENGTH - (20 if n == 3 else 35) for n in range(8)]
    told = [message for message in caplog.messages if "not a whole checkpoint" in message]
    assert len(told) == 1
    assert "seed-3" in told[0]
    assert damaged.with_name(f"{damaged.name}.damaged").exists()
    for n in range(8):
        assert_same(tmp_path / f"seed-{n}", straight / f"seed-{n}")


class Stopped(Exception):
    pass


def test_a_checkpoint_that_only_some_have_written(tmp_path, straight, monkeypatch):
    """As a kill between the checkpoints of members leaves them."""
    recipes, save = eight("control-vae", steps=LENGTH), checkpoint.save
    written = []

    def stopping(directory, saved, **options):
        if len(written) >= 11:
            raise Stopped
        written.append(directory)
        return save(directory, saved, **options)

    monkeypatch.setattr(checkpoint, "save", stopping)
    with pytest.raises(Stopped):
        together(tmp_path, recipes, checkpoint_seconds=0)
    monkeypatch.setattr(checkpoint, "save", save)
    steps = {checkpoint.load_newest(tmp_path / f"seed-{n}/checkpoints").step for n in range(8)}
    assert len(steps) > 1
    together(tmp_path, recipes)
    for n in range(8):
        assert_same(tmp_path / f"seed-{n}", straight / f"seed-{n}")


@pytest.mark.parametrize(
    ("refused", "message"),
    [
        ("held", r"seed-5 is being trained by another process"),
        ("data", r"seed-5 was trained on tiny-v2, but the data now is tiny-v1"),
        ("longer", r"seed-5 has made 3 steps, more than --steps 2"),
        ("twice", r"seed-0 is named twice"),
        ("batch", r"batch_size 500 is more than the 120 images"),
    ],
)
def test_what_is_refused_changes_nothing(refused, message, tmp_path):
    recipes = eight("beta-vae", steps=2)
    begun = runs_of(tmp_path, [recipes[5]])[0]
    if refused in ("data", "longer"):
        run = RunDirectory(begun.path, replace(recipes[5], steps=3 if refused == "longer" else 1))
        data = Corner()
        data.fingerprint = "tiny-v2" if refused == "data" else "tiny-v1"
        train(run, data, CPU)
    runs = runs_of(tmp_path, recipes)
    if refused == "twice":
        runs.append(RunDirectory(tmp_path / "nothing/../seed-0", recipes[0]))
    if refused == "batch":
        runs[7] = RunDirectory(runs[7].path, replace(recipes[7], objective=TCVAE(), batch_size=500))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    if refused == "held":
        with begun.locked(), pytest.raises(RunError, match=message):
            train_together(runs, Corner(), CPU)
    else:
        with pytest.raises((RunError, RecipeError), match=message):
            train_together(runs, Corner(), CPU)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def start(out: Path) -> commands.Command:
    return commands.start([SCRIPT, out, LENGTH, 0.05])


def steps_of(out: Path) -> set[int]:
    found = set()
    for n in range(8):
        newest = checkpoint.load_newest(out / f"seed-{n}/checkpoints")
        found.add(newest.step if newest else 0)
    return found


def wait_for_rows(process: commands.Command, out: Path) -> None:
    while process.poll() is None and not (out / "seed-7/trace.csv").exists():
        time.sleep(0.01)


def kill_and_resume(out: Path, straight: Path, kills: int, seed: int) -> list[set[int]]:
    """Kill at random moments; the steps at which members stood then."""
    moments, stood = random.Random(seed), []
    for _ in range(kills):
        process = start(out)
        wait_for_rows(process, out)
        time.sleep(moments.uniform(0.0, 1.0))
        process.kill()
        process.communicate()
        stood.append(steps_of(out))
    process = start(out)
    _, stderr = process.communicate(timeout=300)
    assert process.returncode == 0, stderr
    for n in range(8):
        assert_same(out / f"seed-{n}", straight / f"seed-{n}")
    return stood


def test_sigkill(tmp_path, straight):
    kill_and_resume(tmp_path / "runs", straight, kills=1, seed=0)


@pytest.mark.slow
def test_sigkill_many_times(tmp_path, straight):
    stood = [
        each for seed in range(1, 6) for each in kill_and_resume(tmp_path / str(seed), straight, 4, seed)
    ]
    assert any(len(steps) > 1 for steps in stood), "no kill fell between checkpoints of members"


@pytest.mark.parametrize("engine", ["fused", "torch"])
def test_a_signal_saves_all(engine, tmp_path, straight, monkeypatch):
    """In this process: after some steps of the first group, or of the first run."""
    recipes = [replace(each, engine=engine) for each in eight("control-vae", steps=LENGTH)]
    step, seen = Abreast._step, []

    def interrupting(self):
        step(self)
        seen.append(1)
        if len(seen) == 20:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Abreast, "_step", interrupting)
    outcomes = together(tmp_path, recipes)
    assert [o.interrupted for o in outcomes] == [True] * 8
    assert [o.step for o in outcomes] == ([20] * 8 if engine == "fused" else [20] + [0] * 7)
    assert steps_of(tmp_path) == ({20} if engine == "fused" else {20, 0})
    assert {o.failure for o in outcomes} == {None}
    monkeypatch.setattr(Abreast, "_step", step)
    if engine == "fused":
        together(tmp_path, recipes)
        for n in range(8):
            assert_same(tmp_path / f"seed-{n}", straight / f"seed-{n}")


def test_a_full_disk_is_one_line_and_all_go_on(tmp_path, straight, monkeypatch):
    recipes, move = eight("control-vae", steps=LENGTH), os.replace

    def full_of_checkpoints(old, new, **options):
        if "checkpoints" in str(new):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        move(old, new, **options)

    together(tmp_path, [replace(each, steps=20) for each in recipes])
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full_of_checkpoints)
        with pytest.raises(RunError, match=r"cannot write .*; what was saved before is intact"):
            together(tmp_path, recipes, checkpoint_seconds=0)
    assert steps_of(tmp_path) == {20}
    together(tmp_path, recipes)
    for n in range(8):
        assert_same(tmp_path / f"seed-{n}", straight / f"seed-{n}")


def test_all_are_held_and_few_threads_write_for_many(tmp_path, monkeypatch):
    recipes, step, most = eight("beta-vae", steps=10), Abreast._step, []

    def looking(self):
        step(self)
        names = [thread.name for thread in threading.enumerate()]
        most.append(sum(name.startswith(("pyvae-save", "pyvae-events")) for name in names))
        for run in runs_of(tmp_path, recipes):
            with pytest.raises(RunError, match="being trained by another process"), run.locked():
                pass

    monkeypatch.setattr(Abreast, "_step", looking)
    together(tmp_path, recipes, checkpoint_seconds=0)
    assert len(most) == 10
    assert 2 <= max(most) <= 5


def test_nothing_is_no_error():
    assert train_together([], Corner(), CPU) == []
