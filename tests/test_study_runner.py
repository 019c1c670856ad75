"""A study goes on from wherever it stands: nothing is trained twice, and what stands in its way is told in one line."""

import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
import tracemalloc
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from study_tiny import RECIPE, bits, data_in, plan_of

from pyvae.data import load
from pyvae.data.paths import absolute
from pyvae.engine import checkpoint
from pyvae.engine.lock import lock
from pyvae.engine.loop import train
from pyvae.engine.run import RunDirectory
from pyvae.errors import PyvaeError, RunError
from pyvae.evaluation import write_metrics
from pyvae.studies import here as here_module
from pyvae.studies import work
from pyvae.studies.here import Here
from pyvae.studies.plan import Model, StudyPlan
from pyvae.studies.results import about, read_results, write_results
from pyvae.studies.runner import run_study
from pyvae.studies.work import ModelOutcome, OutOfRoomError, Scored, Settings, score_model
from tiny import Corner, TinyData

CPU = Settings(device="cpu")


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    patch = pytest.MonkeyPatch()
    patch.setenv("PYVAE_CACHE", str(tmp_path_factory.mktemp("cache")))
    yield
    patch.undo()


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return data_in(tmp_path_factory.mktemp("data"))


@pytest.fixture
def trained(monkeypatch):
    """Names of the models that training was asked for, in its order."""
    names = []
    train_together = work.train_together

    def noted(runs, *arguments, **options):
        names.extend("/".join(run.path.parts[-3:]) for run in runs)
        return train_together(runs, *arguments, **options)

    monkeypatch.setattr(work, "train_together", noted)
    return names


def of(data):
    """A place without a process beside it, which takes seconds to begin."""
    return Here(load(data, size=12))


def alone(model, directory):
    """The bits of a model that was trained by itself."""
    run = RunDirectory.create_or_resume(directory / "alone" / model.name, model.recipe)
    train(run, load(model.recipe.data, size=12), torch.device("cpu"))
    return bits(directory / "alone", model.name)


def test_a_study_comes_to_its_end(tmp_path, data, trained):
    plan, out, told = plan_of(data), tmp_path / "out", []
    end = run_study(plan, out, CPU, told=told.append)
    assert (end.problems, end.interrupted) == ([], False)
    assert sorted(trained) == sorted(model.name for model in plan.models)
    assert [row.model for row in end.rows] == [model.name for model in plan.models]
    assert read_results(out / "results.csv") == end.rows
    assert (out / "study.toml").read_text() == plan.source
    assert sorted(told, key=lambda row: row.model) == end.rows
    for model, row in zip(plan.models, end.rows, strict=True):
        assert bits(out, model.name) == alone(model, tmp_path)
        metrics = json.loads((out / model.name / "metrics.json").read_text())
        assert (row.recon, row.kl) == (metrics["recon"], metrics["kl"])
        known = metrics["scores"]["unsupervised"]
        assert row.scores["unsupervised.mutual_information"] == known["mutual_information"]
        assert (row.steps_done, row.engine, row.without) == (6, "torch", "")
        assert row.steps_per_second == pytest.approx(6 / row.seconds)
    trained.clear()
    again = run_study(plan, out, CPU)
    assert trained == []
    assert again.rows == end.rows


def test_more_models_and_metrics_leave_what_is_there(tmp_path, data, trained, monkeypatch):
    out = tmp_path / "out"
    first = run_study(plan_of(data, betas=(1.0,), metrics=()), out, CPU, of(data))
    assert [row.scores for row in first.rows] == [{}, {}]
    trained.clear()
    end = run_study(plan_of(data, betas=(1.0, 4.0)), out, CPU, of(data))
    assert sorted(trained) == ["beta-vae/beta-4/seed-0", "beta-vae/beta-4/seed-1"]
    assert [row.recon for row in end.rows[:2]] == [row.recon for row in first.rows]
    assert all(len(row.scores) == 4 for row in end.rows)
    # without its table, each is found again, and not computed
    monkeypatch.setattr(work, "compute_scores", lambda *_, **__: pytest.fail("scored twice"))
    monkeypatch.setattr(work, "evaluate", lambda *_, **__: pytest.fail("evaluated twice"))
    trained.clear()
    for spoilt in (None, b"no table"):
        (out / "results.csv").unlink()
        if spoilt is not None:
            (out / "results.csv").write_bytes(spoilt)
        assert run_study(plan_of(data), out, CPU, of(data)).rows == end.rows
    assert trained == []
    assert (out / "results.csv.damaged").read_bytes() == b"no table"


