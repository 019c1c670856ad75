"""``pyvae train``: a run of a recipe, or many."""

import itertools
import logging
import math
import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from tyro.conf import OmitArgPrefixes

from pyvae.cli.invocation import device_named, interrupted, load_data, say, whole_path
from pyvae.engine.recipe import Recipe
from pyvae.errors import PyvaeError, RunError, printable

if TYPE_CHECKING:
    import torch

    from pyvae.data import Dataset
    from pyvae.engine.course import Outcome
    from pyvae.engine.run import RunDirectory

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Train:
    """Train a recipe, or go on with its run where it stopped; or many runs of it, by --seeds and --sweep."""

    recipe: OmitArgPrefixes[Recipe]
    out: Path
    """Run directory, made or resumed; of many runs the directory that theirs lie in."""
    seeds: str | None = None
    """Train a run for each of these seeds, as 0-7 or 0-7,9: OUT/seed-3. On a GPU, runs that the fused engine knows
    make their steps together; all others, and all on a CPU, are trained one after another. Each becomes what it
    would alone."""
    sweep: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME=VALUE,..."), tyro.conf.UseAppendAction] = ()
    """Train a run for each value of a setting, as beta=1,2,4,8: OUT/beta-4. Give it again for another setting, and
    --seeds beside it: their product is trained, as OUT/beta-4-lr-0.0001/seed-3."""
    device: str = "auto"
    """"cpu", "cuda", "cuda:1", ..., or "auto": a GPU where there is one."""
    log_every: int = 100
    """Steps between rows of trace.csv."""
    checkpoint_seconds: float = 60.0
    """Seconds between checkpoints."""
    in_memory: bool = True
    """Hold the images of 3dshapes.h5 (5.9 GB) in memory; reading each batch from the file is far slower."""
    capture: bool = True
    """On a GPU, run several steps as one CUDA graph: faster, and the same results."""
    compile: bool = False
    """The networks through torch.compile; its rounding differs, so resume with the same choice."""
    profile: bool = False
    """Instead of training, profile 20 uncaptured steps: OUT/profile/trace.json and a table of kernels."""

    def __call__(self) -> int:
        from pyvae.engine.files import check_writable

        if self.log_every < 1:
            raise PyvaeError(f"--log-every must be at least 1, got {self.log_every}")
        if not 0 <= self.checkpoint_seconds < math.inf:
            raise PyvaeError(f"--checkpoint-seconds must not be negative, got {self.checkpoint_seconds}")
        device = device_named(self.device)
        runs = self._runs(whole_path(self.out))
        dataset = self._data([run.recipe for run in runs])
        if self.profile:
            from pyvae.engine.profile import profile_steps

            check_writable(runs[0].path / "profile")
            say(profile_steps(self.recipe, dataset, device, runs[0].path / "profile").rstrip())
            return 0
        for line in dict.fromkeys(line for run in runs for line in _cut_short(run.recipe)):
            _LOG.warning(line)
        if self._is_one:
            return self._train_one(runs[0], dataset, device)
        return self._train_many(runs, dataset, device)

    @property
    def _is_one(self) -> bool:
        return self.seeds is None and not self.sweep

    def _runs(self, out: Path) -> "list[RunDirectory]":
        """The run, or all that --seeds and --sweep name."""
        from pyvae.engine.grid import expand, parse_seeds, parse_sweep
        from pyvae.engine.run import RunDirectory

        if self._is_one:
            return [RunDirectory.create_or_resume(out, self.recipe)]
        if self.profile:
            raise PyvaeError("--profile is of one run: leave --seeds and --sweep out")
        if self.seeds is not None and self.recipe.seed:
            raise PyvaeError(f"--seed {self.recipe.seed} and --seeds {self.seeds}: give one of them")
        seeds = None if self.seeds is None else parse_seeds(self.seeds)
        found = expand(self.recipe, [parse_sweep(self.recipe, each) for each in self.sweep], seeds)
        above = dict.fromkeys(path for each in found for path in (out, *_between(out, out / each.name)))
        for path in above:
            if os.path.lexists(path / "recipe.json"):
                where = f"--out {out} holds a run" if path == out else f"{path}, in --out, is a run"
                raise RunError(f"{where}: name another directory for the runs of --seeds and --sweep")
        return [RunDirectory.create_or_resume(out / each.name, each.recipe) for each in found]

    def _data(self, recipes: "Sequence[Recipe]") -> "Dataset":
        from pyvae.data.shapes3d import Shapes3D
        from pyvae.engine.adversarial import check_compile
        from pyvae.engine.trainer import check_data

        dataset = load_data(self.recipe)
        if self.in_memory and isinstance(dataset, Shapes3D):
            dataset.to_memory()
        for recipe in recipes:
            check_data(recipe, dataset)
            check_compile(recipe, self.compile)
        return dataset

    @property
    def _options(self) -> dict[str, Any]:
        names = ("log_every", "checkpoint_seconds", "capture", "compile")
        return {name: getattr(self, name) for name in names}

    def _train_one(self, run: "RunDirectory", dataset: "Dataset", device: "torch.device") -> int:
        from pyvae.engine.loop import train

        outcome = train(run, dataset, device, **self._options)
        _say_trained(run, outcome)
        return interrupted() if outcome.interrupted else 0

    def _train_many(self, runs: "Sequence[RunDirectory]", dataset: "Dataset", device: "torch.device") -> int:
        from pyvae.engine.loop import train_together

        begun = time.monotonic()
        outcomes = train_together(runs, dataset, device, **self._options)
        seconds = time.monotonic() - begun
        for run, outcome in zip(runs, outcomes, strict=True):
            if outcome.failure is None:
                _say_trained(run, outcome)
            else:
                sys.stderr.write(f"pyvae: error: {printable(f'{run.path}: {outcome.failure}')}\n")
        made = sum(outcome.made for outcome in outcomes)
        ended = sum(outcome.step == run.recipe.steps for run, outcome in zip(runs, outcomes, strict=True))
        say(
            f"{ended:,} of {len(runs):,} models are trained; {made:,} model-steps in {seconds:,.1f} s, "
            f"{made / seconds:,.1f} model-steps/s"
        )
        if any(outcome.interrupted for outcome in outcomes):
            return interrupted()
        return int(any(outcome.failure is not None for outcome in outcomes))


def _between(top: Path, path: Path) -> Iterator[Path]:
    """The directories that ``path`` lies in, below ``top``."""
    return itertools.takewhile(lambda each: each != top, path.parents)


def _cut_short(recipe: Recipe) -> Iterator[str]:
    """A line for each schedule that goes on after the last step."""
    for name in ("annealing_steps", "capacity_steps"):
        length, option = getattr(recipe.objective, name, 0), name.replace("_", "-")
        if length > recipe.steps:
            yield (
                f"the run ends after {recipe.steps:,} steps of a schedule of {length:,}: --{option} sets it"
            )


def _say_trained(run: "RunDirectory", outcome: "Outcome") -> None:
    rate = f"{outcome.steps_per_second:,.1f} steps/s" if outcome.made else "none of them now"
    say(f"{printable(run.path)}: {outcome.step:,} of {run.recipe.steps:,} steps, {rate}")
