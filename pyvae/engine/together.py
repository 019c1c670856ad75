"""Which runs may share steps."""

from collections.abc import Hashable
from dataclasses import fields

from pyvae.engine.fused.weighting import weighting_of
from pyvae.engine.recipe import Recipe

_OWN = {"objective", "seed", "lr", "lr_stage_steps", "keep_at"}
"""Fields of a recipe in which members may differ."""
_LENGTHS = {"annealing_steps", "cycles", "capacity_steps", "capacity_period", "adaptive_window"}
"""Integers of objectives that are numbers on the device, not sizes."""


def shape_of(recipe: Recipe) -> tuple[Hashable, ...]:
    """What runs that train side by side on one data set have in common; recipes of one shape may stand in one
    ensemble.

    Members may differ in their seed, in the learning rate and its stages, in the steps that are kept, and in every
    number of the objective; not in what it is made of, nor in any other field. An engine "auto" is not "fused": settle
    it first.
    """
    objective = recipe.objective
    structure = tuple(
        (field.name, value)
        for field in fields(objective)
        if not isinstance(value := getattr(objective, field.name), float | None)
        and field.name not in _LENGTHS
    )
    shared = tuple(
        (field.name, getattr(recipe, field.name)) for field in fields(recipe) if field.name not in _OWN
    )
    weighting = weighting_of(objective)
    # stages cost every member of an ensemble its dependent launches
    staged = recipe.lr_stage_steps is not None
    return type(objective).__name__, objective.source, structure, weighting.options, staged, shared