def test_a_row_of_something_else_is_not_believed(tmp_path, data, trained):
    plan = plan_of(data, betas=(1.0,), seeds=(0,))
    (row,) = run_study(plan, tmp_path, CPU, of(data)).rows
    trained.clear()
    spoilt = replace(row, recon=-1.0)
    others = ({"method": "b"}, {"data": "c"}, {"seed": 7}, {"recipe": {**row.recipe, "lr": 1.0}})
    for change in (
        *others,
        {"steps_done": 5},
        {"without": "size"},
        {"images": 5},
        {"scoring_seed": 5},
        {"scores": {}},
    ):
        write_results(tmp_path / "results.csv", [replace(spoilt, **change)])
        assert run_study(plan, tmp_path, CPU, of(data)).rows == [row], change
    write_results(tmp_path / "results.csv", [spoilt])
    assert run_study(plan, tmp_path, CPU, of(data)).rows == [spoilt]
    assert trained == []


def test_another_seed_of_the_metrics_scores_anew_and_trains_nothing(tmp_path, data, trained):
    plan = plan_of(data, betas=(1.0,), seeds=(0,))
    first, again, other = (
        run_study(plan, tmp_path, replace(CPU, seed=seed), of(data)).rows[0] for seed in (0, 0, 5)
    )
    assert len(trained) == 1
    assert first == again
    assert (first.scoring_seed, other.scoring_seed) == (0, 5)
    written = json.loads((tmp_path / other.model / "metrics.json").read_text())
    assert written["scores"]["unsupervised"]["seed"] == 5


def test_what_is_known_is_not_opened(tmp_path, data, monkeypatch):
    plan, out = plan_of(data), tmp_path / "out"
    end = run_study(plan, out, CPU, of(data))
    for name in ("load", "newest_description"):
        monkeypatch.setattr(checkpoint, name, lambda *_, **__: pytest.fail("a checkpoint is read"))
    monkeypatch.setattr(here_module, "dataset_of", lambda *_: pytest.fail("data is opened"))
    assert run_study(plan, out, CPU).rows == end.rows


def spoil(path, recipe, data):
    """A run that stands at step 3, and has a weight that is not finite."""
    run = RunDirectory.create_or_resume(path, replace(recipe, steps=3))
    train(run, load(data, size=12), torch.device("cpu"))
    saved = checkpoint.load_newest(run.checkpoints)
    next(t for name, t in saved.tensors.items() if name.endswith("weight"))[:] = float("nan")
    checkpoint.save(run.checkpoints, saved)


def test_a_model_that_diverges_is_told_and_not_tried_again(tmp_path, data, trained):
    plan = plan_of(data, betas=(1.0, 4.0, 8.0), seeds=(0,))
    spoil(tmp_path / plan.models[0].name, plan.models[0].recipe, data)
    end = run_study(plan, tmp_path, CPU, of(data))
    assert [row.failure is None for row in end.rows] == [False, True, True]
    assert "is not finite in step" in end.rows[0].failure
    (line,) = end.problems
    assert line.startswith("beta-vae/beta-1/seed-0: ")
    assert f"remove {tmp_path / plan.models[0].name}" in line
    assert end.rows[0].steps_done == 3
    trained.clear()
    again = run_study(plan, tmp_path, CPU, of(data))
    assert (again.problems, again.rows, trained) == (end.problems, end.rows, [])


def test_a_run_of_another_recipe_is_told_and_the_others_go_on(tmp_path, data):
    plan = plan_of(data)
    there = RunDirectory.create_or_resume(
        tmp_path / plan.models[1].name, replace(plan.models[1].recipe, latents=2)
    )
    train(there, load(data, size=12), torch.device("cpu"))
    end = run_study(plan, tmp_path, CPU, of(data))
    assert [row.model for row in end.rows] == [m.name for m in plan.models if m is not plan.models[1]]
    (line,) = end.problems
    assert line.startswith(
        f"{plan.models[1].name}: its directory holds a run of another recipe (latents is 2 there"
    )
    assert RunDirectory.open(there.path).recipe.latents == 2


