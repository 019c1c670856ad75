"""All metrics by name: JSON, reproducibility, options."""

import inspect
import json
import time

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

import codes
from pyvae import metrics
from pyvae.metrics import METRICS, evaluate, evaluate_possible, unavailable
from pyvae.metrics.registry import OF_GRID

SPLIT = {"train": 400, "test": 200}
OPTIONS = {
    "mig": {"points": 600},
    "factor-vae": {"variance_points": 600, "votes": 400, "evaluation_votes": 200},
    "beta-vae": {"train": 200, "evaluation": 100},
    "dci": {**SPLIT, "classifier": LogisticRegression},
    "sap": SPLIT,
    "modularity": {"points": 600},
    "explicitness": SPLIT,
    "irs": {"points": 600},
    "unsupervised": {"points": 600},
    "total-correlation": {"samples": 100, "progress": False},
}
NO_FACTORS = ("unsupervised", "total-correlation")


@pytest.fixture
def table():
    return codes.table(codes.rotated(codes.perfect(codes.SMALL), 1, 2, 30) + 0.2 * codes.noise(768, 4))


def test_every_metric_of_one_table_has_a_name():
    functions = {name for name in metrics.__all__ if inspect.isfunction(getattr(metrics, name))}
    others = {"encode", "evaluate", "evaluate_possible", "udr", "unavailable"}
    assert {f.__name__ for f in METRICS.values()} == functions - others
    for name, metric in METRICS.items():
        parameters = list(inspect.signature(metric).parameters.values())
        assert [p.name for p in parameters[:2]] == ["table", "seed"], name
        assert all(p.kind is p.KEYWORD_ONLY for p in parameters[1:]), name


def test_results_can_be_written_as_json_and_depend_on_the_seed_alone(table):
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002
    first = evaluate(table, OPTIONS, seed=1, options=OPTIONS)
    torch.manual_seed(5)
    np.random.seed(5)  # noqa: NPY002
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    assert evaluate(table, OPTIONS, seed=1, options=OPTIONS) == first
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)  # noqa: NPY002
    assert json.loads(json.dumps(first, allow_nan=False)) == first
    other = evaluate(table, OPTIONS, seed=2, options=OPTIONS)
    for name in OPTIONS:
        assert other[name] != first[name], name


def test_fields_are_those_of_the_metric(table):
    found = evaluate(table, ["mig", "irs"], options=OPTIONS)
    assert list(found) == ["mig", "irs"]
    direct = metrics.mig(table, points=600)
    assert found["mig"]["score"] == direct.score
    assert found["mig"]["information"] == direct.information.tolist()
    assert found["mig"]["factors"] == list(codes.SMALL)
    assert set(found["irs"]) == set(metrics.Irs._fields)


def test_what_is_not_finite_is_null(table, monkeypatch):
    found = metrics.Unsupervised(np.float64("inf"), float("nan"), 0.5, 1)
    monkeypatch.setitem(METRICS, "sap", lambda table, seed: found)
    expected = dict(zip(metrics.Unsupervised._fields, (None, None, 0.5, 1), strict=True))
    assert evaluate(table, ["sap"]) == {"sap": expected}


def test_refusals(table):
    known = "mig, mig-chen, factor-vae, beta-vae, dci, sap, modularity, explicitness, irs, unsupervised, "
    with pytest.raises(ValueError, match=f"unknown metric 'fid'; there are {known}total-correlation"):
        evaluate(table, ["mig", "fid"])
    with pytest.raises(ValueError, match="unknown metric 'mgi'"):
        evaluate(table, ["mig"], options={"mgi": {}})


GRID = {"factor_names": tuple(codes.SMALL), "factor_sizes": tuple(codes.SMALL.values())}
FACTORS_UNKNOWN = "the factors behind these codes are not known, and this metric needs them"


def outline(table):
    """What is known of a table without its codes, as `unavailable` takes it."""
    known = {"factor_names": table.factor_names, "factor_sizes": table.factor_sizes, "factors": table.factors}
    return {"latents": table.latents, "rows": len(table), **known}


def answer(f, *args, **options):
    """What a function gives, or what its ValueError says."""
    try:
        return f(*args, **options)
    except ValueError as error:
        return str(error)


def situations():
    perfect, labels = codes.perfect(codes.SMALL), codes.classes(codes.SMALL)
    one = labels.copy()
    one[:, 2] = 3
    single = {"one": 1, "x": 96, "y": 8}
    unknown = metrics.CodeTable(*torch.zeros(2, 768, 3), (), ())
    without = {name: {"without": ("shape", "scale", "x")} for name in METRICS if name not in NO_FACTORS}
    wrong = {name: {"without": ("hue",)} for name in without}
    every = {name: {"without": tuple(codes.SMALL)} for name in without}
    return {
        "as it should be": (codes.table(perfect), {}),
        "one latent": (codes.table(perfect[:, :1]), {}),
        "no grid": (codes.table(perfect, labels=labels), {}),
        "a factor that does not vary": (codes.table(perfect, labels=one), {}),
        "a factor of one class": (codes.table(codes.noise(768, 3), single), {}),
        "no factors": (unknown, {}),
        "one factor left": (codes.table(perfect), without),
        "no such factor": (codes.table(perfect), wrong),
        "no factor left": (codes.table(perfect), every),
        "one row": (codes.table(perfect[:1], labels=labels[:1]), {}),
        "few rows": (codes.table(perfect[:20], labels=labels[:20]), {}),
        "bad options": (
            codes.table(perfect),
            {
                "mig": {"bins": 0},
                "mig-chen": {"estimator": "kde"},
                "factor-vae": {"prune": "all"},
                "beta-vae": {"train": 3},
                "dci": {"train": 700, "test": 200},
                "sap": {"test": 1},
                "modularity": {"points": 1},
                "explicitness": {"max_iter": 0},
                "irs": {"quantile": 2.0},
                "unsupervised": {"points": 769},
                "total-correlation": {"tol": 0.0},
            },
        ),
    }


