import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch

from pyvae.cli import main
from pyvae.data.cars3d import FACTOR_NAMES as CARS_3D
from pyvae.errors import PlanError
from pyvae.studies.outlook import describe, show_bytes, show_seconds
from pyvae.studies.plan import keep_source, read_plan
from tiny import TinyData

EXAMPLES = sorted((Path(__file__).parents[1] / "examples/studies").glob("*.toml"))
METHOD = '[[methods]]\nrecipe = "beta-vae"\n'


@pytest.fixture
def study(tmp_path):
    """Writes a study's file and gives its path."""

    def write(text, name="s.toml"):
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


WRONG = {
    "": "no methods: add a [[methods]]",
    "x": "no TOML: Expected '=' after a key in a key/value pair (at",
    'title = "a"\ntitle = "b"\n': "no TOML: Cannot overwrite a value (at line 2",
    "a = " + "[" * 5000: "no TOML: ",
    b"title = '\xff'": "byte 9 is not of UTF-8 text; save it as UTF-8",
    b"#" * (1 << 20) + b"#": "larger than 1 MiB",
    f"mehtods = 1\n{METHOD}": "mehtods: no such key: did you mean 'methods'?",
    f"title = 3\n{METHOD}": 'title: must be a text, "...", got 3',
    f"notes = 'one'\n{METHOD}": "notes: must be a list of texts",
    f"shared = 1\n{METHOD}": "shared: must be a table, [shared], got 1",
    f"[shared]\nstep = 3\n{METHOD}": "shared.step: not a field of every recipe: did you mean 'steps'?",
    f"[shared]\nbeta = 3\n{METHOD}": "shared.beta: not a field of every recipe",
    f"[shared]\nseed = 3\n{METHOD}": "shared.seed: an axis of the study; give it as axes.seeds",
    f"[shared]\nsteps = 0\n{METHOD}": "shared.steps: steps must be at least 1, got 0",
    f"[shared]\nsteps = true\n{METHOD}": "shared.steps: steps must be an integer, got True",
    f"[shared]\nlr = nan\n{METHOD}": "shared.lr: lr must be finite, got nan",
    f"[shared]\ndata = 3\n{METHOD}": "shared.data: must be a text",
    f"[shared]\nlr = 2020-01-01\n{METHOD}": "shared.lr: must be a number",
    f"[axes]\nseed = '0'\n{METHOD}": "axes.seed: no such key: did you mean 'seeds'?",
    f"[axes]\nseeds = 5\n{METHOD}": 'axes.seeds: must be a text as "0-49" or a list of integers',
    f"[axes]\nseeds = []\n{METHOD}": "axes.seeds: empty",
    f"[axes]\nseeds = ''\n{METHOD}": "axes.seeds: empty",
    f"[axes]\nseeds = '5-3'\n{METHOD}": "axes.seeds: ",
    f"[axes]\nseeds = '0-'\n{METHOD}": "axes.seeds: ",
    f"[axes]\nseeds = '0-99999999999'\n{METHOD}": "axes.seeds: ",
    f"[axes]\nseeds = [1, 1]\n{METHOD}": "axes.seeds: 1 stands there twice",
    f"[axes]\nseeds = [-1]\n{METHOD}": "axes.seeds: seeds are from 0 to 2^64 - 1, got -1",
    f"[axes]\nseeds = [true]\n{METHOD}": "axes.seeds: must be a text",
    f"[axes]\ndata = []\n{METHOD}": "axes.data: empty",
    f"[axes]\ndata = ['']\n{METHOD}": "axes.data: '' cannot be the name of a directory",
    f"[axes]\ndata = {{ one = '' }}\n{METHOD}": 'axes.data: an empty name; give "dsprites"',
    f"[axes]\ndata = ['a/x.npz', 'b/x.npz']\n{METHOD}": "axes.data: two are called 'x'; call each by a name",
    f"[axes]\ndata = ['a']\n[shared]\ndata = 'b'\n{METHOD}": "shared.data: axes.data says the data already",
    f"[scores]\nmetric = ['mig']\n{METHOD}": "scores.metric: no such key: did you mean 'metrics'?",
    f"[scores]\nmetrics = ['mgi']\n{METHOD}": "scores.metrics: there is no 'mgi': did you mean 'mig'?",
    f"[scores]\nwithout = ['shape']\n{METHOD}": "scores.without: no metrics are named",
    f"[scores]\nmetrics = ['mig']\nwithout = ['shapes']\n{METHOD}": "no factor 'shapes': did you mean 'shape'?",
    f"[scores]\nmetrics = ['mig']\nwithout = ['shape', 'scale', 'orientation', 'posX', 'posY']\n{METHOD}": (
        "scores.without: all factors of a data set are left out"
    ),
    f"[scores]\nmetrics = ['mig']\nwithout = {[*CARS_3D]}\n[axes]\ndata = ['a']\n{METHOD}": "all factors of a data set",
    f"[scores]\nmetrics = ['mig']\nwithout = ['instances']\n[axes]\ndata = ['a']\n{METHOD}": "mean 'instance'?",
    f"[scores]\nmetrics = ['mig']\nimages = 5\n{METHOD}": "scores.images: must be an integer of at least 100, got 5",
    f"[scores]\nmetrics = ['factor-vae']\nimages = 500\n{METHOD}": "scores.images: factor-vae needs all images",
    f"[scores]\nmetrics = ['mig', 'sap']\nimages = 14999\n{METHOD}": "scores.images: sap is trained and tested",
    "methods = 3\n": "methods: write it as [[methods]]",
    "methods = [3]\n": "methods[1]: must be a table",
    "[[methods]]\nname = 'a'\n": "methods[1]: no recipe; name one of demo, vae, beta-vae",
    "[[methods]]\nrecipe = 'beta-vea'\n": "methods[1].recipe: there is no 'beta-vea': did you mean 'beta-vae'?",
    f"{METHOD}swep = {{}}\n": "methods[1].swep: no such key: did you mean 'sweep'?",
    f"{METHOD}name = '../x'\n": "methods[1].name: '../x' cannot be the name of a directory",
    f"{METHOD}name = 'results.csv'\n": "methods[1].name: 'results.csv' cannot be the name of a directory",
    METHOD + METHOD: "two are called 'beta-vae'; give each a name",
    f"{METHOD}set = {{ gamma = 3 }}\n": "(beta-vae).set.gamma: the recipe cannot take it; BetaVAE has beta",
    f"{METHOD}set = {{ betta = 3 }}\n": "(beta-vae).set.betta: the recipe cannot take it: did you mean 'beta'?",
    f"{METHOD}set = {{ beta = -1 }}\n": "methods[1] (beta-vae): beta must be at least 0, got -1",
    f"{METHOD}set = {{ beta = '4' }}\n": "methods[1] (beta-vae): beta must be a number, got '4'",
    f"{METHOD}set = {{ seed = 1 }}\n": "set.seed: an axis of the study; give it as axes.seeds",
    f"{METHOD}sweep = {{ data = ['a'] }}\n": "sweep.data: an axis of the study; give it as axes.data",
    f"{METHOD}sweep = {{ beta = [] }}\n": "(beta-vae).sweep.beta: empty; give it values, or leave it out",
    f"{METHOD}sweep = {{ beta = 4 }}\n": "(beta-vae).sweep.beta: must be a list of values",
    f"{METHOD}sweep = {{ beta = [true] }}\n": "(beta-vae).sweep.beta: must be numbers or texts, got True",
    f"{METHOD}sweep = {{ beta = [1, 1.0] }}\n": "two models are called beta-vae/beta-1/seed-0",
    f"{METHOD}sweep = {{ beta = [1] }}\nset = {{ beta = 2 }}\n": "sweep.beta: set has it already",
    f"{METHOD}sweep = {{ beta = [1] }}\nfollow = {{ lr = 'bta' }}\n": (
        "(beta-vae).follow.lr: 'bta' is not swept: did you mean 'beta'?"
    ),
    f"{METHOD}follow = {{ lr = 3 }}\n": 'follow.lr: must be a text as "10 * lambda_od"',
    f"{METHOD}sweep = {{ architecture = ['kim'] }}\nfollow = {{ lr = 'architecture' }}\n": (
        "architecture is swept over 'kim', which is no number"
    ),
    "[axes]\nseeds = '0-9999'\n"
    + METHOD
    + "sweep = { beta = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11] }\n": "110,000 models are more than 100,000",
    "[[methods]]\nrecipe = 'infogan'\nset = { latents = 3 }\n": "methods[1] (infogan): latents 3: this objective",
}


