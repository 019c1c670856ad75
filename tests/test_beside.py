"""Runs side by side in one page."""

import os
import re
import sys
from dataclasses import replace
from html import unescape

import pytest
import torch

import pyvae
from pyvae import cli, data
from pyvae.engine.loop import train
from pyvae.engine.run import RunDirectory
from pyvae.errors import RunError
from pyvae.evaluation.averages import evaluate
from pyvae.evaluation.metrics_file import write_metrics
from pyvae.objectives import BetaVAE, CapacityVAE, InfoGAN
from pyvae.report.beside import write_beside
from pyvae.report.glossary import TERMS
from test_report import RECIPE, Page
from tiny import TinyData

DATA = TinyData()
SCORES = {"a": 0.25, "b": 0.75}
RECIPES = {
    "a": RECIPE,
    "b": replace(RECIPE, objective=BetaVAE(beta=1.0), latents=3, seed=1),
    "long": replace(RECIPE, objective=CapacityVAE(capacity_steps=4), steps=8, likelihood="gaussian"),
    "gan": replace(RECIPE, objective=InfoGAN(), latents=5, steps=1),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    at = tmp_path_factory.mktemp("runs")
    for name, recipe in RECIPES.items():
        run = RunDirectory.create_or_resume(at / name, recipe)
        train(run, DATA, torch.device("cpu"), log_every=1)
        if name in SCORES:
            write_metrics(run, 6, DATA, {"scores": {"mig": {"score": SCORES[name], "factors": ["size"]}}})
    return at


@pytest.fixture
def runs(folder):
    def found(*names, data=DATA):
        return [(RunDirectory.open(folder / name), data) for name in names]

    return found


def table(page, first):
    """Rows of a table by their first cell, as the page shows them."""
    start = next(i for i, row in enumerate(page.rows) if row and row[0] == first)
    found = {}
    for row in page.rows[start + 1 :]:
        if len(row) != len(page.rows[start]) or row[0] == "setting":
            break
        found[row[0]] = row[1:]
    return found


def test_numbers_stand_beside_one_another_with_their_differences(runs, folder, tmp_path):
    before = sorted((p, p.stat().st_mtime_ns) for p in folder.rglob("*"))
    out = write_beside(runs("a", "b"), tmp_path / "new/page.html")
    assert sorted((p, p.stat().st_mtime_ns) for p in folder.rglob("*")) == before  # runs are only read
    page = Page(out.read_text())
    a, b = (evaluate(run.load_net()[0], DATA) for run, _ in runs("a", "b"))
    numbers = table(page, "number")
    for name, of in (
        ("reconstruction, nats", lambda e: e.recon),
        ("ELBO, nats", lambda e: -e.recon - sum(e.kl)),
    ):
        one, other = numbers[name]
        assert one.removesuffix(" (best)") == f"{of(a):.2f}"
        sign = "+" if of(b) > of(a) else "−"
        assert other.startswith(f"{of(b):.2f} ({sign}{abs(of(b) - of(a)):.2f})")
    assert numbers["MIG"] == ["0.250", "0.750 (+0.500) (best)"]
    assert numbers["steps"] == ["6", "6 (same)"]
    # what the command of one run shows in its results is explained here too
    assert f"<dd>{TERMS['mig'].meaning}</dd>" in out.read_text()
    assert page.text.count("(best)") == len([row for row in numbers.values() if "(best)" in "".join(row)])
    settings = table(page, "setting")
    assert settings == {"beta": ["4.0", "1.0"], "latents": ["4", "3"], "seed": ["0", "1"]}
    assert "different numbers of steps" not in page.text
    assert all(source.startswith("data:image/png;base64,") for source in page.sources)
    # the input and two reconstructions, and a row for each latent
    assert len(page.sources) == 3 + 4 + 3


def test_whatever_they_are_they_stand_beside_one_another(runs, tmp_path):
    text = write_beside(runs("a", "long", "gan"), tmp_path / "page.html").read_text()
    page = Page(text)
    assert "different numbers of steps: a 6, long 8, gan 1." in page.text
    numbers = table(page, "number")
    assert numbers["reconstruction, nats"][2] == numbers["ELBO, nats"][2] == "–"
    assert numbers["information bound, nats"][:2] == ["–", "–"]
    assert numbers["steps"] == ["6", "8 (+2)", "1 (−5)"]
    assert table(page, "setting")["objective"] == ["beta-vae", "capacity-vae", "infogan"]
    assert [row[0] for row in page.rows if row][-6:] == ["code", "c0", "c1", "c2", "c3", "class"]
    assert "The same images reconstructed" in page.text
    assert len(page.sources) == 4 + 4 + 4 + 5
    for title in ("reconstruction, nats per image", "capacity C, nats", "loss of the critic"):
        assert title in page.text


def test_numbers_that_cannot_be_compared_have_no_difference(runs, tmp_path):
    other = TinyData(fingerprint="tiny-v2")
    both = [*runs("a"), *runs("b", data=other)]
    page = Page(write_beside(both, tmp_path / "page.html").read_text())
    assert "These runs are of different data" in page.text
    assert "b are of other data than it was trained on: tiny-v2" in page.text
    numbers = table(page, "number")
    assert "(" not in "".join(numbers["KL, nats"] + numbers["ELBO, nats"])
    assert "The same images reconstructed" not in page.text
    page = Page(write_beside(runs("a", "long"), tmp_path / "page.html").read_text())
    assert "(" not in table(page, "number")["reconstruction, nats"][1]  # of another likelihood
    assert "(" in table(page, "number")["KL, nats"][1]


def test_the_page_lies_where_the_runs_do_and_links_to_theirs(runs, folder):
    (folder / "a/report.html").write_text("a page")
    out = write_beside(runs("a", "b"))
    assert out == folder / "comparison.html"
    assert re.findall(r'<a href="([^#"]+)"', out.read_text()) == ["a/report.html"]
    assert write_beside(runs("b", "a")) == out  # one such page may take the place of another
    out.unlink()
    (folder / "a/report.html").unlink()


def test_what_cannot_be_is_refused(runs, folder, tmp_path):
    mine = tmp_path / "mine.html"
    mine.write_text("<!doctype html>")
    with pytest.raises(RunError, match=r"mine.html is there already and no comparison"):
        write_beside(runs("a", "b"), mine)
    assert mine.read_text() == "<!doctype html>"
    with pytest.raises(RunError, match="is a directory: name a file"):
        write_beside(runs("a", "b"), tmp_path)
    with pytest.raises(RunError, match="a is named twice"):
        write_beside(runs("a", "b", "a"))
    with pytest.raises(RunError, match="two runs or more"):
        write_beside(runs("a"))
    with pytest.raises(RunError, match="a span above 0"):
        write_beside(runs("a", "b"), tmp_path / "x.html", span=-1)
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot write to"):
        write_beside(runs("a", "b"), tmp_path / "file/x.html")
    assert not (folder / "comparison.html").exists()


def test_names_are_text(runs, folder, tmp_path):
    odd = folder / "<i>a & b"
    (folder / "a").rename(odd)
    try:
        both = [(RunDirectory.open(odd), DATA), *runs("b")]
        text = write_beside(both, tmp_path / "page.html").read_text()
    finally:
        odd.rename(folder / "a")
    assert "<i>a" not in text
    assert "<i>a & b" in unescape(re.search("<title>(.*)</title>", text)[1])


def test_a_name_that_is_no_text(runs, folder, tmp_path):
    odd = folder / os.fsdecode(b"a\xff")
    (folder / "a").rename(odd)
    try:
        (odd / "report.html").write_text("a page")
        both = [(RunDirectory.open(odd), DATA), *runs("b")]
        text = write_beside(both, folder / "page.html").read_text()
    finally:
        (odd / "report.html").unlink()
        odd.rename(folder / "a")
        (folder / "page.html").unlink(missing_ok=True)
    assert '<a href="a%FF/report.html">' in text


def test_it_is_a_command_and_a_function(folder, tmp_path, monkeypatch, capsys):
    load, opened = data.load, []

    def counted(path, **options):
        opened.append(path)
        return DATA if path.endswith("tiny") else load(path, **options)

    monkeypatch.setattr(data, "load", counted)
    monkeypatch.chdir(folder)
    assert pyvae.compare(["a", pyvae.open("b")], out=tmp_path / "x.html") == tmp_path / "x.html"
    assert len(opened) == 1  # the data of both
    with pytest.raises(RunError, match=r"give two or more, as \["):
        pyvae.compare("a")

    def command(*arguments):
        monkeypatch.setattr(sys, "argv", ["pyvae", "report", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return ended.value.code

    (folder / "results.csv").write_text("")
    assert command("a", "b", "long", "results.csv", "--out", "three.html") in (0, None)
    assert capsys.readouterr().out == "three.html\n"
    (folder / "results.csv").unlink()
    assert "a and 2 others" in (folder / "three.html").read_text()
    assert command("a", "--out", "x.html") == (
        "pyvae: error: --out is of several runs: name more than one, or leave it out"
    )
    assert command("a", "nothing").startswith("pyvae: error: nothing holds no run")
    (folder / "three.html").unlink()
