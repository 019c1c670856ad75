"""Write the tables of the documentation that the code knows best: ``python docs/build.py``; ``--check`` only looks.

A table stands between ``<!-- made: KIND NAME ... -->`` and ``<!-- end -->``; ``KINDS`` says of what kinds there are.
"""

import argparse
import inspect
import re
import sys
from collections.abc import Callable, Iterable
from dataclasses import fields
from pathlib import Path
from typing import Any

from pyvae.engine.recipe import Recipe, objective_name
from pyvae.errors import PyvaeError
from pyvae.metrics import METRICS
from pyvae.recipes import RECIPES
from pyvae.studies.published import CERTAINTIES, QUANTITIES, STUDIES, Published

DOCS = Path(__file__).resolve().parent
RESULTS = DOCS.parent / "benchmarks/results"
_SLOT = re.compile(r"(<!-- made: ([\w-]+)((?: \w[\w:,.-]*)*) -->\n).*?(<!-- end -->)", re.DOTALL)
_NOT_RUN = "not run at full length yet"


def recipes() -> str:
    """Every recipe, with the page that explains it."""
    rows = [(f"[`{name}`]({explained(name)})", said) for name, (said, _) in RECIPES.items()]
    return _table(("recipe", "what it is"), rows)


def explained(name: str) -> str:
    """The page whose tables tell of a recipe, as a link from docs/recipes.md."""
    for path in sorted((DOCS / "methods").glob("*.md")):
        for slot in _SLOT.finditer(path.read_text()):
            if slot[2] == "recipe" and name in slot[3].split():
                return f"methods/{path.name}"
    raise PyvaeError(
        f"no page of docs/methods tells of the recipe {name}: write <!-- made: recipe {name} --> in one"
    )


def recipe(*names: str) -> str:
    """What to type for each of these recipes, and the settings behind it."""
    lines = "\n".join(f"pyvae train {name}" for name in names)
    head = ("setting", *(f"`{name}`" for name in names))
    settings = [_settings(RECIPES[name][1]) for name in names]
    keys = dict.fromkeys(key for each in settings for key in each)
    rows = [(f"`--{key.replace('_', '-')}`", *(each.get(key, "-") for each in settings)) for key in keys]
    return f"```sh\n{lines}\n```\n\n{_table(head, rows)}"


def _settings(of: Recipe) -> dict[str, str]:
    """What makes it this recipe: those of the run that papers name, and those of its objective."""
    always = ("architecture", "latents", "batch_size", "optimizer", "lr", "steps")
    plain = {each.name: each.default for each in fields(Recipe)}
    named = {name: getattr(of, name) for name in plain if name in always or getattr(of, name) != plain[name]}
    del named["objective"]
    own = {each.name: getattr(of.objective, each.name) for each in fields(of.objective)}
    shown = {name: _value(value) for name, value in {**named, **own}.items() if value is not None}
    return {"objective": f"`{objective_name(of.objective)}`", **shown}


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, tuple):
        return ", ".join(map(_value, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def published(*names: str) -> str:
    """The numbers of tables that ``pyvae reproduce`` knows, as STUDY, or as STUDY:ARM,ARM for some of its lines."""
    ours, rows = full_length(RESULTS), []
    sources: dict[str, int] = {}
    for name in names:
        study, _, arms = name.partition(":")
        for arm in STUDIES[study].arms:
            for number in arm.published if not arms or arm.name in arms.split(",") else ():
                source = sources.setdefault(_source(number), len(sources) + 1)
                mine = ours.get((study, arm.name, number.quantity), _NOT_RUN)
                rows.append(
                    (f"`{arm.name}`", QUANTITIES[number.quantity], number.show(), mine, f"({source})")
                )
    table = _table(("line", "what", "published", "ours", "source"), rows)
    return "\n".join([table, "", *(f"{number}. {source}." for source, number in sources.items())])


def _source(number: Published) -> str:
    sure = CERTAINTIES[number.certainty]
    return f"{number.source[0].upper()}{number.source[1:]}: {sure}"


def full_length(results: Path) -> dict[tuple[str, str, str], str]:
    """What ``make gpu`` has found of published tables, by study, arm and quantity: the mean over the seeds."""
    sys.path.insert(0, str(DOCS.parent / "benchmarks"))
    from gpu_stages.results import DRY, known, newest

    values: dict[tuple[str, str, str], list[float]] = {}
    for line in newest(known(results)).values():
        if line["stage"] == "published_tables" and line.get("gpu") != DRY:
            for number in line.get("results", {}).get("numbers", ()):
                key = line["study"], line["arm"], number["quantity"]
                values.setdefault(key, []).append(number["ours"]["value"])
    return {
        key: f"{sum(each) / len(each):.4g} ({len(each)} seed{'s' * (len(each) > 1)})"
        for key, each in values.items()
    }


def studies() -> str:
    """All of them, one section each."""
    parts = []
    for name, study in STUDIES.items():
        parts += [f"## {study.title}", f"```sh\npyvae reproduce {name}\n```", published(name)]
        parts.append("\n".join(f"- {note}" for note in study.notes))
    return "\n\n".join(parts)


def metrics() -> str:
    """Every metric of a table of codes, as its docstring begins."""
    rows = []
    for name, metric in METRICS.items():
        first = (inspect.getdoc(metric) or "").split("\n\n")[0]
        rows.append((f"`{name}`", _inline(first)))
    return _table(("metric", "what it is"), rows)


KINDS: dict[str, Callable[..., str]] = {
    "recipes": recipes,
    "recipe": recipe,
    "published": published,
    "studies": studies,
    "metrics": metrics,
}


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    head = list(head)
    lines = [head, ["---"] * len(head), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _inline(text: str) -> str:
    text = re.sub(r":\w+:`~?([^`]+)`", r"`\1`", text).replace("``", "`")
    return " ".join(text.split())


def render(page: str) -> str:
    """A page with every such table made anew."""
    return _SLOT.sub(lambda slot: f"{slot[1]}\n{KINDS[slot[2]](*slot[3].split())}\n\n{slot[4]}", page)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if a page is not current")
    check = parser.parse_args().check
    old = []
    for path in sorted(DOCS.rglob("*.md")):
        before = path.read_text()
        after = render(before)
        if check and before != after:
            old.append(str(path.relative_to(DOCS.parent)))
        elif before != after:
            path.write_text(after)
    if old:
        print(f"not current: {', '.join(old)}: run python docs/build.py", file=sys.stderr)
    return bool(old)


if __name__ == "__main__":
    sys.exit(main())
