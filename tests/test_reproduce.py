"""Studies as data, their scaling, the verdict on a number, and the way from recipes to a report."""

import json
import re
import shutil
from dataclasses import replace
from fractions import Fraction

import pytest
import torch

from pyvae.data.dataset import Dataset
from pyvae.engine.loop import Outcome, train
from pyvae.engine.recipe import Recipe
from pyvae.engine.run import RunDirectory
from pyvae.errors import PyvaeError, RunError
from pyvae.evaluation import compute_scores, read_scores
from pyvae.objectives import AnnealedVAE, BetaVAE, CapacityVAE, ControlVAE
from pyvae.report import study as study_page
from pyvae.report.study import write_page
from pyvae.studies import findings, work
from pyvae.studies import reproduce as module
from pyvae.studies.analysis import average
from pyvae.studies.published import (
    CERTAINTIES,
    QUANTITIES,
    STUDIES,
    Arm,
    Published,
    Study,
    parse_scale,
    shorten,
)
from pyvae.studies.reproduce import describe, reproduce, study_of
from pyvae.studies.verdict import judge
from tiny import TinyData

RECIPE = Recipe(architecture="kim", batch_size=8, steps=40, latents=3, lr=1e-3)
STUDY = Study(
    "A study <of> nothing",
    (
        Arm(
            "plain",
            RECIPE,
            (
                Published("recon", 500.0, "the first source", "code", error=1e6),
                Published("mig", 0.5, "the second source", "recalled", high=0.6),
            ),
        ),
        Arm("weighted", replace(RECIPE, objective=BetaVAE(beta=8.0))),
    ),
    without=("size",),
    notes=("A note & more.",),
)


def run_study(out, **changes):
    options = {"seeds": (1, 2), "scale": Fraction(1, 10), "data": "tiny", **changes}
    dataset = options.pop("dataset", TinyData())
    study = options.pop("study", STUDY)
    options.setdefault("told", lambda: write_page(out, dataset))
    done = reproduce("nothing", study, dataset, torch.device("cpu"), out, **options)
    return done and done.with_name("report.html")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("study")
    return run_study(out), out


def numbers(out):
    return json.loads((out / "results.json").read_text())


@pytest.mark.parametrize("name", STUDIES)
def test_studies_are_whole(name):
    study = STUDIES[name]
    assert len({arm.name for arm in study.arms}) == len(study.arms)
    for arm in study.arms:
        recipe = replace(arm.recipe, seed=3)
        assert Recipe.from_json(json.loads(json.dumps(recipe.to_json()))) == recipe
        assert arm.recipe.precision == "fp32"
    for _, number in study.numbers():
        assert number.quantity in QUANTITIES
        assert number.certainty in CERTAINTIES
        assert number.high is None or number.high > number.value
    assert name in describe(name)


def test_the_capacity_comparison_is_the_published_one():
    linear, adaptive = STUDIES["control-vae-capacity"].arms
    shown = {arm.name: {n.quantity: n.value for n in arm.published} for arm in (linear, adaptive)}
    assert shown == {
        "linear": {"mig-chen": 0.5279, "recon": 18.2191},
        "adaptive": {"mig-chen": 0.5273, "recon": 37.1294},
    }
    assert replace(adaptive.recipe, objective=linear.recipe.objective) == linear.recipe
    objective = adaptive.recipe.objective
    assert replace(objective, schedule="stepwise") == linear.recipe.objective
    assert (objective.capacity_start, objective.capacity, objective.capacity_steps) == (0.5, 16.0, 1_500_000)
    assert (linear.recipe.steps, linear.recipe.batch_size) == (1_500_000, 64)
    assert STUDIES["control-vae-capacity"].without == ("shape",)


