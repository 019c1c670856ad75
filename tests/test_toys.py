"""Computed figures: measured once, kept, reported."""

import json
import os
from dataclasses import replace

import pytest

from pyvae.errors import PyvaeError
from pyvae.evaluation.signal_to_noise import Toy
from pyvae.report.toy import write_page
from pyvae.studies import toys
from pyvae.studies.toys import reproduce_toy


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setitem(toys.TOYS, "small", ("A small <toy>", Toy(dimensions=2, data=8, batch=2)))


def test_a_figure(small, tmp_path, monkeypatch):
    results = reproduce_toy("small", tmp_path, seeds=(1, 2), scale=0.005)
    page = write_page(tmp_path)
    text = page.read_text()
    assert "A small &lt;toy&gt;" in text
    assert "Scaled run: 0.005 of the draws" in text
    assert text.count("<tr>") == 1 + 7
    assert "data:image/png;base64," in text
    results = json.loads(results.read_text())
    assert list(results["seeds"]) == ["1", "2"]
    curve = results["seeds"]["1"][0]
    assert (curve["parameter"], curve["against"], curve["samples"][0]) == ("theta", "K", 1)
    monkeypatch.setattr(toys, "measure", lambda *_, **__: pytest.fail("measured again"))
    reproduce_toy("small", tmp_path, seeds=(1, 2), scale=0.005)
    assert write_page(tmp_path).read_text() == text


def test_another_scale_is_measured_anew(small, tmp_path, monkeypatch):
    reproduce_toy("small", tmp_path, seeds=(1,), scale=0.005)
    seen = []
    measure = toys.measure
    monkeypatch.setattr(toys, "measure", lambda toy, **o: seen.append(o["scale"]) or measure(toy, **o))
    reproduce_toy("small", tmp_path, seeds=(1,), scale=0.006)
    (tmp_path / "seed-1.json").write_text("not JSON")
    reproduce_toy("small", tmp_path, seeds=(1,), scale=0.006)
    assert seen == [0.006, 0.006]


def test_what_is_no_measurement_is_not_taken_for_one(small, tmp_path):
    reproduce_toy("small", tmp_path, seeds=(1,), scale=0.005)
    file, toy = tmp_path / "seed-1.json", replace(toys.TOYS["small"][1], seed=1)
    assert toys._read(file, toy, 0.005)
    content = json.loads(file.read_text())
    first = content["curves"][0]
    changes = [
        {"slope": "1"},
        {"samples": [1]},
        {"samples": None},
        {"ratios": [{"snr": 1.0}] * len(first["ratios"])},
    ]
    wrong = [{**content, "curves": [{**first, **change}]} for change in (*changes, {"parameter": "phi2"})]
    for text in ("[" * 100_000, "null", *map(json.dumps, wrong)):
        file.write_text(text)
        assert toys._read(file, toy, 0.005) is None
    file.unlink()
    os.mkfifo(file)
    assert toys._read(file, toy, 0.005) is None


def test_another_toy_is_measured_anew(small, tmp_path, monkeypatch):
    near = json.loads(reproduce_toy("small", tmp_path, seeds=(1,), scale=0.005).read_text())
    monkeypatch.setitem(toys.TOYS, "far", ("far", Toy(dimensions=2, data=8, batch=2, perturbation=0.5)))
    far = json.loads(reproduce_toy("far", tmp_path, seeds=(1,), scale=0.005).read_text())
    assert near["seeds"] != far["seeds"]


def test_what_is_through_is_reported_when_it_is_interrupted(small, tmp_path, monkeypatch):
    def stop_at_the_second(toy, **options):
        if toy.seed == 2:
            raise KeyboardInterrupt
        return measure(toy, **options)

    measure = toys.measure
    monkeypatch.setattr(toys, "measure", stop_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        reproduce_toy("small", tmp_path, seeds=(1, 2), scale=0.005, told=lambda: write_page(tmp_path))
    assert list(json.loads((tmp_path / "results.json").read_text())["seeds"]) == ["1"]
    assert "1 seeds" in (tmp_path / "report.html").read_text()


def test_seeds_have_64_bits(small, tmp_path):
    reproduce_toy("small", tmp_path, seeds=(2**64 - 1,), scale=0.001)
    kept = json.loads((tmp_path / f"seed-{2**64 - 1}.json").read_text())
    assert kept["toy"]["seed"] == 2**64 - 1
    with pytest.raises(PyvaeError, match=f"seed must be at most {2**64 - 1:,}, got {2**64}"):
        reproduce_toy("small", tmp_path, seeds=(2**64,), scale=0.001)
    with pytest.raises(ValueError, match="variance must be at least 1e-09, got 0"):
        Toy(variance=0)
