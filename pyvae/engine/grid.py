"""Seeds and hyperparameters that runs differ in, and the directories of such runs."""

import re
from collections.abc import Mapping
from dataclasses import fields, replace
from difflib import get_close_matches
from typing import Any

from pyvae.engine.recipe import Recipe
from pyvae.errors import PyvaeError, RecipeError

MOST_SEEDS = 100_000
_MOST_SEED = 2**64 - 1


def parse_seeds(text: str) -> tuple[int, ...]:
    """The seeds of ``"0-7,9"``: 0 to 7, and 9.

    Raises:
        RecipeError: another form, a seed of more than 64 bits, one named twice, or too many.
    """
    seeds: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"(\d{1,20})(?:-(\d{1,20}))?", part.strip(), re.ASCII)
        if match is None:
            raise RecipeError(f"seeds {text!r}: give them as 0-7, or 0-7,9")
        first = int(match[1])
        last = int(match[2] or first)
        if last < first or last > _MOST_SEED:
            raise RecipeError(f"seeds {text!r}: {part.strip()} goes from no seed to a later one below 2^64")
        if len(seeds) + last - first >= MOST_SEEDS:
            raise RecipeError(f"seeds {text!r}: more than {MOST_SEEDS:,}")
        seeds += range(first, last + 1)
    if len(set(seeds)) < len(seeds):
        raise RecipeError(f"seeds {text!r}: one of them is there twice")
    return tuple(seeds)


def vary(recipe: Recipe, settings: Mapping[str, Any]) -> Recipe:
    """The recipe with other values of some fields, of its own or of its objective, by name.

    Raises:
        RecipeError: it has no such field, or the field cannot be that; one line says so.
    """
    own = {f.name for f in fields(Recipe)} - {"objective"}
    of_objective = {f.name for f in fields(recipe.objective)}
    for name in settings:
        if name not in own | of_objective:
            near = get_close_matches(name, sorted(own | of_objective), 1)
            kind = type(recipe.objective).__name__
            told = f"did you mean {near[0]}?" if near else f"{kind} has {', '.join(sorted(of_objective))}"
            raise RecipeError(f"neither the recipe nor its {kind} has {name!r}: {told}")
    try:
        objective = replace(recipe.objective, **{k: v for k, v in settings.items() if k in of_objective})
        return replace(recipe, objective=objective, **{k: v for k, v in settings.items() if k in own})
    except PyvaeError as error:
        raise RecipeError(str(error)) from None


def directory_of(settings: Mapping[str, Any], seed: int | None) -> str:
    """``beta-4-lr-0.0001/seed-3``; without settings, or without a seed, the other part alone."""
    swept = "-".join(
        f"{name.replace('_', '-')}-{value:g}"
        if isinstance(value, float)
        else f"{name.replace('_', '-')}-{value}"
        for name, value in settings.items()
    )
    return "/".join([*([swept] if swept else []), *([] if seed is None else [f"seed-{seed}"])])
