"""The documentation is true: tables are current, links lead somewhere, code runs, tests that are named exist."""

import ast
import importlib.util
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote

import pytest

import pyvae
from pyvae.metrics import METRICS
from pyvae.recipes import RECIPES

ROOT = Path(__file__).resolve().parents[1]
OUTSIDE = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "benchmarks/GPU.md")]
PAGES = sorted([*(ROOT / "docs").rglob("*.md"), *(page for page in OUTSIDE if page.is_file())])
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
METHODS = sorted((ROOT / "docs/methods").glob("[a-z]*.md"))


def blocks(page, language):
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.M | re.S)


def docs_module(name):
    """A script of docs/, which is no package."""
    spec = importlib.util.spec_from_file_location(f"docs_{name}", ROOT / f"docs/{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_readme_is_short_and_shows_how_fast_it_is():
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) < 150
    assert "<!-- results: speed -->" in text


@pytest.mark.parametrize("script", ["benchmarks/report.py", "docs/build.py"])
def test_tables_are_those_of_results_and_code(script):
    done = subprocess.run([sys.executable, ROOT / script, "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_every_result_of_a_cpu_has_its_table():
    text = (ROOT / "docs/benchmarks.md").read_text()
    files = [path.stem for path in (ROOT / "benchmarks/results").glob("*.json")]
    assert len(files) > 3
    assert [name for name in [*files, "gpu"] if f"<!-- results: {name} -->" not in text] == []


def test_environment_variables_are_those_of_the_code():
    used = {
        name
        for path in [*(ROOT / "pyvae").rglob("*.py"), ROOT / "setup.py", ROOT / "tests/browser.py"]
        for name in re.findall(r"PYVAE_[A-Z_]*[A-Z]", path.read_text())
    }
    text = (ROOT / "docs/environment.md").read_text()
    assert set(re.findall(r"^\| `(PYVAE_[A-Z_]+)", text, re.MULTILINE)) == used


def test_every_recipe_and_every_metric_is_explained():
    build = docs_module("build")
    assert {build.explained(name).split("/")[0] for name in RECIPES} == {"methods"}
    assert [name for name in METRICS if f"| `{name}` |" not in build.metrics()] == []


def test_a_recipe_without_a_page_is_refused():
    with pytest.raises(pyvae.PyvaeError, match="made: recipe no-such"):
        docs_module("build").explained("no-such")


@pytest.mark.parametrize("page", METHODS, ids=lambda page: page.stem)
def test_a_page_of_a_method_has_formula_recipe_numbers_and_pitfalls(page):
    text = page.read_text()
    headings = re.findall(r"^## (.*)$", text, re.MULTILINE)
    assert headings == ["What is minimised", "What to type", "Published numbers, and ours", "Pitfalls"]
    assert "<!-- made: recipe " in text
    assert len(re.findall(r"^\$\$$", text, re.MULTILINE)) >= 2
    assert f"({page.name})" in (ROOT / "docs/methods/README.md").read_text()


def test_our_numbers_are_those_that_a_full_length_run_has_left(tmp_path):
    build = docs_module("build")
    assert build.full_length(tmp_path) == {}
    common = {"stage": "published_tables", "time": "2026-01-02T", "gpu": "NVIDIA H200", "study": "tc-vae"}
    numbers = [{"quantity": "mig-chen", "ours": {"value": value}} for value in (0.4, 0.5)]
    lines = [
        {**common, "arm": "tc-vae-6", "case": f"seed {seed}", "results": {"numbers": [number]}}
        for seed, number in enumerate(numbers)
    ]
    lines.append({**lines[0], "case": "tried", "gpu": "dry run on a CPU"})
    (tmp_path / "gpu-x").mkdir()
    (tmp_path / "gpu-x/results.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert build.full_length(tmp_path) == {("tc-vae", "tc-vae-6", "mig-chen"): "0.45 (2 seeds)"}


def test_every_op_has_a_page():
    index = (ROOT / "docs/README.md").read_text()
    for op in set(pyvae.__all__) - {"tc_batch"}:
        assert f"(ops/{op}.md)" in index, op
    pages = "".join(path.read_text() for path in (ROOT / "docs/ops").glob("*.md"))
    assert {*re.findall(r"^::: pyvae\.functional\.(\w+)$", pages, re.MULTILINE)} == set(pyvae.__all__)


def test_pictures_are_made_by_the_script_and_small_and_shown():
    script = (ROOT / "docs/pictures.py").read_text()
    shown = {
        (page.parent / name).resolve()
        for page in PAGES
        for name in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", page.read_text())
    }
    pictures = sorted((ROOT / "docs/pictures").iterdir())
    # those of docs/findings are of another script, and test_questions.py's
    assert {path for path in shown if path.parent != ROOT / "docs/findings"} == {*pictures}
    for path in pictures:
        assert f'"{path.name}"' in script, path
        assert path.stat().st_size < 300_000, path


@pytest.mark.slow
def test_pictures_can_be_made_of_a_run(tmp_path, monkeypatch):
    pictures = docs_module("pictures")
    pyvae.train("demo", out=tmp_path / "demo", alpha=0.0, beta=0.0, gamma=0.0, steps=30, device="cpu")
    monkeypatch.setattr(pictures, "OUT", tmp_path / "made")
    monkeypatch.setattr(sys, "argv", ["pictures.py", str(tmp_path / "demo")])
    assert pictures.main() == 0
    made = {path.name for path in (tmp_path / "made").iterdir()}
    assert made >= {"traversal.gif", "traversal.png", "reconstructions.png", "trace.png"}


def test_latents_are_named_after_what_they_follow():
    numbers = {
        "kl_of_latents": [0.01, 1.0, 2.0],
        "factors": ["scale", "posX"],
        "eta_squared": [[0.9, 0.9], [0.1, 0.7], [0.4, 0.3]],
    }
    assert docs_module("pictures").strongest(numbers) == [(2, "z2"), (1, "posX")]


def anchors(page):
    """Of its headings, as GitHub and the site make them."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.M | re.S)
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_links_lead_somewhere(page):
    for target, anchor in re.findall(r"\]\(([^)#\s]*)#?([^)\s]*)\)", page.read_text()):
        if not target.startswith("http"):
            file = page.parent / target if target else page
            assert file.exists(), target
            assert not anchor or anchor in anchors(file), f"{target}#{anchor}"


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
        if words and words[0] == "pyvae" and "--help" in words:
            with pytest.raises(SystemExit, match="0"):
                parse(words[1:])
        elif words and words[0] == "pyvae":
            assert callable(parse(words[1:]))


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The site, built as `make docs` builds it."""
    pytest.importorskip("mkdocs", reason="no mkdocs: pip install 'pyvae-engine[docs]'")
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return Site(out, {str(path.relative_to(out)): path.read_text() for path in out.rglob("*.html")})


class Site(NamedTuple):
    out: Path
    pages: dict[str, str]


def test_links_of_the_site_lead_to_pages_of_the_site(site):
    for name, text in site.pages.items():
        if name == "404.html":
            continue  # it may be shown at any address, so its links begin at the root
        for target in set(re.findall(r"""(?:href|src)="?([^"#> ]+)""", text)):
            if not re.match(r"\w+:", target):
                file = site.out / name.rpartition("/")[0] / unquote(target.split("?")[0])
                assert file.exists(), f"{name}: {target}"


def test_the_site_asks_nothing_of_a_network(site):
    assert len(site.pages) > len(METHODS) + 20
    for name, text in site.pages.items():
        asked = re.findall(
            r"<(?:script|img|link|iframe|source)\b[^>]*?(?:src|href)=\"?(https?:[^\" >]+)", text
        )
        assert not asked, f"{name}: {asked}"


def test_formulas_of_the_site_are_mathml(site):
    for page in METHODS:
        text = site.pages[f"methods/{page.stem}.html"]
        assert text.count('display="block"') >= 1, page
        assert "arithmatex" not in text, page
        assert "$$" not in text, page


def test_reference_pages_have_what_docstrings_say(site):
    for name, words in {
        "api/runs.html": "A run on disk, finished or not",
        "api/metrics.html": "Mutual information gap of the mean codes",
        "api/objectives.html": "Weight of the total correlation.",
        "ops/bernoulli_nll.html": "Bernoulli negative log-likelihood of images",
    }.items():
        assert words in site.pages[name], name
    for name, text in site.pages.items():
        if name.startswith(("api/", "ops/")):
            assert not re.search(r":(?:func|class|meth|data|attr|mod):", text), name


def test_the_site_finds_pages_and_docstrings(site):
    index = (site.out / "search/search_index.js").read_text()
    assert "anti-windup" in index
    assert "pyvae.metrics.mig.mig" in index


@pytest.mark.parametrize(
    ("written", "read"),
    [
        (
            "See :func:`~pyvae.bernoulli_nll`.",
            'identifier="pyvae.bernoulli_nll" optional><code>pyvae.bernoulli_nll<',
        ),
        ("See :meth:`terms`.", 'identifier="pyvae.x.Y.terms" optional><code>terms<'),
        ("One::\n\n    a = 1\n", "One:\n\n    a = 1\n"),
        ("One.\n\n>>> 1 + 1\n2\n\nTwo.", "```pycon\n>>> 1 + 1\n2\n```\n"),
        ("Raises:\n    TypeError: dtype. ValueError: shape.", "TypeError: dtype.\n    ValueError: shape."),
    ],
)
def test_docstrings_become_markdown(written, read):
    pytest.importorskip("griffe", reason="no mkdocstrings: pip install 'pyvae-engine[docs]'")
    assert read in docs_module("docstrings").rewritten(written, "pyvae.x.Y")
