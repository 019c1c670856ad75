"""Runs that are to be trained, with their data: all that can be refused before the first step has been."""

import itertools
import logging
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import torch

from pyvae.bounds import show
from pyvae.data.dataset import Dataset
from pyvae.engine.adversarial import check_compile
from pyvae.engine.course import Outcome
from pyvae.engine.device import device_named
from pyvae.engine.files import whole_path
from pyvae.engine.grid import expand
from pyvae.engine.loop import train, train_together
from pyvae.engine.opening import open_data
from pyvae.engine.recipe import Recipe
from pyvae.engine.run import RunDirectory
from pyvae.engine.trainer import check_data
from pyvae.errors import PyvaeError, RunError

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Training:
    """Runs that may be trained."""

    runs: list[RunDirectory]
    many: bool
    """Whether they are of ``seeds`` or ``sweep``, even if it is one."""
    dataset: Dataset
    device: torch.device
    options: Mapping[str, Any]

    def train(self) -> list[Outcome]:
        """Train them all; how each stands then.

        Raises:
            RunError, RecipeError: as :func:`pyvae.engine.loop.train` and :func:`pyvae.engine.loop.train_together`.
        """
        for line in dict.fromkeys(line for run in self.runs for line in _cut_short(run.recipe)):
            _LOG.warning(line)
        if self.many:
            return train_together(self.runs, self.dataset, self.device, **self.options)
        return [train(self.runs[0], self.dataset, self.device, **self.options)]


def prepare(
    recipe: Recipe,
    out: Path,
    *,
    seeds: Sequence[int] | None = None,
    sweeps: Sequence[tuple[str, Sequence[Any]]] | None = None,
    device: str = "auto",
    log_every: int = 100,
    checkpoint_seconds: float = 60.0,
    in_memory: bool = True,
    capture: bool = True,
    compile: bool = False,
) -> Training:
    """What :func:`pyvae.train` and ``pyvae train`` train, with its data; options as there.

    Raises:
        PyvaeError: it cannot be trained, or not into ``out``.
    """
    check_intervals(log_every, checkpoint_seconds)
    where = device_named(device)
    many = seeds is not None or sweeps is not None
    runs = _runs_of(recipe, whole_path(out), sweeps or (), seeds, many)
    dataset = open_data(recipe, in_memory=in_memory)
    for run in runs:
        check_data(run.recipe, dataset)
        check_compile(run.recipe, compile)
    options = {
        "log_every": int(log_every),
        "checkpoint_seconds": checkpoint_seconds,
        "capture": capture,
        "compile": compile,
    }
    return Training(runs, many, dataset, where, options)


def check_intervals(log_every: int, checkpoint_seconds: float) -> None:
    """Raise PyvaeError unless they are steps between rows of a trace, and seconds between checkpoints."""
    if not isinstance(log_every, Integral):
        raise PyvaeError(f"--log-every must be an integer, got {show(log_every)}")
    if not isinstance(checkpoint_seconds, Real):
        raise PyvaeError(f"--checkpoint-seconds must be a number, got {show(checkpoint_seconds)}")
    if log_every < 1:
        raise PyvaeError(f"--log-every must be at least 1, got {log_every}")
    if not 0 <= checkpoint_seconds < math.inf:
        raise PyvaeError(f"--checkpoint-seconds must not be negative, got {checkpoint_seconds}")


def _runs_of(
    recipe: Recipe,
    out: Path,
    sweeps: Sequence[tuple[str, Sequence[Any]]],
    seeds: Sequence[int] | None,
    many: bool,
) -> list[RunDirectory]:
    if not many:
        return [RunDirectory.create_or_resume(out, recipe)]
    if seeds is not None and recipe.seed:
        raise PyvaeError(f"--seed {recipe.seed} and --seeds {_shown(seeds)}: give one of them")
    found = expand(recipe, sweeps, seeds)
    above = dict.fromkeys(path for each in found for path in (out, *_between(out, out / each.name)))
    for path in above:
        if os.path.lexists(path / "recipe.json"):
            where = f"--out {out} holds a run" if path == out else f"{path}, in --out, is a run"
            raise RunError(f"{where}: name another directory for the runs of --seeds and --sweep")
    return [RunDirectory.create_or_resume(out / each.name, each.recipe) for each in found]


def _shown(seeds: Sequence[int]) -> str:
    first, last = seeds[0], seeds[-1]
    if len(seeds) > 1 and list(seeds) == list(range(first, last + 1)):
        return f"{first}-{last}"
    return ",".join(map(str, seeds))


def _between(top: Path, path: Path) -> Iterator[Path]:
    """The directories that ``path`` lies in, below ``top``."""
    return itertools.takewhile(lambda each: each != top, path.parents)


def _cut_short(recipe: Recipe) -> Iterator[str]:
    """A line for each schedule that goes on after the last step."""
    for name in ("annealing_steps", "capacity_steps"):
        length, option = getattr(recipe.objective, name, 0), name.replace("_", "-")
        # of an objective of a user's own it may be anything
        if isinstance(length, int) and length > recipe.steps:
            yield (
                f"the run ends after {recipe.steps:,} steps of a schedule of {length:,}: --{option} sets it"
            )
