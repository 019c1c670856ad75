"""Modules of benchmarks/, which is no package, for tests."""

import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
BENCHMARKS = ROOT / "benchmarks"


@pytest.fixture(autouse=True)
def scripts(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def module(name):
    return importlib.import_module(name)


def page_of(question):
    """A page that has every table of a question of docs/findings, none filled."""
    tables = module("questions").QUESTIONS[question].tables
    return "".join(f"<!-- finding: {question} {name} -->\n<!-- end -->\n" for name in tables)
