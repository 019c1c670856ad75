"""Models packed into groups, each of which a device trains side by side."""

import copy
import heapq
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch

from pyvae.data.dataset import Dataset
from pyvae.data.shapes3d import Shapes3D
from pyvae.engine.arithmetic import check_precision
from pyvae.engine.fused.supports import settled
from pyvae.engine.recipe import Recipe
from pyvae.engine.together import shape_of
from pyvae.engine.trainer import check_data
from pyvae.studies.card import relative_rate
from pyvae.studies.footprint import Images, member_bytes
from pyvae.studies.plan import Model

MOST = 64
"""Members of a group: at 64 the measured rate has flattened, and a lost worker costs no more than these."""
_NEAR = 1.02
"""A smaller group is taken where it takes at most so much longer: its results come sooner."""
_SHARE_OF_MEMORY = 0.8
"""The rest is for what captured graphs, libraries and scoring take."""

Group = tuple[Model, ...]
Shape = tuple[Hashable, ...]


class Fit(NamedTuple):
    """How a device trains models of one shape."""

    recipe: Recipe
    """Of one of them, with the engine that trains it."""
    images: Images
    most: int
    """Members side by side; 1 for the torch engine."""


def groups_of(
    models: Sequence[Model], load: Callable[[Recipe], Dataset], device: torch.device, *, places: int = 1
) -> list[Group]:
    """Models of a study in the groups that a device trains side by side, in the order to train them in.

    Args:
        models: in the order of the study.
        load: the data of a recipe.
        device: that trains them, or one like those that do.
        places: devices, or parts of them, that work at the same time.

    Raises:
        RecipeError: a recipe cannot be trained on its data or on this device.
        DataError: data cannot be read.
    """
    return pack(models, fits_of(models, load, device), places=places)


def fits_of(
    models: Sequence[Model], load: Callable[[Recipe], Dataset], device: torch.device
) -> dict[Shape, Fit]:
    """How a device trains the models of each shape. It may be asked of one process, and used in another.

    Raises:
        RecipeError: a recipe cannot be trained on its data or on this device.
        DataError: data cannot be read.
    """
    return {shape: fit_on(recipe, dataset, device) for shape, recipe, dataset in each_shape(models, load)}


def each_shape(
    models: Sequence[Model], load: Callable[[Recipe], Dataset]
) -> Iterable[tuple[Shape, Recipe, Dataset]]:
    """One recipe of each shape with its data; data set by data set, of which one is held at a time."""
    shapes: dict[Shape, Recipe] = {}
    for model in models:
        shapes.setdefault(shape_of(model.recipe), model.recipe)
    by_data: dict[Hashable, list[tuple[Shape, Recipe]]] = {}
    for shape, recipe in shapes.items():
        source = recipe.data, recipe.image_size, recipe.channels, recipe.crop, recipe.corrupt
        by_data.setdefault(source, []).append((shape, recipe))
    for found in by_data.values():
        dataset = load(found[0][1])
        for shape, recipe in found:
            yield shape, recipe, dataset


def fit_on(recipe: Recipe, dataset: Dataset, device: torch.device) -> Fit:
    """How a device trains models of a recipe's shape.

    Raises:
        RecipeError: it cannot.
    """
    check_data(recipe, dataset)
    recipe = settled(recipe, in_memory(dataset), device)
    check_precision(recipe, device)
    images = Images.of(dataset)
    # on a CPU members would only take turns
    together = recipe.engine == "fused" and device.type == "cuda"
    most = most_members(recipe, images, torch.cuda.mem_get_info(device)[0]) if together else 1
    return Fit(recipe, images, most)


def in_memory(dataset: Dataset) -> Dataset:
    """The data set as it looks once its images are in memory, where they go before training; holds none of them."""
    if not isinstance(dataset, Shapes3D) or dataset.pixels is not None:
        return dataset
    full = copy.copy(dataset)
    full.pixels = torch.empty((len(dataset), *dataset.image_shape), dtype=torch.uint8, device="meta")
    return full


def pack(models: Sequence[Model], fits: Mapping[Shape, Fit], *, places: int = 1) -> list[Group]:
    """Models of one shape in groups as large as pays.

    Groups hold all settings of their methods with a few seeds each, and stand in the order of these seeds: a study
    that is not through shows every method at every setting already.

    Args:
        models: of a study, in its order.
        fits: of each shape, as :func:`fits_of` finds them.
        places: devices, or parts of them, that work at the same time. Groups are made smaller where some of them
            would else have nothing to do.
    """
    shapes: dict[Shape, list[int]] = {}
    repeats = _repeats(models)
    for at, model in enumerate(models):
        shapes.setdefault(shape_of(model.recipe), []).append(at)
    limits = [min(fits[shape].most, MOST) for shape in shapes]
    members = [sorted(ats, key=lambda at: (repeats[at], at)) for ats in shapes.values()]
    sizes = range(1, MOST + 1)
    times = [
        _time(
            [
                (len(ats), min(size, limit), models[ats[0]].recipe.steps)
                for ats, limit in zip(members, limits, strict=True)
            ],
            places,
        )
        for size in sizes
    ]
    best = next(size for size, time in zip(sizes, times, strict=True) if time <= _NEAR * min(times))
    groups = [
        part for ats, limit in zip(members, limits, strict=True) for part in _evenly(ats, min(best, limit))
    ]
    groups.sort(key=lambda part: (repeats[part[0]], part[0]))
    return [tuple(models[at] for at in part) for part in groups]


def most_members(recipe: Recipe, images: Images, memory: int) -> int:
    """Members of the fused engine that so many bytes of a device hold beside the images; 1 at least.

    Raises:
        UnknownNetworkError: that engine does not know the network.
    """
    room = int(memory * _SHARE_OF_MEMORY) - images.bytes
    return max(min(room // member_bytes(recipe, images), MOST), 1)


def _repeats(models: Sequence[Model]) -> list[int]:
    """For each model, how many of its method, settings and data come before it."""
    seen: dict[object, int] = {}
    found = []
    for model in models:
        key = (model.method, model.recipe.data, *model.settings.values())
        found.append(seen.get(key, 0))
        seen[key] = found[-1] + 1
    return found


def _time(shapes: Sequence[tuple[int, int, int]], places: int) -> float:
    """When the last of ``places`` is through with groups of (models, members, steps), the longest first; in units of
    what a step of one model alone takes."""
    lengths = []
    for count, size, steps in shapes:
        parts = -(-count // size)
        for n in range(parts):
            members = count // parts + (n < count % parts)
            lengths.append(steps * members / relative_rate(members))
    free = [0.0] * max(min(places, len(lengths)), 1)
    for length in sorted(lengths, reverse=True):
        heapq.heapreplace(free, free[0] + length)
    return max(free)


def _evenly(ats: Sequence[int], size: int) -> list[Sequence[int]]:
    """In parts of at most ``size``, none more than one longer than another."""
    parts = -(-len(ats) // size)
    ends = [len(ats) * n // parts for n in range(parts + 1)]
    return [ats[a:b] for a, b in pairwise(ends)]