class TestScale:
    @pytest.mark.parametrize("scale", [0.0, -0.1, 1.5, float("nan"), float("inf")])
    def test_what_cannot_be_is_refused(self, scale):
        with pytest.raises(PyvaeError, match="--scale must be above 0 and at most 1"):
            parse_scale(scale)

    def test_the_decimal_is_meant(self):
        assert parse_scale(0.1) == Fraction(1, 10)
        assert parse_scale(1e-3) == Fraction(1, 1000)

    def test_nothing_changes_at_full_length(self):
        for study in STUDIES.values():
            for arm in study.arms:
                assert shorten(arm.recipe, Fraction(1)) == arm.recipe

    @pytest.mark.parametrize("scale", [0.1, 0.01, 0.001, 0.0003])
    def test_stepwise_capacity_is_the_same_at_each_part_of_the_run(self, scale):
        recipe = STUDIES["control-vae-capacity"].arms[0].recipe
        short = shorten(recipe, parse_scale(scale))
        assert short.steps == round(1_500_000 * scale)
        for part in (0.05, 0.2, 0.34, 0.9):
            expected, actual = (capacity_at(r, int(part * r.steps)) for r in (recipe, short))
            assert actual == pytest.approx(expected, abs=short.objective.capacity_increment + 0.15)
        reached = next(t for t in range(short.steps) if capacity_at(short, t) == 16.0)
        assert reached / short.steps == pytest.approx(520 / 1500, abs=2 / short.steps + 0.001)

    def test_other_schedules_end_at_the_same_part(self):
        half = Fraction(1, 2)
        annealed = shorten(Recipe(objective=AnnealedVAE(annealing_steps=1000), steps=3000), half)
        assert (annealed.objective.annealing_steps, annealed.steps) == (500, 1500)
        capacity = shorten(Recipe(objective=CapacityVAE(capacity_steps=9), steps=11, keep_at=(4, 10)), half)
        assert (capacity.objective.capacity_steps, capacity.steps, capacity.keep_at) == (5, 6, (2, 5))
        staged = shorten(Recipe(lr_stage_steps=3000, steps=9_840_000), Fraction(1, 1000))
        assert (staged.lr_stage_steps, staged.steps) == (3, 9840)
        adaptive = ControlVAE(
            schedule="adaptive", capacity_steps=100, adaptive_window=8, adaptive_smoothing=0.99
        )
        short = shorten(Recipe(objective=adaptive, steps=100), Fraction(1, 4)).objective
        assert (short.capacity_steps, short.adaptive_window) == (25, 2)
        assert short.adaptive_smoothing == pytest.approx(1 - 1 / 25)

    def test_rates_stay_and_a_steep_ramp_does_not_latch_the_controller(self):
        recipe = STUDIES["control-vae-capacity"].arms[0].recipe
        short = shorten(recipe, Fraction(1, 1000))
        assert (short.lr, short.objective.kp, short.objective.ki) == (recipe.lr, 0.01, 0.001)
        assert (recipe.objective.anti_windup, short.objective.anti_windup) == ("published", "conditional")


def capacity_at(recipe, step):
    objective = recipe.objective
    state = objective.initial_control("cpu")
    return float(objective.control(state, torch.tensor(1.0), torch.tensor(step)).capacity)


