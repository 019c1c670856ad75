"""The questions of docs/findings: what is kept of a run, and what is drawn of it."""

import json
import math
import random
import re
from dataclasses import replace

import numpy as np
import pytest
import torch

import pyvae
from pyvae import data
from pyvae.metrics import mig_chen
from pyvae.objectives import ControlVAE
from scripts import ROOT, module, scripts  # noqa: F401
from tiny import TinyData


class TestPlant:
    @pytest.mark.parametrize(
        "objective",
        [
            ControlVAE(capacity_period=20, kp=0.2, ki=0.02),
            ControlVAE(schedule="linear", capacity_steps=1_500, kp=0.2, ki=0.02),
            ControlVAE(
                schedule="linear", capacity=12, capacity_start=12, capacity_steps=2_000, kp=0.2, ki=0.2
            ),
            ControlVAE(schedule="adaptive", capacity_steps=2_000, kp=0.2, ki=0.02),
            ControlVAE(schedule="adaptive", capacity_steps=1_500, adaptive_smoothing=0.9, kp=0.2, ki=0.02),
        ],
        ids=["stepwise", "linear", "frozen", "adaptive", "smoothed"],
    )
    def test_its_rules_are_those_of_pyvae_control(self, objective):
        plant = module("questions.plant")
        trial = plant.Trial("", objective, steps=2_000, plant=200.0, lr_times=10.0, seed=3)
        found = plant.simulate(trial)
        gauss = random.Random(3).gauss
        equilibria, finest = plant.equilibria()
        state, k = objective.initial_control("cpu"), 0.0
        curves = {"capacity": [], "kl": [], "beta": []}
        raised = 0
        for t in range(trial.steps):
            cell = min(int(math.log(float(state.beta)) * finest), plant.CELLS)
            k += 0.05 * (equilibria[cell] - k)
            kl = k + 0.35 * np.sqrt(k / (k + 2)) * gauss(0, 1)
            before = float(state.capacity)
            state = objective.control(state, torch.tensor(kl, dtype=torch.float64), torch.tensor(t))
            raised += float(state.capacity) > before
            for name, value in (("capacity", state.capacity), ("kl", k), ("beta", state.beta)):
                curves[name].append(float(value))
        for name, values in curves.items():
            blocks = (np.arange(2_000) / (2_000 / 150)).astype(int)
            means = [np.mean(np.asarray(values)[blocks == block]) for block in range(150)]
            np.testing.assert_allclose(found[name], means, rtol=6e-4)
        if objective.schedule == "adaptive":
            assert found["raised"] == pytest.approx(raised / objective.capacity_steps, abs=2e-3)

    def test_the_kl_of_a_beta_is_that_of_its_source(self):
        plant = module("questions.plant")
        equilibria, finest = plant.equilibria()
        for beta, nats in plant.EQUILIBRIUM:
            assert plant.equilibrium_of(beta) == pytest.approx(nats)
            assert equilibria[round(math.log(beta) * finest)] == pytest.approx(nats, abs=0.02)
        assert plant.equilibrium_of(1e6) == plant.EQUILIBRIUM[-1][1]

    @pytest.mark.parametrize("steps", [200, 2_000])
    def test_gains_that_are_scaled_give_the_course_of_the_published_length(self, steps):
        path = ROOT / "benchmarks/results/findings/plant/model-seed-0.json"
        of = [each for each in json.loads(path.read_text())["trials"] if each["plant"] == steps]
        full, plain, taken = [each for each in of if each["schedule"] == "adaptive"][:3]
        assert (full["kp"], full["ki"], taken["kp"], taken["ki"], taken["lr_times"]) == (
            0.01,
            0.001,
            0.2,
            0.02,
            1,
        )
        off = [np.abs(np.subtract(trial["kl"], full["kl"])).mean() for trial in (plain, taken)]
        assert off[1] < 0.3 < 3 < off[0]

    def test_the_study_scales_so(self):
        from pyvae.studies.plan import read_plan

        plan = read_plan(ROOT / "examples/studies/findings/capacity.toml")
        plant, arms = module("questions.plant"), module("questions.capacity_tables").ARMS
        taken = {"linear": plant.trials("stepwise", 2e3)[2], "adaptive": plant.trials("adaptive", 2e3)[2]}
        for model in plan.models:
            objective = model.recipe.objective
            assert (objective.kp, objective.ki) == (0.2, 0.02)
            assert model.recipe.lr == (1e-3 if model.method == "linear-hot" else 1e-4)
            if model.method in taken:
                trial = taken[model.method]
                assert model.recipe.steps == trial.steps
                # each has a field that the other's schedule does not read
                unread = "capacity_steps" if model.method == "linear" else "capacity_period"
                assert trial.objective == replace(objective, **{unread: getattr(trial.objective, unread)})
        assert {model.method for model in plan.models} == set(arms)