def test_a_run_that_another_process_trains_is_waited_for(tmp_path, data):
    plan = plan_of(data, betas=(1.0,))
    run = RunDirectory.create_or_resume(tmp_path / plan.models[1].name, plan.models[1].recipe)
    with run.locked():
        end = run_study(plan, tmp_path, CPU, of(data))
        (line,) = end.problems
        assert "is being trained by another process" in line
        assert [row.model for row in end.rows] == [plan.models[0].name]
    with ExitStack() as held:
        held.enter_context(run.locked())
        threading.Timer(1.0, held.close).start()
        end = run_study(plan, tmp_path, replace(CPU, patience=60.0), of(data))
    assert (len(end.rows), end.problems) == (2, [])


def test_a_full_disk_ends_the_study_in_one_line(tmp_path, data, trained, monkeypatch):
    plan, write, left = plan_of(data), Path.write_bytes, [7]

    def full(path, content):
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        return write(path, content)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(
        PyvaeError, match=r"cannot write .*: No space left on device; .* run the same command"
    ):
        run_study(plan, tmp_path, CPU, of(data))
    begun = len(trained)
    assert 0 < begun < 4
    monkeypatch.undo()
    assert len(run_study(plan, tmp_path, CPU, of(data)).rows) == 4


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EFBIG])
def test_a_disk_that_takes_nothing_is_no_fault_of_a_model(tmp_path, data, monkeypatch, number):
    def refuse(path, content):
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr(Path, "write_bytes", refuse)
    with pytest.raises(OutOfRoomError, match=os.strerror(number)):
        work.train_group(plan_of(data).models, tmp_path, CPU, load(data, size=12))


def test_one_process_at_a_time(tmp_path, data):
    with (
        lock(tmp_path / ".study-lock", wait=False),
        pytest.raises(RunError, match=r"another process is at work on the study in .*: wait for it"),
    ):
        run_study(plan_of(data), tmp_path, CPU, of(data))
    assert not (tmp_path / "study.toml").exists()  # that is the other's


def test_a_directory_that_cannot_be_is_refused(tmp_path, data):
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match=r"file is no directory"):
        run_study(plan_of(data), tmp_path / "file", CPU, of(data))
    RunDirectory(tmp_path, RECIPE).write_recipe()
    with pytest.raises(RunError, match="holds a run: name another directory"):
        run_study(plan_of(data), tmp_path, CPU, of(data))
    assert not (tmp_path / "study.toml").exists()


