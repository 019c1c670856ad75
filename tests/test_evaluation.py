import json
from dataclasses import replace

import pytest
import torch

from pyvae.data.subset import subset
from pyvae.engine.loop import train
from pyvae.engine.run import RunDirectory
from pyvae.errors import PyvaeError
from pyvae.evaluation import check_scores, compute_scores, score, scores, write_metrics
from pyvae.metrics import beta_vae, encode, mig
from pyvae.report import report
from test_report import RECIPE
from tiny import TinyData

CPU = torch.device("cpu")


@pytest.fixture
def run(tmp_path):
    run = RunDirectory.create_or_resume(tmp_path / "run", RECIPE)
    train(run, TinyData(), CPU, log_every=1)
    return run


def saved(run):
    return json.loads((run.path / "metrics.json").read_text())


def test_scores_are_those_of_the_newest_weights(run):
    scores = score(run, TinyData(), ["beta-vae"], device=CPU, without=["size"], seed=3)
    table = encode(run.load_net()[0], TinyData(), device=CPU, progress=False)
    expected = beta_vae(table, seed=3, without=("size",))
    assert scores["beta-vae"]["score"] == expected.score
    assert saved(run) == {"steps": 6, "data": "tiny-v1", "scores": scores}


def test_scores_and_report_keep_each_other_until_the_weights_change(run):
    write_metrics(run, 6, TinyData(), {"scores": {"mig": {"score": 0.125}}})
    scores = score(run, TinyData(), ["beta-vae"], device=CPU)
    page = report(run, TinyData()).read_text()
    assert saved(run)["scores"] == {"mig": {"score": 0.125}, **scores}
    assert "<td>0.125</td>" in page
    assert f"<td>{scores['beta-vae']['score']:.3f}</td>" in page
    assert saved(run)["recon"] > 0
    before = saved(run)
    other = report(run, TinyData(fingerprint="tiny-v2")).read_text()
    assert "of other data than it was trained on: tiny-v2" in other
    assert "<td>0.125</td>" not in other
    assert saved(run) == before
    longer = RunDirectory.create_or_resume(run.path, replace(RECIPE, steps=8))
    train(longer, TinyData(), CPU, log_every=1)
    report(longer, TinyData())
    assert "scores" not in saved(run)
    assert saved(run)["steps"] == 8


def test_the_arithmetic_is_that_of_the_run(run, monkeypatch):
    settled = []
    monkeypatch.setattr(scores, "settle_arithmetic", settled.append)
    score(run, TinyData(), ["mig"], device=CPU)
    assert settled == ["fp32"]


def test_what_cannot_be_computed_is_one_line(run):
    with pytest.raises(PyvaeError, match="unknown metric 'fid': there are mig"):
        score(run, TinyData(), ["fid"], device=CPU)
    with pytest.raises(PyvaeError, match="no factor 'colour'"):
        score(run, TinyData(), ["beta-vae"], device=CPU, without=["colour"])
    with pytest.raises(PyvaeError, match=r"10000 \+ 5000 points asked for, the table has 120 rows"):
        score(run, TinyData(), ["sap"], device=CPU)


def test_a_metrics_file_that_is_none_is_replaced(run):
    for content in ("[]", "{", '{"steps": 6}'):
        (run.path / "metrics.json").write_text(content)
        scores = score(run, TinyData(), ["beta-vae"], device=CPU)
        assert saved(run)["scores"] == scores


def test_scores_of_some_images_are_those_of_a_fixed_subset(run):
    data = TinyData()
    options = {"device": CPU, "images": 60, "without": ["size"]}
    scores = compute_scores(run, data, ["mig", "unsupervised"], **options).found
    table = encode(run.load_net()[0], data, device=CPU, index=subset(data, 60), progress=False)
    assert scores["mig"]["score"] == mig(table, points=None, without=("size",)).score
    assert [score["images"] for score in scores.values()] == [60, 60]
    assert "images" not in compute_scores(run, data, ["mig"], device=CPU, images=120).found["mig"]
    missing = check_scores(run, data, ["mig", "factor-vae", "sap"], images=60)
    assert missing.keys() == {"factor-vae", "sap"}
    assert "the table has 60 rows" in missing["sap"]