@pytest.mark.parametrize("text", WRONG, ids=range(len(WRONG)))
def test_each_mistake_is_one_line_with_the_file_and_the_fix(text, study):
    path = study(text)
    with pytest.raises(PlanError) as raised:
        read_plan(path)
    line = str(raised.value)
    assert line.startswith(f"{path}: ")
    assert WRONG[text] in line
    assert "\n" not in line


def test_a_file_that_is_none(tmp_path):
    for path, why in ((tmp_path / "no.toml", "No such file"), (tmp_path, "directory")):
        with pytest.raises(PlanError, match=why) as raised:
            read_plan(path)
        assert "give the path of a study's file" in str(raised.value)


def test_axes_are_multiplied_in_the_order_of_the_file(study):
    plan = read_plan(
        study(
            """
            title = "t"
            [shared]
            steps = 7
            keep_at = [2, 3]
            [axes]
            seeds = "3,5"
            data = { flat = "dsprites", deep = "/no/3dshapes.h5" }
            [scores]
            metrics = ["mig", "sap"]
            without = ["shape"]
            images = 15000
            [[methods]]
            recipe = "dip-vae-i"
            sweep = { lr = [1e-4, 5e-4], lambda_od = [1, 2] }
            follow = { lambda_d = "10 * lambda_od" }
            [[methods]]
            name = "plain"
            recipe = "vae"
            set = { steps = 9 }
            """
        )
    )
    assert [model.name for model in plan.models[:3]] == [
        "dip-vae-i/flat/lr-0.0001-lambda-od-1/seed-3",
        "dip-vae-i/flat/lr-0.0001-lambda-od-1/seed-5",
        "dip-vae-i/flat/lr-0.0001-lambda-od-2/seed-3",
    ]
    assert [model.name for model in plan.models[-2:]] == ["plain/deep/seed-3", "plain/deep/seed-5"]
    assert len(plan.models) == 2 * 2 * 2 * 2 + 2 * 2
    last = plan.models[15]
    assert last.settings == {"lr": 5e-4, "lambda_od": 2.0}
    assert (last.recipe.objective.lambda_d, last.recipe.lr, last.recipe.seed) == (20.0, 5e-4, 5)
    assert (last.recipe.steps, last.recipe.keep_at, last.recipe.data) == (7, (2, 3), "/no/3dshapes.h5")
    assert plan.models[-1].recipe.steps == 9
    assert (plan.title, plan.metrics, plan.without, plan.images) == ("t", ("mig", "sap"), ("shape",), 15000)
    assert isinstance(plan.models[0].settings["lambda_od"], float)


