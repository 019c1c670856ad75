"""``pyvae study``: many models from one file."""

import logging
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tyro.conf import Positional

from pyvae.cli.invocation import interrupted, say
from pyvae.engine.device import device_named
from pyvae.engine.files import whole_path
from pyvae.errors import PyvaeError, RecipeError, printable

if TYPE_CHECKING:
    from pyvae.studies.plan import StudyPlan
    from pyvae.studies.runner import StudyEnd
    from pyvae.studies.work import Settings

_LOG = logging.getLogger(__name__)
_MOST_DEVICES = 100_000


@dataclass(frozen=True)
class Study:
    """Train and score all models that a file asks for, or go on with them, and write results.csv and report.html; see
    docs/studies.md and examples/studies."""

    file: Positional[Path]
    """The study, a TOML file; or the directory of one that was begun, whose own copy of the file is then taken."""
    out: Path | None = None
    """Directory of the runs, METHOD/SETTING/seed-N, of results.csv and of the report; default runs/NAME of the file."""
    plan: bool = False
    """Only print what it takes: models, groups, steps, bytes and time."""
    report: bool = False
    """Only write the report of what is there."""
    rate: float | None = None
    """For --plan, steps a second of all models of a group; default: measured here, in a few seconds for each kind of
    model."""
    devices: int = 1
    """For --plan, devices that work at the same time."""
    ray: str | None = None
    """Run it on a Ray cluster: its ADDRESS, or "local" for one on this machine. `pip install 'pyvae-engine[ray]'`."""
    num_gpus: float | None = None
    """On Ray, GPUs of a group, 0.5 for two groups on each."""
    num_cpus: float | None = None
    """On Ray, CPU cores of a group."""
    data: str | None = None
    """Where the data lies, if it is not where the file says; for studies of one data set."""
    device: str = "auto"
    """"cpu", "cuda", "cuda:1", ..., or "auto": a GPU where there is one."""
    log_every: int = 100
    """Steps between rows of each trace.csv."""
    checkpoint_seconds: float = 60.0
    """Seconds between checkpoints."""
    seed: int = 0
    """Of what the metrics draw; models that were scored with another are scored anew."""
    capture: bool = True
    """On a GPU, run several steps as one CUDA graph: faster, and the same results."""

    def __call__(self) -> int:
        from pyvae.studies.outlook import IN_FILE

        try:
            return self._call()
        except RecipeError as error:
            raise RecipeError(f"{error}{IN_FILE}") from None

    def _call(self) -> int:
        from pyvae.engine.files import check_writable
        from pyvae.studies.plan import SOURCE, read_plan

        self._check()
        file = whole_path(self.file)
        if begun := file.is_dir():
            if self.out is not None:
                raise PyvaeError(
                    f"--out {self.out}: {file} is the directory of a study already; leave --out out"
                )
            if not (file / SOURCE).exists():
                raise PyvaeError(
                    f"{file} holds no study (no {SOURCE}): give a study's file, and --out {file}"
                )
        plan = read_plan(file / SOURCE if begun else file)
        out = file if begun else whole_path(self.out) if self.out else Path("runs") / file.stem
        if self.data is not None and len({model.recipe.data for model in plan.models}) > 1:
            raise PyvaeError(f"--data {self.data}: the study has several data sets; name them in {file}")
        if self.plan:
            return self._say_plan(plan, out)
        check_writable(out)
        status = 0
        if not self.report:
            device_named(self.device)
            end = self._run(plan, out)
            for line in end.problems:
                _LOG.warning(line)
            if end.interrupted:
                return interrupted()
            status = 1 if end.problems else 0
            if not end.rows:
                return status
        self._report(plan, out)
        return status

    def _check(self) -> None:
        from pyvae.engine.prepare import check_intervals

        if self.plan and self.report:
            raise PyvaeError("--plan and --report: give one of them")
        if self.rate is not None and not 0 < self.rate < math.inf:
            raise PyvaeError(f"--rate must be above 0, got {self.rate}")
        if not 1 <= self.devices <= _MOST_DEVICES:
            raise PyvaeError(
                f"--devices must be at least 1 and at most {_MOST_DEVICES:,}, got {self.devices}"
            )
        for name, given in (("--rate", self.rate is not None), ("--devices", self.devices != 1)):
            if given and not self.plan:
                raise PyvaeError(f"{name} is of --plan: give both, or leave it out")
        for name, value in (("--num-gpus", self.num_gpus), ("--num-cpus", self.num_cpus)):
            if value is None:
                continue
            if self.ray is None:
                raise PyvaeError(f"{name} is of Ray: give --ray local, or --ray ADDRESS")
            if not 0 <= value < math.inf:
                raise PyvaeError(f"{name} must not be negative, got {value}")
        check_intervals(self.log_every, self.checkpoint_seconds)
        if not 0 <= self.seed < 2**64:
            raise PyvaeError(f"--seed must be from 0 to 2^64 - 1, got {self.seed}")

    def _settings(self, plan: "StudyPlan", *, in_memory: bool = True) -> "Settings":
        from pyvae.studies.work import Settings

        return Settings(
            device=self.device,
            data=self.data,
            in_memory=in_memory,
            log_every=self.log_every,
            checkpoint_seconds=self.checkpoint_seconds,
            capture=self.capture,
            metrics=plan.metrics,
            without=plan.without,
            seed=self.seed,
        )

    def _say_plan(self, plan: "StudyPlan", out: Path) -> int:
        from pyvae.studies.outlook import describe
        from pyvae.studies.work import dataset_of

        settings = self._settings(plan, in_memory=False)
        say(
            describe(
                plan,
                lambda recipe: dataset_of(recipe, settings),
                device_named(self.device),
                out,
                places=self.devices,
                rate=self.rate,
                log_every=self.log_every,
            )
        )
        return 0

    def _run(self, plan: "StudyPlan", out: Path) -> "StudyEnd":
        """Train and score all models."""
        from pyvae.studies.runner import run_study

        place = None
        if self.ray is not None:
            from pyvae.studies.on_ray import RayPlace

            place = RayPlace(self.ray, num_gpus=self.num_gpus, num_cpus=self.num_cpus)
        return run_study(plan, out, self._settings(plan), place)

    def _report(self, plan: "StudyPlan", out: Path) -> None:
        from pyvae.report.comparison import write_comparison
        from pyvae.studies.work import dataset_of

        settings = self._settings(plan)
        page = write_comparison(plan, out, open_data=lambda recipe: dataset_of(recipe, settings))
        say(printable(page))
