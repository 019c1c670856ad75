"""``pyvae train``: a run of a recipe, or many."""

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro
from tyro.conf import OmitArgPrefixes

from pyvae.cli.invocation import interrupted, say
from pyvae.engine.recipe import Recipe
from pyvae.errors import PyvaeError, printable

if TYPE_CHECKING:
    from pyvae.engine.course import Outcome
    from pyvae.engine.run import RunDirectory


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
    objective: Annotated[str | None, tyro.conf.arg(metavar="NAME|FILE.py:NAME")] = None
    """Train another objective instead: a published one, with its own defaults, or one of your own as my_loss.py:Mine.
    Its fields are options of the command. `pyvae new objective my_loss.py` writes one to begin with."""
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
        from pyvae.engine.grid import parse_seeds, parse_sweep
        from pyvae.engine.prepare import prepare

        many = self.seeds is not None or bool(self.sweep)
        if many and self.profile:
            raise PyvaeError("--profile is of one run: leave --seeds and --sweep out")
        training = prepare(
            self.recipe,
            self.out,
            seeds=None if self.seeds is None else parse_seeds(self.seeds),
            sweeps=[parse_sweep(self.recipe, each) for each in self.sweep] or None,
            device=self.device,
            log_every=self.log_every,
            checkpoint_seconds=self.checkpoint_seconds,
            in_memory=self.in_memory,
            capture=self.capture,
            compile=self.compile,
        )
        if self.profile:
            from pyvae.engine.profile import profile_steps

            folder = training.runs[0].path / "profile"
            check_writable(folder)
            say(profile_steps(self.recipe, training.dataset, training.device, folder).rstrip())
            return 0
        begun = time.monotonic()
        outcomes = training.train()
        seconds = time.monotonic() - begun
        for run, outcome in zip(training.runs, outcomes, strict=True):
            if outcome.failure is None:
                _say_trained(run, outcome)
            else:
                sys.stderr.write(f"pyvae: error: {printable(f'{run.path}: {outcome.failure}')}\n")
        if many:
            _say_all(training.runs, outcomes, seconds)
        if any(outcome.interrupted for outcome in outcomes):
            return interrupted()
        return int(any(outcome.failure is not None for outcome in outcomes))


def _say_trained(run: "RunDirectory", outcome: "Outcome") -> None:
    rate = f"{outcome.steps_per_second:,.1f} steps/s" if outcome.made else "none of them now"
    say(f"{printable(run.path)}: {outcome.step:,} of {run.recipe.steps:,} steps, {rate}")


def _say_all(runs: "Sequence[RunDirectory]", outcomes: "Sequence[Outcome]", seconds: float) -> None:
    made = sum(outcome.made for outcome in outcomes)
    ended = sum(outcome.step == run.recipe.steps for run, outcome in zip(runs, outcomes, strict=True))
    say(
        f"{ended:,} of {len(runs):,} models are trained; {made:,} model-steps in {seconds:,.1f} s, "
        f"{made / seconds:,.1f} model-steps/s"
    )
