"""Which runs may share their steps."""

from collections.abc import Hashable
from dataclasses import fields
from typing import Any

from pyvae.engine.recipe import Recipe

_OWN = ("objective", "seed", "lr")
_STRUCTURE = ("adaptive_window", "discriminator_layers", "discriminator_width")


def shape_of(recipe: Recipe) -> tuple[Hashable, ...]:
    """What recipes must have in common to stand in one ensemble: all but the seed, the rate and the numbers of the
    objective."""
    objective: Any = recipe.objective
    own = [getattr(recipe, f.name) for f in fields(Recipe) if f.name not in _OWN]
    kept = [
        (f.name, value)
        for f in fields(objective)
        if not isinstance(value := getattr(objective, f.name), int | float) or f.name in _STRUCTURE
    ]
    return (*own, type(objective).__name__, *kept)
