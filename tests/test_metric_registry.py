"""All metrics by name: JSON, reproducibility, options."""

import inspect
import json

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

import codes
from pyvae import metrics
from pyvae.metrics import METRICS, evaluate

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
}


@pytest.fixture
def table():
    return codes.table(codes.rotated(codes.perfect(codes.SMALL), 1, 2, 30) + 0.2 * codes.noise(768, 4))


def test_every_metric_of_one_table_has_a_name():
    functions = {name for name in metrics.__all__ if inspect.isfunction(getattr(metrics, name))}
    assert {f.__name__ for f in METRICS.values()} == functions - {"encode", "evaluate", "udr"}
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
    known = "mig, mig-chen, factor-vae, beta-vae, dci, sap, modularity, explicitness, irs, unsupervised"
    with pytest.raises(ValueError, match=f"unknown metric 'fid'; there are {known}"):
        evaluate(table, ["mig", "fid"])
    with pytest.raises(ValueError, match="unknown metric 'mgi'"):
        evaluate(table, ["mig"], options={"mgi": {}})
