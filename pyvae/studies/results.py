"""``results.csv``: what is known of the models of a study, one row each."""

import csv
import io
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from pyvae.base.files import open_regular
from pyvae.data.paths import absolute
from pyvae.engine.files import cause_of, write_atomically
from pyvae.engine.recipe import Recipe
from pyvae.errors import RunError
from pyvae.objectives import OBJECTIVES

MOST_BYTES = 1 << 28
"""Of a file that is read; one of ten thousand models takes a fiftieth."""
_SCORE = "score."
_OBJECTIVE = "objective"
_ASKED = "recipe."
"""Before a field of the recipe whose name a column has: the engine that was asked for, and the one that trained."""
_FIRST = ("model", "method", "data", "seed")


@dataclass(frozen=True)
class Row:
    """A finished model, or one that cannot go on."""

    model: str
    """Its run directory below that of the study."""
    method: str
    data: str
    seed: int
    recipe: Mapping[str, Any]
    """Every field of its recipe but data and seed, those of the objective as ``objective.<name>``; what is None is left
    out. See :func:`flat`."""
    steps_done: int = 0
    seconds: float | None = None
    """Of training, as its checkpoint says: members that trained together share theirs."""
    steps_per_second: float | None = None
    engine: str | None = None
    device: str | None = None
    recon: float | None = None
    """Nats per image of a fixed subset, as ``kl``."""
    kl: float | None = None
    fingerprint: str | None = None
    """Of the data it was trained on."""
    without: str = ""
    """Factors that the scores leave out, with a space between."""
    images: int | None = None
    """That the scores are of; None: all."""
    scoring_seed: int = 0
    """Of what the metrics drew."""
    scores: Mapping[str, float] = field(default_factory=dict)
    """By metric, ``dci`` or ``dci.completeness``; NaN where one cannot be computed."""
    failure: str | None = None
    """Why it cannot go on."""


_LAST = tuple(f.name for f in fields(Row) if f.name not in (*_FIRST, "recipe", "scores", "failure"))


def flat(recipe: Recipe) -> dict[str, Any]:
    """Every field of a recipe but data and seed, as a row has them."""
    values = recipe.to_json()
    objective = values.pop(_OBJECTIVE)
    found = {_OBJECTIVE: objective.pop("name"), **{f"{_OBJECTIVE}.{k}": v for k, v in objective.items()}}
    found |= {k: v for k, v in values.items() if k not in ("data", "seed", "format", "sources")}
    # where a user's code lies is no part of it; what it says is
    own = {source.spec: f"{source} {source.sha256[:12]}" for source in recipe.sources}
    for key in (_OBJECTIVE, "architecture"):
        found[key] = own.get(found[key], found[key])
    return {k: list(v) if isinstance(v, tuple) else v for k, v in found.items() if v is not None}


def about(model: str, method: str, recipe: Recipe, **values: Any) -> Row:
    """The row of a model, of its recipe and what else is known."""
    return Row(model, method, absolute(recipe.data), recipe.seed, flat(recipe), **values)


def is_of(row: Row, method: str, recipe: Recipe) -> bool:
    """Whether a row is of this method and recipe, and not of what a file asked for before it was changed."""
    own = (row.method, row.data, row.seed, dict(row.recipe))
    return own == (method, absolute(recipe.data), recipe.seed, flat(recipe))


def write_results(path: Path, rows: Iterable[Row]) -> None:
    """Write rows in their order; the old file or the new one is there at any time.

    Raises:
        RunError: the file cannot be written; the one before survives.
    """
    rows = list(rows)
    recipe = _fields(rows)
    scores = dict.fromkeys(name for row in rows for name in row.scores)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*_FIRST, *map(_column, recipe), *_LAST, *(_SCORE + name for name in scores), "failure"])
    for row in rows:
        values = [getattr(row, name) for name in _FIRST]
        values += [row.recipe.get(name) for name in recipe]
        values += [getattr(row, name) for name in _LAST]
        values += [row.scores.get(name) for name in scores]
        writer.writerow([_cell(value) for value in (*values, row.failure)])
    write_atomically(path, text.getvalue().encode(errors="surrogateescape"))


