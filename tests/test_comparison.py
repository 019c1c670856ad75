import json
import math
import re
import time
import tracemalloc
import warnings
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from study_tiny import RECIPE, plan_of

from pyvae.data.subset import subset
from pyvae.engine.loop import train
from pyvae.engine.run import RunDirectory
from pyvae.errors import DataError, RunError
from pyvae.metrics import CodeTable, Udr, udr
from pyvae.report import extremes, ranking
from pyvae.report.cohort import cohorts_of
from pyvae.report.comparison import write_comparison
from pyvae.report.distributions import draw_settings, draw_violins
from pyvae.report.palette import palette_of
from pyvae.studies import codes, results
from pyvae.studies.codes import read_codes, write_codes
from pyvae.studies.plan import Model, StudyPlan
from pyvae.studies.results import about, write_results
from pyvae.studies.work import Settings, score_model
from tiny import Corner

METRICS = ("mig", "unsupervised")
NAN = math.nan


class Page(HTMLParser):
    """What a page shows: its text, tables as lists of rows of cells, and where its images come from."""

    def __init__(self, path):
        super().__init__()
        self.text, self.tables, self.sources = "", [], []
        self._cell, self._code = None, False
        self.feed(path.read_text())

    def handle_starttag(self, tag, attrs):
        self._code = tag in ("script", "style")
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self._cell = ""
        links = [value for name, value in attrs if name in ("src", "href")]
        self.sources += [link for link in links if not link.startswith("#")]

    def handle_endtag(self, tag):
        self._code = False
        if tag in ("td", "th"):
            self.tables[-1][-1].append(self._cell.strip())
            self._cell = None

    def handle_data(self, data):
        if self._code:
            return
        self.text += data
        if self._cell is not None:
            self._cell += f" {data}"

    def table(self, first):
        """Rows of the table whose head begins so, by their first cell."""
        found = next(rows for rows in self.tables if rows and rows[0][0] == first)
        return {row[0]: dict(zip(found[0][1:], row[1:], strict=True)) for row in found[1:]}


def no_data(recipe):
    raise DataError("corner.npz: not there")


def report(plan, rows, out, open_data=no_data):
    out.mkdir(exist_ok=True)
    write_results(out / "results.csv", rows)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        page = Page(write_comparison(plan, out, open_data=open_data))
    assert all(source.startswith("data:image/png;base64,") for source in page.sources)
    assert len(page.sources) == len(list(out.glob("figures/*.png")))
    return page


