"""What commands have in common: paths, devices, runs and data as they are named, and lines on the terminal."""

import logging
import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from pyvae.engine.recipe import Recipe
from pyvae.errors import DataError, PyvaeError, RunError

if TYPE_CHECKING:
    import torch

    from pyvae.data import Dataset
    from pyvae.engine.run import RunDirectory

_LOG = logging.getLogger(__name__)
INTERRUPTED = 130
"""Exit status."""


def whole_path(path: Path) -> Path:
    """A path with ``~`` written out, which a shell does not do behind ``--out=``."""
    try:
        return path.expanduser()
    except RuntimeError as error:
        raise PyvaeError(f"{path}: there is no such user here; write the path out") from error


def device_named(name: str) -> "torch.device":
    """The device of a name: "auto" is a GPU where there is one.

    Raises:
        PyvaeError: it cannot be used here.
    """
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        if device.type not in ("cpu", "cuda"):
            raise RuntimeError("there are cpu and cuda")
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise PyvaeError(
            f"--device {name} cannot be used here ({str(error).splitlines()[0]}): try --device cpu"
        ) from error
    return device


def load_data(recipe: Recipe) -> "Dataset":
    """The data that a recipe names."""
    from pyvae.data import load

    return load(
        recipe.data,
        size=recipe.image_size,
        channels=recipe.channels,
        crop=recipe.crop,
        corrupt=recipe.corrupt,
    )


def open_run(path: Path, data: str | None) -> tuple["RunDirectory", "Dataset"]:
    """A run and its data, from where it lay when the run was made, or from ``data``."""
    from pyvae.data.paths import NAMES, lies_there
    from pyvae.engine.run import RunDirectory

    run = RunDirectory.open(path := whole_path(path))
    trained_on = run.newest_checkpoint().metadata["data"]
    if data is not None:
        run = RunDirectory(path, replace(run.recipe, data=data))
    try:
        dataset = load_data(run.recipe)
    except DataError as error:
        there = run.recipe.data
        if data is None and there not in NAMES and not lies_there(there):
            raise RunError(f"the data of {path} is not at {there} any more: say where with --data") from error
        raise
    if dataset.fingerprint != trained_on:
        found = f"{path} was trained on {trained_on}, but {run.recipe.data} holds {dataset.fingerprint}"
        if data is None:
            raise RunError(f"{found}: say with --data where the former is, or give the latter to take it")
        _LOG.warning("%s: the results are of the latter", found)
    return run, dataset


def interrupted() -> int:
    """Say how to go on, and return the exit status."""
    say(f"interrupted and saved; go on with: {shlex.join(['pyvae', *sys.argv[1:]])}")
    return INTERRUPTED


def say(line: str) -> None:
    """A line of what a command has found."""
    sys.stdout.write(line + "\n")