class TestVerdict:
    published = Published("recon", 18.0, "somebody", "code", error=0.5)

    def test_mean_and_standard_error(self):
        mean = average([1.0, 2.0, 6.0])
        assert mean.value == 3.0
        # deviations -2, -1, 3: variance 14 / 2, over 3 values
        assert mean.error == pytest.approx((7 / 3) ** 0.5)
        assert average([4.0]) == (4.0, None, 1)

    def test_student_decides(self):
        # t(0.975; 2) = 4.3027; the standard error of 1, 2, 3 is 1 / sqrt(3)
        exact = replace(self.published, error=None)
        edge = 4.30265 / 3**0.5
        for shift, agrees in ((edge - 1e-3, True), (edge + 1e-3, False)):
            verdict = judge([17 + shift, 18 + shift, 19 + shift], exact)
            assert verdict.agrees is agrees
            assert verdict.difference == pytest.approx(shift)
            assert verdict.text.startswith("agrees" if agrees else "differs")

    def test_errors_of_both_sides_add_in_squares(self):
        verdict = judge([17.0, 18.0, 22.0], self.published)
        assert verdict.error == pytest.approx((7 / 3 + 0.25) ** 0.5)

    def test_one_published_run_scatters_as_ours_do(self):
        verdict = judge([1.0, 2.0, 6.0], replace(self.published, error=None, runs=1))
        assert verdict.error == pytest.approx((7 / 3 + 7) ** 0.5)

    def test_one_seed_decides_nothing(self):
        verdict = judge([20.0], self.published)
        assert (verdict.agrees, verdict.error, verdict.difference) == (None, None, 2.0)
        assert "no verdict: +2.00 nats" in verdict.text

    def test_a_range_is_met_anywhere_in_it(self):
        wide = Published("mig", 0.45, "somebody", "quoted", high=0.5)
        assert judge([0.46, 0.47], wide).difference == 0
        assert judge([0.55, 0.57], wide).difference == pytest.approx(0.06)
        assert judge([0.40, 0.42], wide).difference == pytest.approx(-0.04)
        assert judge([0.6, 0.6], wide).agrees is False

    def test_what_the_source_cannot_resolve_is_no_difference(self):
        coarse = replace(self.published, error=None, resolution=1.0)
        assert judge([18.9, 18.9], coarse).agrees is True
        assert judge([19.1, 19.1], coarse).agrees is False


def test_a_finished_study(finished):
    page, out = finished
    found = numbers(out)
    assert {r["engine"] for r in found["runs"]} == {"torch"}
    assert [(r["arm"], r["seed"], r["steps"]) for r in found["runs"]] == [
        ("plain", 1, 4),
        ("plain", 2, 4),
        ("weighted", 1, 4),
        ("weighted", 2, 4),
    ]
    data = TinyData()
    values = []
    for seed in (1, 2):
        run = RunDirectory.open(out / "plain" / f"seed-{seed}")
        assert run.recipe.seed == seed
        metrics = json.loads((run.path / "metrics.json").read_text())
        scores = read_scores(run, 4, data)
        assert scores["mig"]["factors"] == ["row", "column"]
        values.append({"recon": metrics["recon"], "mig": scores["mig"]["score"]})
    assert values[0]["recon"] != values[1]["recon"]
    for number in found["numbers"]:
        ours = [v[number["quantity"]] for v in values]
        assert number["ours"]["value"] == pytest.approx(sum(ours) / 2)
        assert number["ours"]["error"] == pytest.approx(abs(ours[0] - ours[1]) / 2)
        assert number["published"]["source"] in page.read_text()
    text = page.read_text()
    assert "A study &lt;of&gt; nothing" in text
    assert "A note &amp; more." in text
    assert "0.5 to 0.6" in text
    assert text.count("data:image/png;base64,") == 1 + 2 * 2
    assert text.count('<div class="charts">') == 2
    assert "http:" not in text
    assert "https:" not in text


def test_a_scaled_study_is_no_reproduction(finished):
    page, out = finished
    found = numbers(out)
    assert (found["scale"], found["scaled"], found["reproduction"]) == (0.1, True, False)
    assert all(number["verdict"] is None for number in found["numbers"])
    text = page.read_text()
    assert "Scaled run" in text
    assert "agrees" not in text
    assert "published, of a full-length run" in text


def test_a_full_study_is_judged(tmp_path, monkeypatch):
    monkeypatch.setattr(findings, "_DSPRITES", 120)
    data = TinyData()
    data.name = "dsprites"
    study = replace(STUDY, arms=tuple(replace(a, recipe=replace(a.recipe, steps=2)) for a in STUDY.arms))
    page = run_study(tmp_path, dataset=data, study=study, scale=Fraction(1))
    found = numbers(tmp_path)
    assert found["reproduction"] is True
    recon, mig = found["numbers"]
    assert recon["verdict"]["agrees"] is True
    assert mig["verdict"]["agrees"] is (
        abs(mig["verdict"]["difference"]) <= 12.7062 * mig["verdict"]["error"]
    )
    assert recon["verdict"]["text"] in page.read_text()
    assert "no reproduction" not in page.read_text()


