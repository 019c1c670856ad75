"""Every number that a page shows is explained."""

import re
from dataclasses import fields

import pytest

from pyvae.engine.recipe import Recipe
from pyvae.metrics.registry import METRICS, numbers
from pyvae.objectives import ControlVAE
from pyvae.report.cohort import lower_is_better, title_of
from pyvae.report.glossary import TERMS, explained, glossary, scores_in, term
from pyvae.report.markup import Section, document
from pyvae.report.settings import meanings

FITS = ("train", "evaluation", "standard_error")
"""What begins so says how well a metric's own classifier was fitted or how sure it is, and nothing of a model."""


def test_every_metric_has_an_entry():
    for metric in METRICS:
        for number in numbers(metric):
            key = metric if number == "score" else f"{metric}.{number}"
            if not number.startswith(FITS) and not number.endswith("_train"):
                assert key in TERMS, key
    assert {
        "recon",
        "kl",
        "elbo",
        "log_p",
        "iwae_64",
        "effective_sample_size",
        "active_units",
    } <= TERMS.keys()
    assert {"udr", "information", "eta_squared"} <= TERMS.keys()


@pytest.mark.parametrize("key", TERMS)
def test_an_entry_is_short_and_agrees_with_how_models_are_ranked(key):
    found = TERMS[key]
    assert 1 <= len(re.findall(r"[.](?= [A-Z]|$)", found.meaning)) <= 6
    assert 30 < len(found.meaning) < 400
    if key in METRICS or "." in key:
        assert lower_is_better(key) == (found.better == "lower")
        assert title_of(key).startswith(found.name)
    if found.better == "lower":
        assert "ower is better" in found.meaning


def test_scores_are_those_that_say_something_of_a_model():
    kept = {
        "dci": {"score": 0.5, "completeness": 0.25, "informativeness_train": 0.75, "per_code": [1.0]},
        "mig": {"score": None},
        "unsupervised": {"mutual_information": 0.125},
    }
    expected = [("dci", 0.5), ("dci.completeness", 0.25), ("unsupervised.mutual_information", 0.125)]
    assert list(scores_in(kept)) == expected


def test_a_term_is_tied_to_its_explanation_by_an_id_of_its_own():
    page = document(
        "x", term("mig"), [Section("y", explained("<a>", "b & c") + term("kl") + glossary(["kl"]))]
    )
    tied = re.findall(r'aria-describedby="([^"]+)">([^<]+)</button><span [^>]*id="([^"]+)">([^<]+)<', page)
    assert [(name, meaning) for _, name, _, meaning in tied] == [
        ("MIG", TERMS["mig"].meaning),
        ("&lt;a&gt;", "b &amp; c"),
        ("KL", TERMS["kl"].meaning),
    ]
    assert [one for one, _, _, _ in tied] == [other for _, _, other, _ in tied]
    assert len({one for one, *_ in tied}) == 3
    assert f"<dd>{TERMS['kl'].meaning}</dd>" in page


def test_settings_mean_what_stands_below_their_fields():
    assert meanings(Recipe)["lr"] == "Learning rate."
    assert {each.name for each in fields(Recipe)} - meanings(Recipe).keys() == {"objective"}
    assert meanings(ControlVAE)["capacity"] != meanings(ControlVAE)["capacity_steps"]
    # whose source is nowhere
    assert meanings(type("Nowhere", (), {})) == {}