@pytest.mark.parametrize("situation", situations())
def test_what_cannot_be_computed_is_known_beforehand_in_the_words_of_the_metric(situation):
    table, more = situations()[situation]
    options = {name: {**OPTIONS.get(name, {}), **more.get(name, {})} for name in METRICS}
    answers = {name: answer(evaluate, table, [name], seed=4, options=options) for name in METRICS}
    raised = {name: found for name, found in answers.items() if isinstance(found, str)}
    assert unavailable(METRICS, **outline(table), seed=4, options=options) == raised
    possible = evaluate_possible(table, METRICS, seed=4, options=options)
    assert possible.reasons == raised
    assert possible.scores == evaluate(table, set(METRICS) - set(raised), seed=4, options=options)
    assert list(possible.scores) == [name for name in METRICS if name not in raised]


def test_reasons_of_each_kind():
    quick = {"seed": 0, "options": OPTIONS}
    assert unavailable(METRICS, latents=2, **GRID, **quick) == {}
    compares = "compares latents: it needs at least 2, got 1"
    assert unavailable(METRICS, latents=1, **GRID, **quick) == {
        name: f"{name.replace('-', '_')} {compares}"
        for name in ("mig", "mig-chen", "dci", "sap", *NO_FACTORS)
    }
    assert unavailable(METRICS, latents=2, rows=12_000) == dict.fromkeys(
        [name for name in METRICS if name not in NO_FACTORS], FACTORS_UNKNOWN
    )
    found = unavailable(METRICS, latents=2, **GRID)
    asked = "10000 asked for, the table has 768 rows: ask for fewer, or for all (None)"
    split = "train + test: 10000 + 5000 points asked for, the table has 768 rows"
    assert found == {
        **dict.fromkeys(("mig", "factor-vae", "modularity", "irs", "unsupervised"), f"points: {asked}"),
        **dict.fromkeys(("dci", "sap", "explicitness"), split),
    }
    # rows that are no grid: which class each has is not known yet
    found = unavailable(["mig", "beta-vae"], latents=2, rows=20_000, grid=False, **GRID)
    assert found == {"beta-vae": "beta_vae intervenes on factors: it needs the codes of the full grid"}
    found = unavailable(METRICS, latents=2, rows=20_000, grid=False, **GRID)
    assert set(found) == OF_GRID


def test_reasons_take_no_time():
    sizes = tuple(codes.DSPRITES.values())
    start = time.perf_counter()
    assert unavailable(METRICS, latents=10, factor_names=tuple(codes.DSPRITES), factor_sizes=sizes) == {}
    assert time.perf_counter() - start < 2


def test_what_fails_on_the_codes_leaves_the_others(table, monkeypatch):
    def broken(table, *, seed=0, train=0, test=0):
        raise ValueError("first line\n  and second")

    monkeypatch.setitem(METRICS, "sap", broken)
    found = evaluate_possible(table, ["sap", "mig"], options={"mig": OPTIONS["mig"]})
    assert found.reasons == {"sap": "first line and second"}
    assert found.scores == evaluate(table, ["mig"], options=OPTIONS)


def test_what_a_caller_got_wrong_is_raised(table):
    for ask in (evaluate, evaluate_possible, lambda table, *a, **k: unavailable(*a, **outline(table), **k)):
        with pytest.raises(ValueError, match="unknown metric 'fid'"):
            ask(table, ["fid"])
        with pytest.raises(TypeError, match="mig has no option 'pionts'; there are points, bins, without"):
            ask(table, ["mig"], options={"mig": {"pionts": 5}})
        with pytest.raises(TypeError, match=r"points: expected a whole number, got 2\.5"):
            ask(table, ["mig"], options={"mig": {"points": 2.5}})
        with pytest.raises(TypeError, match=r"seed: expected a whole number, got 0\.5"):
            ask(table, ["mig"], seed=0.5)
    with pytest.raises(ValueError, match="rows: say how many images"):
        unavailable(["unsupervised"], latents=3)
    with pytest.raises(ValueError, match=r"rows: 7 are not the full grid of \(3, 4, 8, 8\), which has 768"):
        unavailable(["mig"], latents=3, rows=7, **GRID)
    with pytest.raises(ValueError, match="latents: at least 1"):
        unavailable(["mig"], latents=0, **GRID)