def test_generators_stand_beside_a_vae(tmp_path):
    study = STUDIES["infogan"]
    arms = tuple(
        replace(arm, recipe=replace(arm.recipe, batch_size=4, steps=2))
        for arm in study.arms
        if arm.name != "infogan"
    )
    page = run_study(tmp_path, study=replace(study, arms=arms), scale=Fraction(1), seeds=(0,))
    runs = {run["arm"]: run["values"] for run in numbers(tmp_path)["runs"]}
    of_codes = {"factor-vae", "mig"}
    assert {name: set(values) for name, values in runs.items()} == {
        "infogan-5-codes": of_codes,
        "infowgan-gp": of_codes,
        "vae": of_codes | {"recon", "kl"},
    }
    for name, values in runs.items():
        run = RunDirectory.open(tmp_path / name / "seed-0")
        scores = compute_scores(run, TinyData(), ["mig", "factor-vae"], device=torch.device("cpu"))
        assert {metric: found["score"] for metric, found in scores.found.items()} == {
            m: values[m] for m in of_codes
        }
    text = page.read_text()
    assert {"0.82", "0.63", "0.1"} <= set(re.findall(r"[\d.]+", text))
    assert text.count("A grid of images that the generator made") == 2
    # a beta of 1 and a capacity of 0, which never change, are left to the settings
    drawn = study_page._draw_traces({name: [RunDirectory.open(tmp_path / name / "seed-0")] for name in runs})
    assert [axes.get_title(loc="left") for axes in drawn.axes] == [
        "reconstruction, nats per image",
        "KL, nats per image",
        "information bound, nats",
    ]


def test_other_data_reproduces_nothing(tmp_path):
    study = replace(STUDY, arms=(replace(STUDY.arms[1], recipe=replace(RECIPE, steps=1)),))
    page = run_study(tmp_path, study=study, scale=Fraction(1), seeds=(0,))
    assert "Other data than the published" in page.read_text()


def test_what_is_there_is_not_made_again(finished, tmp_path, monkeypatch):
    out = shutil.copytree(finished[1], tmp_path / "study")
    monkeypatch.setattr(work, "compute_scores", lambda *_, **__: pytest.fail("evaluated again"))
    monkeypatch.setattr(work, "train_together", lambda *_, **__: pytest.fail("trained again"))
    before = (out / "plain/seed-1/checkpoints/step-000000000004.safetensors").stat().st_mtime_ns
    for seeds in ((1,), (1, 2)):
        run_study(out, seeds=seeds)
        assert [run["seed"] for run in numbers(out)["runs"]] == 2 * list(seeds)
        # also of versions that kept no table
        (out / "results.csv").unlink()
    assert (out / "plain/seed-1/checkpoints/step-000000000004.safetensors").stat().st_mtime_ns == before


def test_a_study_goes_on_where_it_was_interrupted(tmp_path, finished, monkeypatch):
    train_together = work.train_together

    def interrupted(runs, dataset, device, **options):
        (run,) = runs
        if run.recipe.seed == 2 and run.path.parent.name == "plain":
            begun = RunDirectory.create_or_resume(run.path, replace(run.recipe, steps=2))
            train(begun, dataset, device)
            run.write_recipe()
            return [Outcome(2, True, 1.0)]
        return train_together(runs, dataset, device, **options)

    monkeypatch.setattr(work, "train_together", interrupted)
    assert run_study(tmp_path) is None
    assert len(numbers(tmp_path)["runs"]) == 2  # the report of the first seed
    assert not (tmp_path / "weighted/seed-2").exists()
    monkeypatch.undo()
    run_study(tmp_path)
    whole, resumed = (
        {(r["arm"], r["seed"]): r["values"] for r in numbers(o)["runs"]} for o in (finished[1], tmp_path)
    )
    assert resumed == whole


