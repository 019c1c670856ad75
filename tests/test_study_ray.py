"""A study on a real Ray cluster of two nodes: workers, tasks, its head and its path may fail, and the study goes on."""

import contextlib
import json
import os
import re
import signal
import threading
import time
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from study_tiny import RECIPE, bits, data_in, plan_of

from pyvae.data import load
from pyvae.engine import checkpoint
from pyvae.engine.lock import lock
from pyvae.engine.loop import train
from pyvae.engine.run import RunDirectory
from pyvae.errors import PyvaeError
from pyvae.studies.on_ray import RayPlace
from pyvae.studies.runner import run_study
from pyvae.studies.work import Settings

pytest.importorskip("ray", reason="needs pyvae-engine[ray]")
STEPS = 300
SETTINGS = Settings(device="cpu", checkpoint_seconds=0.02)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return data_in(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    from ray.cluster_utils import Cluster

    patch = pytest.MonkeyPatch()
    patch.setenv("PYVAE_CACHE", str(tmp_path_factory.mktemp("cache")))
    options = {"num_cpus": 1, "include_dashboard": False, "object_store_memory": 80 << 20}
    cluster = Cluster(initialize_head=True, head_node_args=options)
    cluster.add_node(num_cpus=1, object_store_memory=80 << 20)
    yield cluster
    cluster.shutdown()
    patch.undo()


def alone(model, directory):
    run = RunDirectory.create_or_resume(directory / "alone" / model.name, model.recipe)
    train(run, load(model.recipe.data, size=12), torch.device("cpu"))
    return bits(directory / "alone", model.name)


def once_saved(path, act):
    """Call ``act`` from a thread when a run has a checkpoint that is not its last; gives the thread, to be joined."""

    def wait():
        deadline = time.monotonic() + 120
        while not checkpoint.paths(path / "checkpoints") and time.monotonic() < deadline:
            time.sleep(0.01)
        act(path)

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


def holder(path):
    """The process that holds the lock of a run, as the kernel knows it."""
    inode = (path / ".lock").stat().st_ino
    for line in Path("/proc/locks").read_text().splitlines():
        if line.split()[5].endswith(f":{inode}"):
            return int(line.split()[4])
    raise AssertionError(f"nobody holds {path}")


def children(of):
    """Processes below one, by name, those of other sessions among them."""
    parents, names = {}, {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            pid, name, rest = re.fullmatch(r"(\d+) \((.*)\) (.*)", stat.read_text(), re.DOTALL).groups()
        except OSError:  # it has ended meanwhile
            continue
        parents[int(pid)], names[int(pid)] = int(rest.split()[1]), name
    below = {of}
    while more := {pid for pid, parent in parents.items() if parent in below} - below:
        below |= more
    return [(pid, names[pid]) for pid in below - {of}]


class Raising(RayPlace):
    """The third group is one whose task raises what no task should."""

    def train(self, groups):
        spoilt = [tuple(replace(model, recipe=None) for model in groups[2])]
        return super().train([*groups[:2], *spoilt, *groups[3:]])


def test_workers_and_tasks_fail_and_the_others_go_on(tmp_path, data, cluster, capfd):
    out, plan = tmp_path / "out", plan_of(data, steps=STEPS)
    first, foreign, raising, last = (plan.models[n] for n in (0, 2, 1, 3))
    there = RunDirectory.create_or_resume(out / foreign.name, replace(foreign.recipe, latents=2, steps=1))
    train(there, load(data, size=12), torch.device("cpu"))
    killed = []

    def kill(path):
        killed.append((holder(path), checkpoint.paths(path / "checkpoints")[-1]))
        os.kill(killed[0][0], signal.SIGKILL)

    capfd.readouterr()
    thread = once_saved(out / first.name, kill)
    end = run_study(plan, out, SETTINGS, Raising(cluster.address, num_cpus=1))
    thread.join()
    assert 0 < checkpoint.step_of(killed[0][1]) < STEPS
    assert [row.model for row in end.rows] == [first.name, last.name]
    assert all(row.steps_done == STEPS and row.recon > 0 and len(row.scores) == 4 for row in end.rows)
    for model in (first, last):
        assert bits(out, model.name) == alone(model, tmp_path)
    # once from the first step on, and then from no earlier a step than was saved
    starts = [begun_at(path) for path in sorted((out / first.name / "events").iterdir())]
    assert len(starts) == 2
    assert starts[1] > checkpoint.step_of(killed[0][1])
    problems = sorted(end.problems)
    assert len(problems) == 2
    assert problems[0].startswith(f"{raising.name}: its task on Ray failed: AttributeError: ")
    assert problems[1].startswith(f"{foreign.name}: ")
    assert "holds a run of another recipe (latents is 2 there and 3 here)" in problems[1]
    assert not list(out.glob(".pyvae-*"))
    assert "ray" not in capfd.readouterr().err.lower().replace(str(tmp_path).lower(), "")


def begun_at(path):
    """The first step in a file of TensorBoard's."""
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    return next(event.step for event in EventFileLoader(str(path)).Load() if event.summary.value)


def test_a_head_that_goes_away_ends_the_study_and_the_same_call_goes_on(tmp_path, data, cluster):
    out, plan = tmp_path / "out", plan_of(data, betas=(1.0,), steps=STEPS)
    path = out / plan.models[0].name

    def kill(path):
        for pid, name in children(os.getpid()):
            if name in ("gcs_server", "raylet") and pid not in others:
                os.kill(pid, signal.SIGKILL)

    others = {pid for pid, _ in children(os.getpid())}
    thread = once_saved(path, kill)
    place = RayPlace("local", num_cpus=1, head_seconds=2.0)
    slow = replace(plan, models=tuple(replace(m, recipe=replace(m.recipe, steps=10**6)) for m in plan.models))
    with pytest.raises(
        PyvaeError, match=r"the Ray cluster \(local\) is gone.*; start it, and run the same"
    ) as told:
        run_study(slow, out, SETTINGS, place)
    thread.join()
    assert "\n" not in str(told.value)
    assert "Traceback" not in (out / ".ray.log").read_text()
    # its workers go on until they find themselves alone: how far, nobody knows before
    with contextlib.ExitStack() as ended:
        for model in plan.models:
            if (out / model.name).exists():
                ended.enter_context(lock(out / model.name / ".lock", wait=True))
    found = [checkpoint.newest_description(out / model.name / "checkpoints") for model in plan.models]
    saved = [0 if known is None else known["step"] for known in found]
    assert saved[0] > 0
    plan = plan_of(data, betas=(1.0,), steps=max(saved) + 50)
    end = run_study(plan, out, SETTINGS, RayPlace(cluster.address, num_cpus=1))
    assert (len(end.rows), end.problems) == (2, [])
    assert not list(out.glob(".pyvae-*"))
    for model in plan.models:
        assert bits(out, model.name) == alone(model, tmp_path)


def test_a_path_that_workers_do_not_share_is_told(tmp_path, data, cluster, monkeypatch):
    """One that every process sees as another."""
    monkeypatch.chdir(tmp_path)
    out = Path("/proc/self/cwd/out")
    with pytest.raises(
        PyvaeError, match=r"node \S+ \([\d.]+\) of the Ray cluster does not see /proc/self/cwd/out"
    ):
        run_study(plan_of(data), out, SETTINGS, RayPlace(cluster.address, num_cpus=1))
    assert not list((tmp_path / "out").glob("beta-vae"))


def test_no_cluster_is_told(tmp_path, data):
    with pytest.raises(PyvaeError, match=r"no Ray cluster can be reached at 127\.0\.0\.1:1 \("):
        run_study(plan_of(data), tmp_path, SETTINGS, RayPlace("127.0.0.1:1"))


def test_ray_that_is_missing_is_told(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(PyvaeError, match=r"--ray needs Ray: pip install 'pyvae-engine\[ray\]'"):
        RayPlace("local")


@pytest.mark.parametrize(
    ("options", "why"),
    [({"num_gpus": 2}, "--num-gpus must be from 0 to 1"), ({"num_cpus": 0}, "--num-cpus must be above 0")],
)
def test_shares_that_cannot_be_are_refused(options, why):
    with pytest.raises(PyvaeError, match=why):
        RayPlace("local", **options)


@pytest.mark.slow
def test_a_signal_saves_what_the_cluster_trains(tmp_path, data, cluster):
    out, plan = tmp_path / "out", plan_of(data, betas=(1.0,), steps=10**6)
    settings = replace(SETTINGS, checkpoint_seconds=10**6)
    begun = out / plan.models[0].name / "trace.csv"

    def stop():
        while not begun.exists() or begun.stat().st_size < 500:
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=stop)
    thread.start()
    end = run_study(plan, out, replace(settings, log_every=1), RayPlace(cluster.address, num_cpus=1))
    thread.join()
    assert (end.interrupted, end.rows) == (True, [])
    # without the signal there would be none
    assert bits(out, plan.models[0].name)[0] > 0


@pytest.mark.slow
def test_a_table_is_reproduced_on_a_cluster(tmp_path, data, cluster):
    """Numbers of the marginal likelihood too, of images that the tasks open themselves."""
    from pyvae.studies.published import Arm, Published
    from pyvae.studies.reproduce import reproduce
    from test_reproduce import STUDY

    arm = Arm("plain", replace(RECIPE, steps=4), (Published("log-p", -40.0, "nobody", "recalled"),))
    study = replace(STUDY, arms=(arm,), without=())
    pages = []
    for out, place in ((tmp_path / "ray", RayPlace(cluster.address, num_cpus=1)), (tmp_path / "here", None)):
        dataset = load(data, size=12)
        options = {"seeds": (1, 2), "data": data, "held_out": dataset, "held_out_data": data, "place": place}
        options["scale"] = Fraction(1, 2)
        assert reproduce("nothing", study, dataset, torch.device("cpu"), out, **options)
        pages.append(json.loads((out / "results.json").read_text()))
    assert [run["values"] for run in pages[0]["runs"]] == [run["values"] for run in pages[1]["runs"]]
    assert pages[0]["numbers"] == pages[1]["numbers"]