class TestCapacity:
    @pytest.mark.parametrize("p", [0.35, 0.5, 1.0])
    def test_the_exponent_of_a_law_is_found(self, p):
        capacity = module("questions.capacity")
        objective = ControlVAE(schedule="adaptive", capacity_steps=1_000)
        t = np.arange(0, 1_000, 10)
        found = capacity.exponent(t, 16 - 15.5 * (1 - (t + 1) / 1_000) ** p, objective)
        np.testing.assert_allclose([found["p"], *found["band"], *found["parts"]], p, atol=2e-3)

    def test_the_exponent_of_a_run_that_waits_and_then_rises_has_a_band(self):
        capacity = module("questions.capacity")
        objective = ControlVAE(schedule="adaptive", capacity_steps=1_000)
        t = np.arange(1_000)
        left = 1 - (t + 1) / 1_000
        found = capacity.exponent(t, 16 - 15.5 * np.minimum(left / 0.5, 1), objective)
        assert found["band"] == pytest.approx([0, 1], abs=0.02)
        np.testing.assert_allclose(found["parts"], [0] * 10 + [1] * 10, atol=0.05)

    def test_dead_units_are_counted_at_the_end_too(self):
        counted = module("questions.capacity").counted
        assert counted(range(100, 6_001, 100)) == [100, 1_100, 2_100, 3_100, 4_100, 5_100, 6_000]
        assert counted([4, 8, 12]) == [4, 8, 12]

    def test_mig_without_shape_is_the_mean_of_the_others(self):
        mig_of = module("questions.capacity_tables").mig_of
        gaps = {"shape": 0.0, "scale": 0.4, "orientation": 0.0, "posX": 0.8, "posY": 0.8}
        assert mig_of(gaps, shape=True) == pytest.approx(0.4)
        assert mig_of(gaps, shape=False) == pytest.approx(0.5)

    def test_a_level_is_where_the_kl_first_rises_through_it(self):
        at_level = module("questions.capacity_tables").at_level
        kls = (2.0, 1.0, 3.0, 5.0, 3.0, 9.0)
        found = [{"kl": kl, "recon": 10.0 - 2 * kl - 0.1 * i} for i, kl in enumerate(kls)]
        assert at_level(found, 4.0, lambda each: each["recon"]) == pytest.approx(2.0 - 0.25)
        assert at_level(found, 1.5, lambda each: each["recon"]) == pytest.approx(7.0 - 0.125)
        assert at_level(found, 9.5, lambda each: each["recon"]) is None