def invented(methods, betas=(1.0, 4.0), seeds=2, data=("corner",), score=None, **of_row):
    """A plan and finished rows of models that were never trained; ``score(method, beta, seed)`` is their MIG."""
    rng, models, rows = np.random.default_rng(0), [], []
    for method in methods:
        for there in data:
            for beta in betas:
                for seed in range(seeds):
                    settings = {} if beta is None else {"beta": beta}
                    recipe = replace(RECIPE, seed=seed, data=there)
                    model = Model(f"{method}/{there}/beta-{beta}/seed-{seed}", method, settings, recipe)
                    value = rng.random() if score is None else score(method, beta, seed)
                    known = {"steps_done": 6, "recon": 30 * rng.random(), "kl": 9 * rng.random()}
                    known |= {"scores": {} if value is None else {"mig": value}, **of_row}
                    models.append(model)
                    rows.append(about(model.name, method, recipe, **known))
    return StudyPlan("Invented", tuple(models), metrics=METRICS), rows


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Six trained models of two settings."""
    out = tmp_path_factory.mktemp("study")
    plan, data = plan_of("corner", seeds=(0, 1, 2), metrics=METRICS), Corner()
    rows = []
    for model in plan.models:
        train(RunDirectory.create_or_resume(out / model.name, model.recipe), data, torch.device("cpu"))
        rows.append(score_model(model, out, Settings(device="cpu", metrics=METRICS), data))
    return plan, rows, out


def test_a_study_of_trained_models_has_every_part(study):
    plan, rows, out = study
    page = report(plan, rows, out, lambda recipe: Corner())
    assert "All 6 models are finished." in page.text
    names = {path.stem for path in out.glob("figures/*.png")}
    assert names == {"violins", "settings-1", "correlations", "shares", "udr", "traversals-1"}
    assert page.table("method")["beta-vae"]["hyperparameters"] == "beta: 1, 4"
    assert set(page.table("score")) >= {"MIG", "UDR", "reconstruction, nats", "mutual information, nats"}
    assert [row["steps"] for row in page.table("device").values()] == ["36"]
    best = max(rows, key=lambda row: row.scores["mig"])
    assert f"best {best.model}" in page.text


def test_udr_is_that_of_the_other_seeds_of_the_setting(study):
    plan, rows, out = study
    (cohort,) = cohorts_of(plan, rows)
    found = ranking.rank(cohort, out, Corner)
    assert found.reasons == []
    for beta in (1.0, 4.0):
        at = [i for i, model in enumerate(plan.models) if model.settings["beta"] == beta]
        tables = []
        for i in at:
            net, _ = RunDirectory.open(out / plan.models[i].name).load_net()
            with torch.inference_mode():
                mu, logvar = net.encoder(Corner().images(subset(Corner(), 1000)))
            tables.append(CodeTable(mu.clone(), logvar.clone(), (), ()))
        np.testing.assert_allclose(found.scores[at], udr(tables, points=None).scores, atol=1e-6)
    assert (found.scores > 0).all()


def test_a_second_report_encodes_and_compares_nothing(study, monkeypatch):
    plan, rows, out = study
    (cohort,) = cohorts_of(plan, rows)
    first = ranking.rank(cohort, out, Corner).scores
    monkeypatch.setattr(ranking, "udr", None)
    np.testing.assert_array_equal(ranking.rank(cohort, out, None).scores, first)


@pytest.mark.parametrize("content", [b"", b"{}", b'{"format": 1, "scores": {"x": [1]}}', b"PK\x03\x04"])
def test_what_is_kept_and_damaged_is_made_again(study, content):
    plan, rows, out = study
    (cohort,) = cohorts_of(plan, rows)
    first = ranking.rank(cohort, out, Corner).scores
    (out / "udr.json").write_bytes(content)
    (out / plan.models[0].name / "codes.npz").write_bytes(content)
    np.testing.assert_array_equal(ranking.rank(cohort, out, Corner).scores, first)


def test_a_model_that_changed_is_compared_again(study, monkeypatch):
    plan, rows, out = study
    (cohort,) = cohorts_of(plan, rows)
    first = ranking.rank(cohort, out, Corner).scores
    run = RunDirectory.open(out / plan.models[0].name)
    kept = read_codes(run)
    other = CodeTable(kept.table.mu.flip(0), kept.table.logvar, (), ())
    monkeypatch.setattr(
        ranking, "read_codes", lambda r: kept._replace(table=other) if r.path == run.path else read_codes(r)
    )
    second = ranking.rank(cohort, out, Corner).scores
    assert (second[:3] != first[:3]).all()
    np.testing.assert_array_equal(second[3:], first[3:])


def test_codes_are_those_of_the_newest_weights(tmp_path):
    run = RunDirectory.create_or_resume(tmp_path / "run", replace(RECIPE, data="corner"))
    assert read_codes(run) is None
    train(run, Corner(), torch.device("cpu"))
    assert read_codes(run) is None
    written = write_codes(run, Corner())
    kept = read_codes(run)
    assert torch.equal(kept.table.mu, written.table.mu)
    assert (kept.steps, kept.data, len(kept.table)) == (6, "tiny-v1", 120)
    longer = RunDirectory.create_or_resume(tmp_path / "run", replace(RECIPE, data="corner", steps=8))
    train(longer, Corner(), torch.device("cpu"))
    assert read_codes(longer) is None


def test_a_run_of_true_factors_goes_without_codes(tmp_path):
    run = RunDirectory(tmp_path, replace(RECIPE, code="factors"))
    with pytest.raises(codes.NoCodesError, match="true factors"):
        write_codes(run, Corner())
    codes.keep_codes(run, Corner())
    assert list(tmp_path.iterdir()) == []


def test_missing_data_leaves_out_what_needs_it_and_says_so(study, tmp_path):
    plan, rows, out = study
    opened = []

    def absent(recipe):
        opened.append(recipe)
        raise DataError("corner.npz: not there")

    for model in plan.models:
        (tmp_path / model.name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / model.name).symlink_to(out / model.name)
    kept = [out / model.name / "codes.npz" for model in plan.models]
    held = [path.read_bytes() for path in kept]
    try:
        for path in kept:
            path.unlink()
        page = report(plan, rows, tmp_path, absent)
    finally:
        for path, content in zip(kept, held, strict=True):
            path.write_bytes(content)
    assert "No UDR of beta-vae/beta-1/seed-0 and 5 more: corner.npz: not there" in page.text
    assert "No traversals of beta-vae: corner.npz: not there" in page.text
    assert len(opened) == 1


def test_a_part_of_a_study_says_what_is_missing_and_what_failed(tmp_path):
    plan, rows = invented(["a", "b"], seeds=4)
    rows[3] = replace(rows[3], failure="loss <is> not finite", scores={"mig": 99.0}, recon=None)
    page = report(plan, rows[:-5], tmp_path)
    assert "10 of 16 models finished, 1 failed, 5 still missing" in page.text
    done = [
        [row[name] for name in ("models", "finished", "failed", "missing")]
        for row in page.table("method").values()
    ]
    assert done == [["8", "7", "1", "0"], ["8", "3", "0", "5"]]
    assert page.table("model") == {rows[3].model: {"why": "loss <is> not finite"}}
    assert "99" not in re.sub(
        r"\s", "", "".join(cell for row in page.table("score").values() for cell in row)
    )
    assert page.table("score")["MIG"]["models"] == "10"


def test_tables_hold_what_the_rows_say(tmp_path):
    plan, rows = invented(
        ["a", "b"], score=lambda m, beta, seed: {"a": 0.2, "b": 0.6}[m] + 0.1 * seed * (beta == 4)
    )
    page = report(plan, rows, tmp_path)
    best = page.table("method")  # the first one is what was asked
    assert set(best) == {"a", "b"}
    tops = next(rows for rows in page.tables if rows[0] == ["method", "MIG"])
    assert tops[1:] == [["a", "0.250 \u00b1 0.050 (2) beta 4"], ["b", "0.650 \u00b1 0.050 (2) beta 4"]]
    share = page.table("score")["MIG"]
    # methods are 0.4 apart, settings 0.05, the seeds of one setting of each 0.1
    total = 8 * 0.2**2 + 8 * 0.025**2 + 4 * 0.05**2
    assert [share["method"], share["setting"], share["seed"]] == [
        f"{100 * part / total:.1f}%" for part in (8 * 0.2**2, 8 * 0.025**2, 4 * 0.05**2)
    ]
    assert share["with two seeds or more"] == "4"


def test_the_seconds_of_a_group_are_counted_once(tmp_path):
    plan, rows = invented(["a"], seeds=4, engine="fused", device="card")
    rows = [replace(row, seconds=1800.0 if i < 6 else 5400.0, steps_done=1000) for i, row in enumerate(rows)]
    spent = report(plan, rows, tmp_path).table("device")["card"]
    assert spent == {
        "engine": "fused",
        "models": "8",
        "steps": "8,000",
        "time": "2 h 0 min",
        "time of models": "6 h 0 min",
        "models per hour": "4.0",
        "model-steps/s": "1",
    }


def test_best_and_worst_are_of_each_method_or_of_all_when_there_are_many():
    plan, rows = invented(["a", "b"], score=lambda m, beta, seed: seed + beta if m == "a" else NAN)
    (cohort,) = cohorts_of(plan, rows)
    assert extremes.choose(cohort, "mig") == [("a", [("best", 3), ("worst", 0)])]
    plan, rows = invented(
        [f"m{i}" for i in range(9)], betas=(1.0,), seeds=1, score=lambda m, *_: float(m[1:])
    )
    (cohort,) = cohorts_of(plan, rows)
    assert extremes.choose(cohort, "mig") == [("all methods", [("best", 8), ("median", 4), ("worst", 0)])]
    recon = replace(cohort, columns={"recon": cohort.columns["mig"]})
    assert extremes.choose(recon, "recon")[0][1][0] == ("best", 0)


ODD = {
    "one model": invented(["a"], betas=(None,), seeds=1),
    "one seed": invented(["a", "b"], seeds=1),
    "no scores": invented(["a", "b"], score=lambda *_: None),
    "nothing known": invented(["a"], score=lambda *_: None, recon=None, kl=None),
    "all NaN": invented(["a", "b"], score=lambda *_: NAN, recon=NAN),
    "constant": invented(["a", "b"], score=lambda *_: 0.5, recon=1.0, kl=0.0),
    "some missing": invented(
        ["a", "b"], seeds=4, score=lambda m, b, s: None if s % 2 else NAN if m == "a" else b + s
    ),
    "infinite": invented(["a"], seeds=4, score=lambda m, b, s: math.inf if s else 1.0),
    "two data sets": invented(["a", "b"], data=("corner", "x/corner")),
    "fifty methods": invented(
        [f"method {i} of a rather long name that goes on" for i in range(50)], betas=(1.0,)
    ),
    "twenty seeds": invented(["a", "b"], seeds=20),
    "strange names": invented(["<b>$x_1$</b>", "\u03b2&%"]),
    "all failed": invented(["a"], failure="out of luck"),
}


@pytest.mark.parametrize("what", ODD)
def test_odd_studies_have_a_sensible_page(what, tmp_path):
    plan, rows = ODD[what]
    page = report(plan, rows, tmp_path)
    words = re.split(r"[\s(),/%:;]+", page.text.replace("None of them", ""))
    assert not {"nan", "NaN", "None", "inf"} & set(words)
    if what == "one seed":
        assert "No setting has more than one seed" in page.text
    if what == "two data sets":
        assert "x/corner: 8 finished models" in page.text
        assert (tmp_path / "figures/violins-2.png").exists()
    if what == "all failed":
        assert page.sources == []
        assert "0 of 4 models finished, 4 failed" in page.text


def test_without_any_row_a_page_says_that_all_is_missing(tmp_path):
    plan, _ = invented(["a"])
    assert "0 of 4 models finished, 4 still missing" in report(plan, [], tmp_path).text


def test_rows_from_before_the_file_was_changed_are_missing(tmp_path):
    plan, rows = invented(["a"])
    changed = replace(plan.models[0], recipe=replace(plan.models[0].recipe, lr=0.5))
    page = report(replace(plan, models=(changed, *plan.models[1:])), rows, tmp_path)
    assert "3 of 4 models finished, 1 still missing" in page.text
    page = report(replace(plan, without=("shape",)), rows, tmp_path)
    assert page.table("method")["a"]["finished"] == "4"
    assert "None of them has a value of mig, unsupervised" in page.text
    page = report(plan, rows, tmp_path)
    assert (
        "None of them has a value of unsupervised: `pyvae evaluate RUN --metrics unsupervised`" in page.text
    )


def test_results_without_their_runs_have_a_page(tmp_path):
    plan, rows = invented(["a"])
    text = report(plan, rows, tmp_path).text
    assert (
        "No UDR of a/corner/beta-1.0/seed-0 and 3 more: the runs are not beside results.csv any more" in text
    )
    assert "No traversals of a: the runs are not beside results.csv any more." in text


def test_without_results_one_line_says_so(tmp_path):
    with pytest.raises(RunError, match=r"results\.csv"):
        write_comparison(invented(["a"])[0], tmp_path)


def test_violins_take_few_artists_and_lie_where_the_values_are():
    plan, rows = invented(["a", "b", "c"], seeds=40)
    (cohort,) = cohorts_of(plan, rows)
    figure = draw_violins(cohort, palette_of(cohort.rows))
    axes = figure.axes[2]
    assert len(axes.collections) == 3
    bodies = [path.vertices for path in axes.collections[0].get_paths()]
    for place, (body, at) in enumerate(zip(bodies, cohort.rows.values(), strict=True)):
        values = cohort.columns["mig"][at]
        assert (body[:, 0].min(), body[:, 0].max()) == (values.min(), values.max())
        assert np.abs(body[:, 1] - place).max() == pytest.approx(0.4)
    dots = axes.collections[-1].get_offsets()
    medians = [np.median(cohort.columns["mig"][at]) for at in cohort.rows.values()]
    np.testing.assert_allclose(dots, np.column_stack([medians, range(3)]))


def test_lines_of_settings_go_through_the_means_of_their_seeds():
    plan, rows = invented(["a"], betas=(16.0, 1.0, 4.0), seeds=3)
    (cohort,) = cohorts_of(plan, rows)
    ((methods, figure),) = draw_settings(cohort, palette_of(["a"]))
    assert methods == ["a"]
    axes = figure.axes[0]
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["1", "4", "16"]
    points, line = axes.lines
    assert len(points.get_xdata()) == 9
    mig = cohort.columns["mig"]
    np.testing.assert_allclose(line.get_ydata(), [mig[3:6].mean(), mig[6:9].mean(), mig[:3].mean()])


def thousand(monkeypatch, seeds=50, rows=400, latents=5):
    """A thousand finished models, and what is held in memory whenever codes are read.

    Codes are stubbed: training a thousand models is for others. What is measured is reading, comparing, drawing.
    """
    rng, held = np.random.default_rng(0), []

    def kept(run, dataset):
        mu = torch.from_numpy(rng.normal(size=(rows, latents)).astype(np.float32))
        held.append(tracemalloc.get_traced_memory()[0])
        return "corner", CodeTable(mu, torch.full_like(mu, -1), (), ())

    monkeypatch.setattr(ranking, "open_run", lambda out, model: None)
    monkeypatch.setattr(ranking, "_codes", kept)
    methods, betas = ["a", "b", "c", "d"], (1.0, 2.0, 4.0, 8.0, 16.0)
    return *invented(methods, betas, seeds, score=lambda m, b, s: math.sin(b * s)), held


def test_a_thousand_models_are_reported_in_a_minute(tmp_path, monkeypatch):
    plan, rows, _ = thousand(monkeypatch)
    assert len(rows) == 1000
    compared = []

    def quick(tables, *, pairs, **options):
        compared.append(len(pairs))
        return udr(tables, pairs=pairs, correlation="spearman", **options)

    monkeypatch.setattr(ranking, "udr", quick)
    begun = time.perf_counter()
    page = report(plan, rows, tmp_path)
    assert time.perf_counter() - begun < 60
    assert "All 1,000 models are finished." in page.text
    assert compared == [150] * 20
    assert len(json.loads((tmp_path / "udr.json").read_text())["scores"]) == 1000


def test_codes_of_one_setting_at_a_time_are_in_memory(tmp_path, monkeypatch):
    plan, rows, held = thousand(monkeypatch)
    (cohort,) = cohorts_of(plan, rows)
    monkeypatch.setattr(ranking, "_checksum", lambda names, tables: len(held))
    monkeypatch.setattr(ranking, "udr", lambda tables, **_: Udr(np.zeros(len(tables)), np.zeros(0)))
    tracemalloc.start()
    ranking.rank(cohort, tmp_path, None)
    tracemalloc.stop()
    # 8 kB each
    assert len(held) == 1000
    assert held[49] - held[0] > 0.3e6
    assert held[-1] - held[0] < 1e6


@pytest.mark.slow
def test_memory_does_not_grow_with_the_models(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "MOST_BYTES", 1 << 24)  # which is what a read takes, whatever there is
    peaks = []
    for seeds in (5, 50):
        plan, rows, _ = thousand(monkeypatch, seeds, rows=50, latents=2)
        tracemalloc.start()
        report(plan, rows, tmp_path / str(seeds))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    # of a model a row is held, and what the plan says
    assert peaks[1] - peaks[0] < 900 * 20_000
    assert max(peaks) < 150e6