def read_results(path: Path) -> list[Row]:
    """The rows of a study, in the order of its models.

    Raises:
        RunError: the file cannot be read, or is none of :func:`write_results`; one line says so.
    """
    try:
        with open_regular(path) as file:
            content = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise RunError(f"cannot read {path}: {cause_of(error)}; `pyvae study` writes it") from error
    try:
        if len(content) > MOST_BYTES:
            raise ValueError(f"it is larger than {MOST_BYTES >> 20} MiB")
        return list(_rows(content.decode(errors="surrogateescape")))
    except (ValueError, csv.Error) as error:
        raise RunError(
            f"{path} is not a table of this version of pyvae ({error}); `pyvae study` makes it anew from the runs"
        ) from error


def _rows(text: str) -> Iterator[Row]:
    lines = csv.reader(io.StringIO(text, newline=""), strict=True)
    names = next(lines, [])
    if missing := [name for name in (*_FIRST, *_LAST, "failure") if name not in names]:
        raise ValueError(f"it has no column {missing[0]}")
    if len(set(names)) < len(names):
        raise ValueError("two columns have one name")
    own = [n for n in names if n not in (*_FIRST, *_LAST, "failure") and not n.startswith(_SCORE)]
    scored = [n for n in names if n.startswith(_SCORE)]
    for line in lines:
        if len(line) != len(names):
            raise ValueError(f"line {lines.line_num} has {len(line)} cells, not {len(names)}")
        cells = dict(zip(names, line, strict=True))
        known = {name: _typed(name, cells[name]) for name in (*_FIRST, *_LAST, "failure")}
        recipe = {n.removeprefix(_ASKED): _value(cells[n]) for n in own if cells[n]}
        scores = {name.removeprefix(_SCORE): _number(name, cells[name]) for name in scored if cells[name]}
        yield Row(recipe=recipe, scores=scores, **known)


def _fields(rows: Iterable[Row]) -> list[str]:
    """Names of all fields of these recipes, whether one has a value there or not; of a user's own objective, of those
    that have one."""
    own = [f.name for f in fields(Recipe) if f.name not in (*_FIRST, _OBJECTIVE)]
    known = {row.recipe[_OBJECTIVE]: row.recipe for row in rows}
    theirs = [
        name
        for objective, recipe in sorted(known.items())
        for name in (
            [f"{_OBJECTIVE}.{f.name}" for f in fields(OBJECTIVES[objective])]
            if objective in OBJECTIVES
            else [name for name in recipe if name.startswith(f"{_OBJECTIVE}.")]
        )
    ]
    return [_OBJECTIVE, *dict.fromkeys(theirs), *own]


def _column(name: str) -> str:
    return _ASKED + name if name in (*_FIRST, *_LAST) else name


_WHOLE = ("seed", "steps_done", "images", "scoring_seed")
_NUMBERS = ("seconds", "steps_per_second", "recon", "kl")


def _typed(name: str, cell: str) -> Any:
    if name in _WHOLE:
        if name == "images" and not cell:
            return None
        if not cell.isascii() or not cell.isdigit() or len(cell) > 20:
            raise ValueError(f"{name} cannot be {cell[:40]!r}")
        return int(cell)
    if name in _NUMBERS:
        return _number(name, cell) if cell else None
    return cell if cell or name in (*_FIRST, "without") else None


def _number(name: str, cell: str) -> float:
    try:
        return float(cell)
    except ValueError:
        raise ValueError(f"{name} cannot be {cell[:40]!r}") from None


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, float):
        return "nan" if math.isnan(value) else repr(value)
    return json.dumps(value)


def _value(cell: str) -> Any:
    """A field of a recipe: a number, true or false, a list, or text."""
    try:
        return json.loads(cell)
    except (ValueError, RecursionError):
        return cell
