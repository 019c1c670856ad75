"""A study as a file says it: which methods, hyperparameters, seeds and data sets, and what is scored."""

import logging
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from difflib import get_close_matches
from itertools import chain, product
from pathlib import Path
from typing import Any

from pyvae.base.files import open_regular
from pyvae.base.source import is_spec, keep, source_of
from pyvae.data.cars3d import FACTOR_NAMES as CARS_3D
from pyvae.data.mpi3d import FACTOR_NAMES as MPI_3D
from pyvae.data.paths import absolute
from pyvae.data.shapes3d import FACTOR_NAMES as SHAPES_3D
from pyvae.data.smallnorb import FACTOR_NAMES as SMALL_NORB
from pyvae.data.sprites import FACTOR_NAMES as SPRITES
from pyvae.engine.files import cause_of, make_directory, write_atomically
from pyvae.engine.grid import directory_of, parse_seeds, vary
from pyvae.engine.recipe import Recipe
from pyvae.errors import PlanError, PyvaeError, printable, reason
from pyvae.metrics import METRICS
from pyvae.metrics.registry import OF_GRID, defaults
from pyvae.objectives.own import objective_of
from pyvae.recipes import RECIPES

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_LOG = logging.getLogger(__name__)
SOURCE = "study.toml"
"""The file's copy in the directory of a study."""
MOST_MODELS = 100_000
MOST_BYTES = 1 << 20
"""Of a file; the published study takes two thousand."""
_FACTORS = (SPRITES, SHAPES_3D, CARS_3D, SMALL_NORB, MPI_3D)
_LONGEST_LABEL = 80
_FEWEST_IMAGES = 100
_TABLES = ("title", "notes", "shared", "axes", "scores", "methods")
_AXES = ("seeds", "data")
_SCORES = ("metrics", "without", "images")
_OF_METHOD = ("recipe", "name", "objective", "set", "sweep", "follow")
_RECIPE_FIELDS = tuple(f.name for f in fields(Recipe) if f.name != "objective")
_ELSEWHERE = {"seed": "axes.seeds", "data": "axes.data"}
"""Fields of a recipe that are axes of a study, and no hyperparameters."""
CODE = "source"
"""Folder of copies of code of a user's own, there."""
RESERVED = ("figures", "report.html", "results.csv", "results.json", "udr.json", SOURCE, CODE)
"""What lies beside the methods' directories."""
_FOLLOWS = re.compile(r"(?:(?P<factor>[0-9.eE+-]+) *\* *)?(?P<name>[A-Za-z_]\w*)", re.ASCII)


@dataclass(frozen=True)
class Model:
    """One run of a study."""

    name: str
    """Its run directory below that of the study; no other model has it."""
    method: str
    """Label of the method."""
    settings: Mapping[str, Any]
    """Swept hyperparameters by name, without the seed."""
    recipe: Recipe


@dataclass(frozen=True)
class StudyPlan:
    """All that a file says."""

    title: str
    models: tuple[Model, ...]
    """Method by method, and in each data set by data set, setting by setting, seed by seed."""
    metrics: tuple[str, ...] = ()
    """Names of pyvae.metrics.METRICS."""
    without: tuple[str, ...] = ()
    """Factors that the metrics leave out."""
    images: int | None = None
    """Of a fixed random subset that is encoded for the metrics; None: all of them."""
    notes: tuple[str, ...] = ()
    source: str = ""
    """The text of the file."""


def read_plan(path: Path) -> StudyPlan:
    """The study of a TOML file; docs/studies.md has its keys.

    Raises:
        PlanError: the file cannot be read, or asks for what cannot be; one line names the file, the key, and what to
            write instead.
    """
    text = _read(path)
    try:
        try:
            values = tomllib.loads(text)
        except RecursionError:
            raise PlanError("no TOML: it is nested too deeply") from None
        except ValueError as error:  # of the syntax, or an integer of thousands of digits
            raise PlanError(f"no TOML: {reason(error)}") from None
        return _plan(values, text, path)
    except PlanError as error:
        raise PlanError(f"{path}: {error}") from None


