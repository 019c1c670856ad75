"""Variations of a recipe: seeds and swept settings, expanded into runs with directories of their own."""

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import fields, replace
from difflib import get_close_matches
from itertools import product
from typing import Any, NamedTuple

from pyvae.base.source import Source
from pyvae.bounds import admitted, refusal, show
from pyvae.engine.recipe import Recipe
from pyvae.errors import PyvaeError

MOST = 10_000
"""Variations at once; the largest published study has 12,600 models of six methods."""
_RANGE = re.compile(r"(\d{1,20})(?:-(\d{1,20}))?", re.ASCII)
_WORDS = {"none": None, "true": True, "false": False}
_NO_AXES = {
    "seed": "give it as seeds, as 0-7",
    "keep_at": "it is a list of steps, one for all",
    **dict.fromkeys(
        ("data", "image_size", "channels", "crop", "corrupt"), "all of these runs train on one data set"
    ),
}


class Variation(NamedTuple):
    """One run of many."""

    name: str
    """Of its directory, below that of all."""
    settings: dict[str, Any]
    """What is swept, by the names of fields, in the order of the sweeps; without the seed."""
    recipe: Recipe


def parse_seeds(text: str) -> tuple[int, ...]:
    """Seeds of ``"0-7,9"``: single ones and ranges, whose ends belong to them.

    Raises:
        RecipeError: it is something else, or names a seed twice, or more than ``MOST``.
    """
    seeds: list[int] = []
    for part in text.split(","):
        match = _RANGE.fullmatch(part.strip())
        if match is None:
            raise refusal(
                f"seeds {show(text)}: {show(part.strip())} is no seed; give some as 3, 0-7 or 0-7,9"
            )
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first:
            raise refusal(f"seeds {show(text)}: {part.strip()} runs backwards; write {last}-{first}")
        if len(seeds) + last - first >= MOST:
            raise refusal(f"seeds {show(text)}: more than {MOST:,}")
        seeds += range(first, last + 1)
    return check_seeds(seeds)


def check_seeds(seeds: Sequence[Any]) -> tuple[int, ...]:
    """The seeds, if each is one and none stands there twice, and there are any.

    Raises:
        RecipeError: something of this is not so.
    """
    found = tuple(admitted(Recipe, "seed", seed) for seed in seeds)
    if not found:
        raise refusal("seeds: there is none; give some as 0-7")
    if twice := _twice(found):
        raise refusal(f"seeds: {twice[0]} stands there twice")
    return found


def parse_sweep(recipe: Recipe, text: str) -> tuple[str, list[Any]]:
    """Name and values of ``"beta=1,2,4"``, each value as the field of that name keeps it.

    Raises:
        RecipeError: it is something else, or the recipe has no such field, or a value is not one of it.
    """
    name, equals, values = text.partition("=")
    if not equals or not name.strip():
        raise refusal(f"sweep {show(text)}: give a name and its values, as beta=1,2,4")
    name = field_of(recipe, name.strip())
    _check_axis(name)
    if not values.strip():
        raise refusal(f"sweep {show(text)}: it names no value; give some, as {name}=1,2,4")
    return name, [_read(recipe, name, value.strip()) for value in values.split(",")]


def _read(recipe: Recipe, name: str, text: str) -> Any:
    owner = _owners(recipe)[name]
    with suppress(PyvaeError):
        return admitted(owner, name, text)
    return admitted(owner, name, _plain(text))


def _plain(text: str) -> Any:
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    for number in (int, float):
        with suppress(ValueError):
            return number(text)
    return text


def field_of(recipe: Recipe, name: str) -> str:
    """The field of a recipe or of its objective that a name is of, whether written with ``-`` or ``_``.

    Raises:
        RecipeError: there is none.
    """
    found, known = name.replace("-", "_"), _owners(recipe)
    if found not in known:
        near = get_close_matches(found, known, n=1)
        meant = f" (did you mean {near[0]}?)" if near else ""
        raise refusal(
            f"{type(recipe.objective).__name__} has no setting {show(name)}{meant}: there are {', '.join(known)}"
        )
    return found