def test_rows_are_means_over_as_many_steps():
    thinned = module("questions.runs").thinned
    trace = {"step": np.arange(0, 1_000, 10), "kl": np.arange(100.0)}
    assert thinned(trace, 4) == {"step": [120.0, 370.0, 620.0, 870.0], "kl": [12.0, 37.0, 62.0, 87.0]}
    assert thinned(trace, 500)["step"] == list(range(0, 1_000, 10))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Three of a study, tiny: one has not ended."""
    out = tmp_path_factory.mktemp("runs")
    settings = {"keep_at": (4, 8), "log_every": 2, "device": "cpu", "batch_size": 8, "data": "tiny"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "load", lambda path, **options: TinyData())
        pyvae.train("control-vae-linear", out=out / "linear/seed-0", steps=12, capacity_period=1, **settings)
        pyvae.train(
            "control-vae-adaptive", out=out / "adaptive/seed-0", steps=12, capacity_steps=12, **settings
        )
        pyvae.train("control-vae-linear", out=out / "linear/seed-1", steps=10, seed=1, **settings)
        path = out / "linear/seed-1/recipe.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "steps": 12}))
        yield out


def test_the_codes_of_a_grid_are_those_of_its_images(runs):
    run = pyvae.open(runs / "linear/seed-0")
    table = module("questions.runs").grid_codes(run, 8, (3, 2, 1))
    assert table.factor_sizes == (2, 3, 6)
    classes = table.classes() * torch.tensor([3, 2, 1])
    mu, logvar = run.model(8).encode(run.dataset.images(classes @ torch.tensor([30, 6, 1])))
    torch.testing.assert_close(table.mu, mu)
    torch.testing.assert_close(table.logvar, logvar)


def test_finished_runs_are_measured_once_and_drawn(runs, tmp_path, monkeypatch):
    findings, capacity = module("findings"), module("questions.capacity")
    mig_of = module("questions.capacity_tables").mig_of
    monkeypatch.setattr(capacity, "GRID", (3, 1, 1))
    monkeypatch.setattr(capacity, "ALL", (1, 1, 1))
    results, pages = tmp_path / "results", tmp_path / "pages"
    findings.measure("capacity", runs, results)
    found = findings.read("capacity", results)
    assert [(each["arm"], each["seed"]) for each in found] == [("linear", 0), ("adaptive", 0)]
    for result in found:
        assert [each["step"] for each in result["snapshots"]] == [4, 8, 12]
        assert result["trace"]["step"] == [0, 2, 4, 6, 8, 10]
        run = pyvae.open(runs / f"{result['arm']}/seed-0")
        score = mig_chen(run.codes(progress=False).table, without=("size",), progress=False).score
        del result["mig_gaps"]["size"]
        assert mig_of(result["mig_gaps"], shape=False) == pytest.approx(score, abs=1e-4)
        last = capacity.snapshot_of(run, 12)
        assert result["snapshots"][-1].items() >= last.items()
        assert "12" in result["dead"]
    assert found[0]["exponent"] is None
    assert found[1]["exponent"]["p"] > 0
    assert findings.measure("capacity", runs, results) == []

    pages.mkdir()
    (pages / "capacity.md").write_text("Before\n\n<!-- finding: capacity runs -->\n<!-- end -->\n\nafter\n")
    findings.draw(results, pages)
    text = (pages / "capacity.md").read_text()
    assert "| `linear`, seed 0 | - |" in text
    assert "| `adaptive`, seed 0 |" in text
    assert text.endswith("after\n")
    for name in ("capacity-course.png", "capacity-equal.png"):
        assert (pages / name).stat().st_size > 10_000


def test_runs_are_asked_for():
    findings = module("findings")
    with pytest.raises(pyvae.PyvaeError, match="give the directory of its study"):
        findings.measure("capacity", None)


def test_pages_say_what_the_files_say():
    findings = module("findings")
    for page in sorted(findings.PAGES.glob("*.md")):
        assert findings.render(page.read_text()) == page.read_text(), (
            f"{page.name}: run python benchmarks/findings.py draw"
        )


def test_pictures_are_made_of_the_files_and_shown_and_all_are_small():
    findings = module("findings")
    made = set()
    for name, question in findings.QUESTIONS.items():
        if found := findings.read(name):
            made |= set(question.pictures(found))
    text = "".join(page.read_text() for page in findings.PAGES.glob("*.md"))
    there = {path.name for path in findings.PAGES.glob("*.png")}
    assert there == made == {*re.findall(r"\]\(([\w-]+\.png)\)", text)}
    for path in findings.PAGES.glob("*.png"):
        assert path.stat().st_size < 300_000, path
    for path in findings.RESULTS.rglob("*.json"):
        assert path.stat().st_size < 150_000, path