def test_a_report_is_written_when_a_seed_is_through(tmp_path, monkeypatch):
    written = []
    monkeypatch.setattr(module, "_WRITE_SECONDS", 0.0)
    run_study(
        tmp_path, told=lambda: written.append([(r["arm"], r["seed"]) for r in numbers(tmp_path)["runs"]])
    )
    assert written == [
        [("plain", 1), ("weighted", 1)],
        [("plain", 1), ("plain", 2), ("weighted", 1), ("weighted", 2)],
    ]
    assert not (tmp_path / "report.html").exists()  # which is for others to write


@pytest.mark.parametrize("content", [None, "[]", '{"study": 1}'])
def test_a_page_is_made_of_results_alone(finished, tmp_path, content):
    out = shutil.copytree(finished[1], tmp_path / "study")
    (out / "report.html").unlink()
    assert write_page(out, TinyData()).read_text() == finished[0].read_text()
    (out / "results.json").unlink() if content is None else (out / "results.json").write_text(content)
    with pytest.raises(RunError, match=r"results.json.*`pyvae reproduce` (writes it|makes it anew)"):
        write_page(out, TinyData())


def test_a_run_that_diverges_leaves_the_others(tmp_path, monkeypatch):
    train_together = work.train_together

    def failing(runs, *arguments, **options):
        found = train_together(runs, *arguments, **options)
        mad = (runs[0].path.parent.name, runs[0].recipe.seed) == ("plain", 1)
        return [found[0]._replace(failure="loss is not finite in step 2")] if mad else found

    monkeypatch.setattr(work, "train_together", failing)
    with pytest.raises(
        PyvaeError, match=r"plain/seed-1: loss is not finite in step 2; remove .* to train it anew"
    ):
        run_study(tmp_path)
    assert [(r["arm"], r["seed"]) for r in numbers(tmp_path)["runs"]] == [("plain", 2), ("weighted", 2)]


def test_a_run_of_another_length_is_refused(finished):
    with pytest.raises(PyvaeError, match=r"holds a run of 4 steps, not 8: give the --scale it was made with"):
        run_study(finished[1], scale=Fraction(1, 5))


def test_metrics_of_other_factors_are_computed_again(finished, tmp_path):
    out = shutil.copytree(finished[1], tmp_path / "study")
    path = out / "plain/seed-1/metrics.json"
    metrics = json.loads(path.read_text())
    score = metrics["scores"]["mig"]["score"]
    metrics["scores"]["mig"].update(factors=["size", "row", "column"], score=-1.0)
    path.write_text(json.dumps(metrics))
    run_study(out)
    assert numbers(out)["runs"][0]["values"]["mig"] == score
    (out / "results.csv").unlink()
    run_study(out)
    assert numbers(out)["runs"][0]["values"]["mig"] == score
    assert json.loads(path.read_text())["scores"]["mig"]["score"] == score


def test_what_cannot_be_measured_is_refused():
    with pytest.raises(PyvaeError, match=r"unknown study 'x': .*: control-vae-capacity"):
        study_of("x")
    with pytest.raises(PyvaeError, match="tiny has no factor 'shape', which mig leave out here"):
        run_study(None, study=replace(STUDY, without=("shape",)))


def test_data_without_factors_has_no_such_metric():
    data = TinyData()
    data.__class__ = type("Plain", (Dataset,), {"images": TinyData.images})
    with pytest.raises(PyvaeError, match="the factors of tiny are not known, which mig need"):
        run_study(None, dataset=data)


def test_finished_runs_are_evaluated_where_their_engine_is_not(finished, tmp_path, monkeypatch):
    out = shutil.copytree(finished[1], tmp_path / "study")

    def refuse(*_, **__):
        raise PyvaeError("it needs an NVIDIA GPU and Triton")

    monkeypatch.setattr(module, "settled", refuse)
    assert run_study(out) == out / "report.html"
    with pytest.raises(PyvaeError, match="it needs an NVIDIA GPU"):
        run_study(out, seeds=(1, 2, 3))