def vary(recipe: Recipe, settings: Mapping[str, Any]) -> Recipe:
    """The recipe with other values of some fields, its own and those of its objective, by their names.

    Raises:
        RecipeError: it has no such field, or the value cannot be.
    """
    own: dict[str, Any] = {}
    objective: dict[str, Any] = {}
    for name, value in settings.items():
        name = field_of(recipe, name)
        (own if _owners(recipe)[name] is Recipe else objective)[name] = value
    # all at once: one value may allow another
    return replace(recipe, objective=replace(recipe.objective, **objective), **own)


def directory_of(settings: Mapping[str, Any], seed: int | None = None) -> str:
    """The directory of a variation below that of all: ``beta-4-lr-0.0001/seed-3``, or a part of that."""
    swept = "-".join(f"{name.replace('_', '-')}-{_written(value)}" for name, value in settings.items())
    return "/".join([part for part in (swept, "" if seed is None else f"seed-{seed}") if part])


def _written(value: Any) -> str:
    if isinstance(value, float):
        # as a user writes it, unless digits would be lost
        return short if float(short := f"{value:g}") == value else repr(value)
    if isinstance(value, Source):
        return f"{value.file.removesuffix('.py')}-{value.name}"
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)


def expand(
    recipe: Recipe, sweeps: Sequence[tuple[str, Sequence[Any]]], seeds: Sequence[int] | None = None
) -> list[Variation]:
    """The product of all sweeps and seeds, the seeds fastest.

    Args:
        recipe: what they vary.
        sweeps: name and values of each.
        seeds: None for that of the recipe, which then has no directory.

    Raises:
        RecipeError: a sweep has an unknown name, no value, or one that cannot be; something stands there twice; or
            there are more than ``MOST``.
    """
    axes: dict[str, list[Any]] = {}
    for given, values in sweeps:
        name = field_of(recipe, given)
        _check_axis(name)
        if name in axes:
            raise refusal(f"sweep {name}: it is swept twice; give all values at once")
        if not values:
            raise refusal(f"sweep {name}: it names no value")
        axes[name] = [admitted(_owners(recipe)[name], name, value) for value in values]
        if twice := _twice(axes[name]):
            raise refusal(f"sweep {name}: {show(twice[0])} stands there twice")
    numbers = (recipe.seed,) if seeds is None else check_seeds(seeds)
    count = len(numbers)
    for values in axes.values():
        count *= len(values)
    if count > MOST:
        raise refusal(f"{count:,} runs: at most {MOST:,} can be named at once; sweep fewer values or seeds")
    found = []
    for point in product(*axes.values()):
        settings = dict(zip(axes, point, strict=True))
        varied = vary(recipe, settings)
        found += [
            Variation(
                directory_of(settings, None if seeds is None else seed), settings, replace(varied, seed=seed)
            )
            for seed in numbers
        ]
    if twice := _twice([each.name for each in found]):
        raise refusal(f"two runs would have the directory {twice[0]}: name their settings otherwise")
    return found


def _owners(recipe: Recipe) -> dict[str, type]:
    """Whose each field is that can be set, the objective's first."""
    objective = {field.name: type(recipe.objective) for field in fields(recipe.objective)}
    return objective | {field.name: Recipe for field in fields(recipe) if field.name != "objective"}


def _check_axis(name: str) -> None:
    if name in _NO_AXES:
        raise refusal(f"sweep {name}: it cannot be swept: {_NO_AXES[name]}")


def _twice(values: Sequence[Any]) -> list[Any]:
    """Those that stand there more than once."""
    seen: set[Any] = set()
    return [value for value in values if value in seen or seen.add(value)]  # type: ignore[func-returns-value]