def test_the_published_study_has_1800_models():
    plan = read_plan(next(path for path in EXAMPLES if path.stem == "six-methods"))
    assert len(plan.models) == len({model.name for model in plan.models}) == 1800
    found = {}
    for model in plan.models:
        found.setdefault(model.method, set()).add(tuple(model.settings.values()))
        assert model.recipe.steps == 300_000
        assert (model.recipe.architecture, model.recipe.batch_size, model.recipe.lr) == (
            "locatello",
            64,
            1e-4,
        )
    assert {name: sorted(v[0] for v in values) for name, values in found.items()} == {
        "beta-vae": [1, 2, 4, 6, 8, 16],
        "annealed-vae": [5, 10, 25, 50, 75, 100],
        "factor-vae": [10, 20, 30, 40, 50, 100],
        "dip-vae-i": [1, 2, 5, 10, 20, 50],
        "dip-vae-ii": [1, 2, 5, 10, 20, 50],
        "beta-tcvae": [1, 2, 4, 6, 8, 10],
    }
    ratios = {"dip-vae-i": 10, "dip-vae-ii": 1}
    for model in plan.models:
        if ratio := ratios.get(model.method):
            assert model.recipe.objective.lambda_d == ratio * model.recipe.objective.lambda_od


def test_a_set_point_at_once_is_controlled():
    """The published anti-windup would hold the integral back from the first step on, and beta at 1."""
    plan = read_plan(next(path for path in EXAMPLES if path.stem == "control-vae"))
    objectives = [model.recipe.objective for model in plan.models if model.method == "at-once"]
    assert {(each.schedule, each.capacity, each.anti_windup) for each in objectives} == {
        ("constant", 16.0, "conditional")
    }
    state = objectives[0].initial_control("cpu")
    for step in range(200):  # of far too little KL, then of too much
        state = objectives[0].control(state, torch.tensor(0.0 if step < 100 else 25.0), torch.tensor(step))
    assert state.beta > 1.5


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_examples_can_be_planned(path, tmp_path):
    plan = read_plan(path)

    def load(recipe):
        return TinyData(3 if "3dshapes" in recipe.data else 1)

    text = describe(plan, load, torch.device("cpu"), tmp_path, rate=1000.0)
    total = next(line for line in text.splitlines() if line.startswith("all ")).split()
    assert total[1] == f"{len(plan.models):,}"
    assert total[3] == f"{sum(model.recipe.steps for model in plan.models):,}"