def keep_source(plan: StudyPlan, out: Path) -> None:
    """Write the text that a plan was read from to ``out/study.toml``, with copies of a user's own code beside it, and
    say which models it leaves alone that were of the study before.

    Raises:
        RunError: it cannot be written.
    """
    path = out / SOURCE
    for copy, text in keep([source for model in plan.models for source in model.recipe.sources], out / CODE):
        make_directory(copy.parent)
        write_atomically(copy, text)
    left: list[str] = []
    try:
        before = read_plan(path)
    except PlanError:  # none is there, or none that could say anything
        pass
    else:
        if before.source == plan.source:
            return
        asked = {model.name for model in plan.models}
        left = [m.name for m in before.models if m.name not in asked and (out / m.name).exists()]
    if left:
        names = ", ".join(left[:3]) + (", ..." if len(left) > 3 else "")
        _LOG.info(
            "%s: %s of the models there are not of this study any more, and stay as they are: %s",
            printable(out),
            f"{len(left):,}",
            names,
        )
    make_directory(out)
    write_atomically(path, plan.source.encode())


def _read(path: Path) -> str:
    try:
        with open_regular(path) as file:
            content = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise PlanError(
            f"{path}: cannot be read ({cause_of(error)}); give the path of a study's file"
        ) from None
    if len(content) > MOST_BYTES:
        raise PlanError(f"{path}: larger than {MOST_BYTES >> 20} MiB, which no study's file is")
    try:
        return content.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise PlanError(f"{path}: byte {error.start} is not of UTF-8 text; save it as UTF-8") from None


def _plan(values: dict[str, Any], text: str, path: Path) -> StudyPlan:
    _known(values, _TABLES, "")
    axes = _table(values, "axes", _AXES)
    shared = _shared(_table(values, "shared"), path.parent)
    if "data" in axes and "data" in shared:
        raise PlanError("shared.data: axes.data says the data already; leave one of them out")
    seeds, data = _seeds(axes.get("seeds", "0")), _data(axes)
    methods = _methods(values)
    each = [_Method(at, method, shared, path.parent) for at, method in enumerate(methods, start=1)]
    labels = [method.label for method in each]
    if twice := [label for label in labels if labels.count(label) > 1]:
        raise PlanError(f'methods: two are called {twice[0]!r}; give each a name = "..." of its own')
    count = sum(method.points for method in each) * len(seeds) * len(data or [0])
    if count > MOST_MODELS:
        raise PlanError(f"{count:,} models are more than {MOST_MODELS:,}; make several studies of it")
    models = tuple(model for method in each for model in method.models(data, seeds))
    _check_names(models)
    scores = _table(values, "scores", _SCORES)
    metrics = _metrics(scores)
    return StudyPlan(
        title=_text(values.get("title", path.stem), "title"),
        models=models,
        metrics=metrics,
        without=_without(scores, metrics, {model.recipe.data for model in models}),
        images=_images(scores, metrics),
        notes=_texts(values.get("notes", []), "notes"),
        source=text,
    )