def test_a_signal_saves_and_ends(tmp_path, data, trained):
    plan = plan_of(data, seeds=(0,), steps=100_000)
    timer = threading.Timer(0.7, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    end = run_study(plan, tmp_path, CPU, of(data))
    assert (end.interrupted, end.problems, trained) == (True, [], ["beta-vae/beta-1/seed-0"])
    steps = bits(tmp_path, plan.models[0].name)[0]
    assert 0 < steps < 100_000


def test_a_signal_between_groups_ends_too(tmp_path, data, trained):
    def stop(row):
        raise KeyboardInterrupt

    plan = plan_of(data)
    end = run_study(plan, tmp_path, CPU, of(data), told=stop)
    assert (end.interrupted, len(end.rows), len(trained)) == (True, 1, 1)
    assert read_results(tmp_path / "results.csv") == end.rows
    assert not run_study(plan, tmp_path, CPU, of(data)).interrupted
    assert len(trained) == 4


def steps_of(path):
    return (checkpoint.newest_description(path / "checkpoints") or {"step": 0})["step"]


KILLED = """
import sys
sys.path.insert(0, {tests!r})
from pathlib import Path
from pyvae.studies.runner import run_study
from pyvae.studies.work import Settings
from study_tiny import plan_of
run_study(plan_of({data!r}, seeds=range(4), steps=15), Path({out!r}), Settings(device="cpu", checkpoint_seconds=0))
"""


def test_a_killed_study_goes_on(tmp_path, data, trained):
    out, plan = tmp_path / "out", plan_of(data, seeds=range(4), steps=15)
    code = KILLED.format(tests=str(Path(__file__).parent), data=data, out=str(out))
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
    last = out / plan.models[1].name / "checkpoints"
    deadline = time.monotonic() + 120
    while not checkpoint.paths(last):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.kill()
    process.wait()
    finished = [
        m.name
        for m in plan.models
        if (work.checkpoint.newest_description(out / m.name / "checkpoints") or {}).get("step") == 15
    ]
    assert 0 < len(finished) < len(plan.models)
    end = run_study(plan, out, CPU, of(data))
    assert sorted(trained) == sorted(m.name for m in plan.models if m.name not in finished)
    assert (len(end.rows), end.problems) == (8, [])
    for model in plan.models[:3]:
        assert bits(out, model.name) == alone(model, tmp_path)


class Losing(Here):
    """Its process beside this one is killed when it has been given the first model."""

    def _hand_over(self):
        super()._hand_over()
        self._child._process.kill()


def test_scores_do_not_depend_on_the_process_beside(tmp_path, data, caplog):
    caplog.set_level("WARNING")
    end = run_study(plan_of(data, seeds=range(3)), tmp_path, CPU, Losing())
    assert (len(end.rows), end.problems) == (6, [])
    told = [line for line in caplog.messages if "the process that scores" in line]
    assert 1 <= len(told) <= 2
    assert all(len(row.scores) == 4 for row in end.rows)


def test_scores_of_factors(tmp_path):
    """What cannot be computed is NaN in the row, and other factors are another score."""
    recipe = replace(RECIPE, data="tiny", steps=2)
    model, data = Model("a/seed-0", "a", {}, recipe), Corner()
    train(RunDirectory.create_or_resume(tmp_path / model.name, recipe), data, torch.device("cpu"))
    settings = replace(CPU, metrics=("mig", "dci", "mig-chen"), without=("size",))
    row = score_model(model, tmp_path, settings, data)
    held = json.loads((tmp_path / model.name / "metrics.json").read_text())["scores"]
    assert held["mig"]["factors"] == ["row", "column"]
    assert row.scores["mig"] == held["mig"]["score"]
    assert row.without == "size"
    assert set(row.scores) >= {"dci", "dci.completeness", "dci.informativeness", "mig-chen"}
    write_metrics(
        RunDirectory.open(tmp_path / model.name), 2, data, {"scores": {"mig": {**held["mig"], "score": -1.0}}}
    )
    assert score_model(model, tmp_path, settings, data).scores["mig"] == -1.0
    other = score_model(model, tmp_path, replace(settings, without=()), data)
    assert other.scores["mig"] not in (-1.0, held["mig"]["score"])
    # a study of several data sets leaves out what some do not have
    assert score_model(model, tmp_path, replace(settings, without=("shape",)), data).scores == other.scores
    part = score_model(model, tmp_path, replace(settings, images=60), data)
    assert part.images == 60
    assert part.scores["mig"] not in (-1.0, held["mig"]["score"])
    data.fingerprint = "tiny-v2"
    with pytest.raises(PyvaeError, match="was trained on tiny-v1, but the data now is tiny-v2"):
        score_model(model, tmp_path, settings, data)


class TestAThousand:
    """Training and scoring are stubs here, and nowhere else."""

    @pytest.fixture
    def plan(self):
        recipes = [replace(RECIPE, data="tiny", seed=seed) for seed in range(1000)]
        models = tuple(Model(f"m/seed-{r.seed}", "m", {}, r) for r in recipes)
        return StudyPlan("Many", models, metrics=("mig",))

    def test_rows_come_in_no_time_and_memory_is_flat(self, tmp_path, monkeypatch, plan):
        used = []

        def trained(group, out, settings, dataset):
            for model in group:
                (out / model.name).mkdir(parents=True)
                recipe = replace(model.recipe, data=absolute("tiny"))
                (out / model.name / "recipe.json").write_text(json.dumps(recipe.to_json()))
            used.append(tracemalloc.get_traced_memory()[0])
            return [ModelOutcome(model.name, 6) for model in group]

        def scored(model, out, settings, *data):
            row = about(model.name, "m", model.recipe, steps_done=6, recon=1.0, kl=2.0, scores={"mig": 0.5})
            return Scored(model.name, row)

        monkeypatch.setattr(here_module, "train_group", trained)
        monkeypatch.setattr(here_module, "scored", scored)
        tracemalloc.start()
        try:
            start = time.monotonic()
            end = run_study(plan, tmp_path, CPU, Here(TinyData()))
            again = run_study(plan, tmp_path, CPU, Here(TinyData()))
            assert time.monotonic() - start < 60
        finally:
            tracemalloc.stop()
        assert len(used) == 1000
        assert used[-1] - used[100] < 10e6
        assert again.rows == end.rows
        assert read_results(tmp_path / "results.csv") == end.rows