def test_a_thousand_models_are_planned_in_seconds_with_flat_memory(study, tmp_path):
    path = study(
        "[axes]\nseeds = '0-99'\n"
        + METHOD
        + "sweep = { beta = [1, 2, 3, 4, 5] }\n[[methods]]\nrecipe = 'factor-vae'\nsweep = { gamma = [1, 2, 3, 4, 5] }"
    )
    data = TinyData()
    describe(read_plan(path), lambda _: data, torch.device("cpu"), tmp_path, rate=1.0)  # imports
    tracemalloc.start()
    began = time.perf_counter()
    text = describe(plan := read_plan(path), lambda _: data, torch.device("cpu"), tmp_path, rate=1.0)
    seconds, (_, peak) = time.perf_counter() - began, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(plan.models) == 1000
    assert text.splitlines()[5].split()[:3] == ["all", "1,000", "1,000"]
    assert seconds < 30
    assert peak < 8e6


def test_the_command_line_plans_and_writes_nothing(study, tmp_path, capsys, monkeypatch):
    np.savez(tmp_path / "x.npz", images=np.full((8, 64, 64), 255, np.uint8))
    path = study(f"[shared]\nsteps = 1000\n[axes]\ndata = ['{tmp_path}/x.npz']\nseeds = '0-3'\n" + METHOD)
    monkeypatch.setattr(
        "sys.argv", ["pyvae", "study", str(path), "--plan", "--rate", "50", "--out", str(tmp_path / "o")]
    )
    with pytest.raises(SystemExit) as done:
        main()
    assert done.value.code == 0
    text = capsys.readouterr().out
    row = next(line.split("  ") for line in text.splitlines() if line.startswith("beta-vae"))
    cells = [cell.strip() for cell in row if cell.strip()]
    assert cells[:6] == ["beta-vae", "4", "4", "4,000", "50", "80 s"]
    assert "On one device: 80 s of training, by the rate that was given." in text
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (["--rate", "0"], "--rate must be above 0"),
        (["--plan", "--report"], "--plan and --report: give one of them"),
        (["--num-gpus", "1"], "--num-gpus is of Ray: give --ray local"),
        (["--ray", "local", "--num-cpus", "-1"], "--num-cpus must not be negative"),
        (["--devices", "0"], "--devices must be at least 1"),
        (["--devices", "2"], "--devices is of --plan: give both"),
        (["--rate", "2"], "--rate is of --plan: give both"),
        (["--log-every", "0"], "--log-every must be at least 1"),
        (["--seed", "-1"], "--seed must be from 0"),
        (["--data", "y.npz"], "--data y.npz: the study has several data sets"),
    ],
)
def test_wrong_options_are_one_line(options, why, study, monkeypatch, capsys):
    path = study("[axes]\ndata = ['a', 'b']\n" + METHOD)
    monkeypatch.setattr("sys.argv", ["pyvae", "study", str(path), *options])
    with pytest.raises(SystemExit) as done:
        main()
    assert why in done.value.code
    assert "\n" not in done.value.code


