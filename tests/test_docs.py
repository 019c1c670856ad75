"""The documentation is true: pages are current, links lead somewhere, code runs, tests that are named exist."""

import ast
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import pyvae

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([*(ROOT / "docs").rglob("*.md"), ROOT / "CONTRIBUTING.md", ROOT / "README.md"])
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]


def blocks(page, language):
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.M | re.S)


def test_op_pages_are_current():
    done = subprocess.run([sys.executable, ROOT / "docs/build.py", "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_every_op_has_a_page():
    index = (ROOT / "docs/README.md").read_text()
    for op in set(pyvae.__all__) - {"tc_batch"}:
        assert f"(ops/{op}.md)" in index, op


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)", page.read_text()):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_files_and_tests_that_are_named_exist(page):
    text = page.read_text()
    for path, names in re.findall(
        r"`((?:tests|examples|benchmarks|kernels|pyvae|docs)/[\w/.]+?\.py)((?:::\w+)*)`", text
    ):
        assert (ROOT / path).is_file(), path
        scope = ast.parse((ROOT / path).read_text()).body
        for name in filter(None, names.split("::")):
            found = [n for n in scope if isinstance(n, ast.FunctionDef | ast.ClassDef) and n.name == name]
            assert found, f"{path}{names}"
            scope = found[0].body


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_modules_and_names_that_are_named_exist(page):
    import importlib

    for dotted in set(re.findall(r"`(pyvae(?:\.\w+)+)", page.read_text())) - {"pyvae.kernels"}:
        if dotted.startswith("pyvae.integrations"):
            continue
        parts = dotted.split(".")
        for depth in range(len(parts), 0, -1):
            try:
                thing = importlib.import_module(".".join(parts[:depth]))
            except ImportError:
                continue
            for name in parts[depth:]:
                thing = getattr(thing, name)
            break


@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p, "python")], ids=str)
def test_python_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for number, code in enumerate(blocks(page, "python")):
        # a file of its own, where the source of what is defined in it can be found
        file = tmp_path / f"block_{number}.py"
        file.write_text(code)
        exec(compile(code, str(file), "exec"), {"__name__": "docs"})


@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p, "sh")], ids=str)
def test_commands_parse(page):
    from pyvae.cli import parse

    for line in "\n".join(blocks(page, "sh")).splitlines():
        words = shlex.split(line, comments=True)
        if words and words[0] == "pyvae" and "--help" not in words:
            parse(words[1:])