class _Method:
    """An entry of ``[[methods]]``."""

    def __init__(self, at: int, values: Any, shared: Mapping[str, Any], folder: Path) -> None:
        where = f"methods[{at}]"
        if not isinstance(values, dict):
            raise PlanError(f"{where}: must be a table, as [[methods]] makes it")
        _known(values, _OF_METHOD, where)
        if "recipe" not in values:
            raise PlanError(f"{where}: no recipe; name one of {', '.join(RECIPES)}")
        name = _text(values["recipe"], f"{where}.recipe")
        if name not in RECIPES:
            near = _near(name, RECIPES)
            raise PlanError(
                f"{where}.recipe: there is no {name!r}{near or ': there are ' + ', '.join(RECIPES)}"
            )
        self.label = _label(values.get("name", name), f"{where}.name")
        where = f"{where} ({self.label})"
        fixed = {
            k: _code(k, _value(v, f"{where}.set.{k}"), folder, f"{where}.set")
            for k, v in _table(values, "set", where=where).items()
        }
        self._sweep = {
            k: [_code(k, each, folder, f"{where}.sweep") for each in _axis(v, f"{where}.sweep.{k}")]
            for k, v in _table(values, "sweep", where=where).items()
        }
        follow = _table(values, "follow", where=where)
        self._follow = {k: _follows(v, self._sweep, f"{where}.follow.{k}") for k, v in follow.items()}
        seen: dict[str, str] = {}
        for part, names in (("set", fixed), ("sweep", self._sweep), ("follow", self._follow)):
            for key in names:
                if key in _ELSEWHERE:
                    raise PlanError(
                        f"{where}.{part}.{key}: an axis of the study; give it as {_ELSEWHERE[key]}"
                    )
                if key in seen:
                    raise PlanError(
                        f"{where}.{part}.{key}: {seen[key]} has it already; leave one of them out"
                    )
                seen[key] = part
        self._where = where
        # a method's own word stands above what all share
        given = {**{k: v for k, v in shared.items() if k not in seen}, **fixed}
        self._recipe, self._fixed = RECIPES[name][1], given
        if "objective" in values:
            self._recipe = _with_objective(self._recipe, values["objective"], folder, f"{where}.objective")
        for key in seen:
            self._check_takes(key, seen[key])

    def _check_takes(self, key: str, part: str) -> None:
        objective = self._recipe.objective
        own = [f.name for f in fields(objective)]
        if key not in own and key not in _RECIPE_FIELDS:
            kind = type(objective).__name__
            there = f"; {kind} has {', '.join(own)}" if own else f"; {kind} has no hyperparameters"
            raise PlanError(
                f"{self._where}.{part}.{key}: the recipe cannot take it"
                + (_near(key, [*own, *_RECIPE_FIELDS]) or there)
            )

    @property
    def points(self) -> int:
        """Settings that it is trained with."""
        count = 1
        for values in self._sweep.values():
            count *= len(values)
        return count

    def models(self, data: Mapping[str, str] | None, seeds: Sequence[int]) -> Iterator[Model]:
        made = [self._made(settings) for settings in self._settings()]
        for label, name in (data or {"": ""}).items():
            for settings, recipe in made:
                there = replace(recipe, data=name) if data else recipe
                parent = "/".join(part for part in (self.label, label) if part)
                for seed in seeds:
                    directory = f"{parent}/{directory_of(settings, seed)}"
                    yield Model(directory, self.label, settings, replace(there, seed=seed))

    def _settings(self) -> Iterator[dict[str, Any]]:
        for point in product(*self._sweep.values()):
            yield dict(zip(self._sweep, point, strict=True))

    def _made(self, settings: Mapping[str, Any]) -> tuple[dict[str, Any], Recipe]:
        """Settings as the recipe has them, 4.0 where the file says 4, and the recipe."""
        followed = {key: factor * settings[of] for key, (factor, of) in self._follow.items()}
        try:
            recipe = vary(self._recipe, {**self._fixed, **settings, **followed})
        except PyvaeError as error:
            raise PlanError(f"{self._where}: {error}") from None
        objective: Any = recipe.objective
        own = {f.name for f in fields(objective)}
        return {key: getattr(objective if key in own else recipe, key) for key in settings}, recipe


def _with_objective(recipe: Recipe, value: Any, folder: Path, where: str) -> Recipe:
    text = _text(value, where)
    try:
        named = source_of(_found(text, folder)) if is_spec(text) else text
        return replace(recipe, objective=objective_of(named))
    except PyvaeError as error:
        raise PlanError(f"{where}: {error}") from None


def _code(key: str, value: Any, folder: Path, where: str) -> Any:
    """The value; the source, where it names a network of a user's own."""
    if key != "architecture" or not isinstance(value, str) or not is_spec(value):
        return value
    try:
        return source_of(_found(value, folder))
    except PyvaeError as error:
        raise PlanError(f"{where}.{key}: {error}") from None


def _found(spec: str, folder: Path) -> str:
    """A spec whose file lies where a study's file says, or in the copies beside a copy of that."""
    where, _, name = spec.rpartition(":")
    if not where.endswith(".py"):
        return spec
    path, copy = folder / Path(where).expanduser(), folder / CODE / Path(where).name
    return f"{copy if not path.exists() and copy.exists() else path}:{name}"


def _methods(values: Mapping[str, Any]) -> list[Any]:
    methods = values.get("methods", [])
    if not isinstance(methods, list):
        raise PlanError("methods: write it as [[methods]], once for each")
    if not methods:
        raise PlanError('no methods: add a [[methods]] with recipe = "beta-vae", or another')
    return methods