def test_a_directory_that_holds_a_run_is_left_as_it_is(study, tmp_path, monkeypatch):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/recipe.json").write_text("{}")
    monkeypatch.setattr("sys.argv", ["pyvae", "study", str(study(METHOD)), "--out", str(tmp_path / "run")])
    with pytest.raises(SystemExit) as done:
        main()
    assert "holds a run: name another directory" in done.value.code
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["recipe.json"]


@pytest.mark.parametrize("more", [["--plan"], []])
def test_what_a_machine_cannot_train_says_where_to_change_it(more, study, tmp_path, monkeypatch):
    np.savez(tmp_path / "x.npz", images=np.full((8, 64, 64), 255, np.uint8))
    path = study(
        f"[shared]\narchitecture = 'rainforth'\nprecision = 'fp16'\n[axes]\ndata = ['{tmp_path}/x.npz']\n{METHOD}"
    )
    monkeypatch.setattr(
        "sys.argv",
        ["pyvae", "study", str(path), "--device", "cpu", "--out", str(tmp_path / "o"), *more],
    )
    with pytest.raises(SystemExit) as done:
        main()
    assert done.value.code.endswith("--precision tf32; in a study's file, options are keys of [shared]")


def test_a_directory_that_holds_no_study(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["pyvae", "study", str(tmp_path)])
    with pytest.raises(SystemExit) as done:
        main()
    assert "holds no study (no study.toml)" in done.value.code


def test_models_that_are_asked_for_no_longer_are_named_and_left(study, tmp_path, caplog):
    caplog.set_level("INFO", logger="pyvae")
    out = tmp_path / "out"
    keep_source(read_plan(study(METHOD + "sweep = { beta = [1, 2] }\n")), out)
    kept = out / "beta-vae/beta-2/seed-0"
    kept.mkdir(parents=True)
    plan = read_plan(study(METHOD + "sweep = { beta = [1, 4] }\n"))
    keep_source(plan, out)
    assert "1 of the models there are not of this study any more" in caplog.text
    assert "beta-vae/beta-2/seed-0" in caplog.text
    assert kept.is_dir()
    assert read_plan(out / "study.toml").models == plan.models
    caplog.clear()
    keep_source(plan, out)
    assert not caplog.text


def test_lengths_and_sizes_in_words():
    assert [show_seconds(x) for x in (3, 130, 7300, 90_000, 3e6)] == [
        "3 s",
        "2.2 min",
        "2.0 h",
        "25 h",
        "35 days",
    ]
    assert [show_bytes(x) for x in (12, 1234, 56_789_000, 7.89e9)] == [
        "12 bytes",
        "1.2 kB",
        "57 MB",
        "7.9 GB",
    ]
