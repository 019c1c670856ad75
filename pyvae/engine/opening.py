"""Data as a recipe names it, and runs with their data, from wherever both lie now."""

import logging
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from pyvae import data
from pyvae.data.dataset import Dataset
from pyvae.data.paths import NAMES, lies_there
from pyvae.data.shapes3d import Shapes3D
from pyvae.engine.recipe import Recipe
from pyvae.engine.run import RunDirectory
from pyvae.errors import DataError, RunError

_LOG = logging.getLogger(__name__)


def open_data(recipe: Recipe, *, in_memory: bool = False) -> Dataset:
    """The data that a recipe names; ``in_memory``: with the images of 3dshapes.h5 read.

    Raises:
        DataError: it cannot be read.
    """
    dataset = data.load(
        recipe.data,
        size=recipe.image_size,
        channels=recipe.channels,
        crop=recipe.crop,
        corrupt=recipe.corrupt,
    )
    if in_memory and isinstance(dataset, Shapes3D):
        dataset.to_memory()
    return dataset


def open_run(
    path: Path, place: str | None = None, own: Iterable[object] = ()
) -> tuple[RunDirectory, Dataset]:
    """A run with a checkpoint, and its data.

    Args:
        path: of its directory.
        place: where the data lies, if it is not where it lay when the run was made; other data is taken, with a
            warning.
        own: functions and classes of a user's own that it was trained with, which a file does not hold.

    Raises:
        RunError: there is no such run, it has no checkpoint, or its data is not where it was, or has changed.
        DataError: the data cannot be read.
    """
    run = RunDirectory.open(path, own)
    trained_on = run.newest_checkpoint().metadata["data"]
    if place is not None:
        run = RunDirectory(path, replace(run.recipe, data=place))
    try:
        dataset = open_data(run.recipe)
    except DataError as error:
        there = run.recipe.data
        if place is None and there not in NAMES and not lies_there(there):
            raise RunError(f"the data of {path} is not at {there} any more: say where with --data") from error
        raise
    if dataset.fingerprint != trained_on:
        found = f"{path} was trained on {trained_on}, but {run.recipe.data} holds {dataset.fingerprint}"
        if place is None:
            raise RunError(f"{found}: say with --data where the former is, or give the latter to take it")
        _LOG.warning("%s: the results are of the latter", found)
    return run, dataset