def _shared(values: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    for key in values:
        if key == "seed":
            raise PlanError("shared.seed: an axis of the study; give it as axes.seeds")
        if key not in _RECIPE_FIELDS:
            near = _near(key, _RECIPE_FIELDS)
            raise PlanError(
                f"shared.{key}: not a field of every recipe"
                + (near or "; a hyperparameter of an objective goes into the methods' set or sweep")
            )
    found = {
        key: _code(key, _value(value, f"shared.{key}"), folder, "shared") for key, value in values.items()
    }
    if "data" in found:
        found["data"] = absolute(_text(found["data"], "shared.data"))
    for key, value in found.items():
        _check_shared(key, value)
    return found


def _check_shared(key: str, value: Any) -> None:
    """Told once of all, and not of the first method."""
    try:
        replace(Recipe(), **{key: value})
    except PyvaeError as error:
        raise PlanError(f"shared.{key}: {error}") from None


def _seeds(value: Any) -> tuple[int, ...]:
    whole = isinstance(value, list) and all(isinstance(s, int) and not isinstance(s, bool) for s in value)
    if not isinstance(value, str) and not whole:
        raise PlanError('axes.seeds: must be a text as "0-49" or a list of integers as [0, 1, 2]')
    if not value:
        raise PlanError('axes.seeds: empty; give "0-49", or leave it out for one seed')
    if isinstance(value, str):
        try:
            return tuple(parse_seeds(value))
        except PyvaeError as error:
            raise PlanError(f"axes.seeds: {error}") from None
    if strange := [seed for seed in value if not 0 <= seed < 2**64]:
        raise PlanError(f"axes.seeds: seeds are from 0 to 2^64 - 1, got {strange[0]}")
    if twice := [seed for seed in value if value.count(seed) > 1]:
        raise PlanError(f"axes.seeds: {twice[0]} stands there twice; leave it out once")
    return tuple(value)


def _data(axes: Mapping[str, Any]) -> dict[str, str] | None:
    """Data sets by label; None where the file leaves them to the recipes."""
    if "data" not in axes:
        return None
    value = axes["data"]
    if isinstance(value, dict):
        found = [(_label(k, "axes.data"), _text(v, f"axes.data.{k}")) for k, v in value.items()]
    else:
        names = _texts(value, "axes.data")
        found = [
            (_label(name if name == "dsprites" else Path(name).stem, "axes.data"), name) for name in names
        ]
    if not found:
        raise PlanError('axes.data: empty; give ["dsprites"], or leave it out')
    if any(not name for _, name in found):
        raise PlanError('axes.data: an empty name; give "dsprites", or the path of a file')
    labels = [label for label, _ in found]
    if twice := [label for label in labels if labels.count(label) > 1]:
        raise PlanError(
            f'axes.data: two are called {twice[0]!r}; call each by a name: data = {{ one = "...", two = "..." }}'
        )
    return {label: absolute(name) for label, name in found}


def _metrics(scores: Mapping[str, Any]) -> tuple[str, ...]:
    metrics = _texts(scores.get("metrics", []), "scores.metrics")
    for name in metrics:
        if name not in METRICS:
            raise PlanError(
                f"scores.metrics: there is no {name!r}{_near(name, METRICS) or ': there are ' + ', '.join(METRICS)}"
            )
    return tuple(dict.fromkeys(metrics))


def _without(scores: Mapping[str, Any], metrics: Sequence[str], data: set[str]) -> tuple[str, ...]:
    without = tuple(dict.fromkeys(_texts(scores.get("without", []), "scores.without")))
    if without and not metrics:
        raise PlanError(
            "scores.without: no metrics are named that would leave factors out; name some, or drop it"
        )
    known = SPRITES if data == {"dsprites"} else tuple(dict.fromkeys(chain(*_FACTORS)))
    for name in without:
        if name not in known:
            raise PlanError(
                f"scores.without: no factor {name!r}{_near(name, known) or ': there are ' + ', '.join(known)}"
            )
    if any(set(names) <= set(without) for names in _FACTORS):
        raise PlanError("scores.without: all factors of a data set are left out; leave some in")
    return without


def _images(scores: Mapping[str, Any], metrics: Sequence[str]) -> int | None:
    images = scores.get("images")
    if images is None:
        return None
    if isinstance(images, bool) or not isinstance(images, int) or images < _FEWEST_IMAGES:
        raise PlanError(
            f"scores.images: must be an integer of at least {_FEWEST_IMAGES}, got {_shown(images)}"
        )
    if of_grid := [name for name in metrics if name in OF_GRID]:
        raise PlanError(f"scores.images: {of_grid[0]} needs all images; leave one of the two out")
    for name in metrics:
        values = defaults(name)
        if "test" in values and images < (least := values["train"] + values["test"]):
            raise PlanError(
                f"scores.images: {name} is trained and tested on {least:,} images; give as many, or leave {name} out"
            )
    return images


def _check_names(models: Sequence[Model]) -> None:
    seen: set[str] = set()
    for model in models:
        if model.name in seen:
            raise PlanError(f"two models are called {model.name}; a value stands in a sweep twice")
        seen.add(model.name)


def _follows(value: Any, sweep: Mapping[str, Any], where: str) -> tuple[float, str]:
    """The factor, and the swept name that it multiplies."""
    match = _FOLLOWS.fullmatch(value.strip()) if isinstance(value, str) else None
    if match is None:
        raise PlanError(f'{where}: must be a text as "10 * lambda_od", or "lambda_od"')
    if match["name"] not in sweep:
        raise PlanError(f"{where}: {match['name']!r} is not swept{_near(match['name'], sweep)}")
    try:
        factor = float(match["factor"] or 1)
    except ValueError:
        raise PlanError(f"{where}: {match['factor']!r} is no number") from None
    if strange := [v for v in sweep[match["name"]] if not isinstance(v, int | float)]:
        raise PlanError(f"{where}: {match['name']} is swept over {strange[0]!r}, which is no number")
    return factor, match["name"]


def _axis(value: Any, where: str) -> list[Any]:
    if not isinstance(value, list):
        raise PlanError(f"{where}: must be a list of values, as [1, 2, 4]")
    if not value:
        raise PlanError(f"{where}: empty; give it values, or leave it out")
    if strange := [v for v in value if isinstance(v, bool) or not isinstance(v, int | float | str)]:
        raise PlanError(f"{where}: must be numbers or texts, got {_shown(strange[0])}")
    return value


def _value(value: Any, where: str) -> Any:
    if isinstance(value, list):
        return tuple(_value(part, where) for part in value)
    if not isinstance(value, int | float | str):
        raise PlanError(f"{where}: must be a number, a text or a list of them, got {_shown(value)}")
    return value


def _table(values: Mapping[str, Any], key: str, known: Sequence[str] = (), where: str = "") -> dict[str, Any]:
    name = f"{where}.{key}" if where else key
    table = values.get(key, {})
    if not isinstance(table, dict):
        raise PlanError(f"{name}: must be a table, {'{ ... }' if where else f'[{key}]'}, got {_shown(table)}")
    if known:
        _known(table, known, name)
    return table


def _known(values: Mapping[str, Any], known: Sequence[str], where: str) -> None:
    for key in values:
        if key not in known:
            name = f"{where}.{key}" if where else key
            raise PlanError(f"{name}: no such key{_near(key, known) or ': there are ' + ', '.join(known)}")


def _label(value: Any, where: str) -> str:
    label = _text(value, where)
    if (
        not label
        or len(label.encode()) > _LONGEST_LABEL
        or label != label.strip()
        or label.startswith(".")
        or "/" in label
        or printable(label) != label
        or label in RESERVED
    ):
        raise PlanError(
            f"{where}: {_shown(label)} cannot be the name of a directory here; take letters, digits and dashes"
        )
    return label


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise PlanError(f'{where}: must be a text, "...", got {_shown(value)}')
    return value


def _texts(value: Any, where: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(v, str) for v in value):
        raise PlanError(f'{where}: must be a list of texts, ["..."], got {_shown(value)}')
    return tuple(value)


def _near(name: str, known: Sequence[str] | Mapping[str, Any]) -> str:
    near = get_close_matches(name, list(known), 1)
    return f": did you mean {near[0]!r}?" if near else ""


def _shown(value: Any) -> str:
    try:
        shown = printable(repr(value))
    except ValueError:  # Python does not write out integers of thousands of digits
        shown = "a huge number"
    return shown if len(shown) <= 60 else f"{shown[:60]}..."
