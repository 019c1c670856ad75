"""Bring the models of a study to their ends, from wherever they stand."""

import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple, Protocol

from pyvae.data.paths import absolute
from pyvae.engine import checkpoint
from pyvae.engine.files import check_writable, clear_leftovers, make_directory, set_aside
from pyvae.engine.lock import lock
from pyvae.engine.run import RunDirectory
from pyvae.errors import PyvaeError, RunError, printable
from pyvae.studies.here import Here
from pyvae.studies.plan import Model, StudyPlan, keep_source
from pyvae.studies.results import Row, is_of, read_results, write_results
from pyvae.studies.work import ModelOutcome, Scored, Settings, failed_row

_LOG = logging.getLogger(__name__)
_WRITE_SECONDS = 1.0
RESULTS = "results.csv"
Groups = Sequence[Sequence[Model]]


class Place(Protocol):
    """Where the work of a study is done."""

    def open(self, out: Path, settings: Settings) -> None:
        """Be ready to work on the study in the directory ``out``, an absolute path.

        Raises:
            PyvaeError: it cannot be.
        """

    def pack(self, models: Sequence[Model]) -> Groups:
        """Models that are to be trained in groups for its devices, in the order to train them in.

        Raises:
            PyvaeError: a recipe cannot be trained on its data or there, or data cannot be read.
        """

    def train(self, groups: Groups) -> Iterator[list[ModelOutcome]]:
        """Train groups, and yield the outcomes of each as it ends; also nothing, now and then."""

    def score(self, model: Model) -> None:
        """Have a trained model scored; this returns at once."""

    def scored(self, *, wait: bool) -> Iterator[Scored]:
        """Those that have been scored since; ``wait``: all that were to be."""

    def close(self, *, finished: bool) -> None:
        """End what is being worked on, after its models were saved if it was not ``finished``."""


class StudyEnd(NamedTuple):
    """How a call of :func:`run_study` ended."""

    rows: list[Row]
    """What is known of its models, in the order of the plan."""
    problems: list[str]
    """A line for each model that could not be trained or scored."""
    interrupted: bool
    """Whether a signal ended it; what was trained is saved."""


def run_study(
    plan: StudyPlan,
    out: Path,
    settings: Settings | None = None,
    place: Place | None = None,
    *,
    told: Callable[[Row], None] = lambda row: None,
) -> StudyEnd:
    """Train what is not trained, score what is not scored, and keep ``out/results.csv`` of all that is.

    Whatever ended an earlier call, this goes on where that stood: models that are in ``results.csv`` as they are asked
    for are not touched, those that are trained are only scored, and others go on from their checkpoints.

    Args:
        plan: its models, and what is scored.
        out: directory of the study.
        settings: how; the plan's metrics take the place of its own.
        place: where; by default in this process.
        told: called with each row, once known, those of earlier calls among them.

    Raises:
        RunError: the directory cannot be used, or another process works on the study.
        OutOfRoomError: the disk is full; the same call goes on once there is room.
        PyvaeError: the place cannot be reached, or is gone; the same call goes on.
    """
    settings = replace(settings or Settings(), metrics=plan.metrics, without=plan.without, images=plan.images)
    out = Path(os.path.abspath(out))
    if (out / "recipe.json").exists():
        raise RunError(f"{out} holds a run: name another directory for the study")
    check_writable(out)
    make_directory(out)
    with _held(out):
        clear_leftovers(out)
        if plan.source:
            keep_source(plan, out)
        work = _Work(plan, out, settings, told)
        work.stand()
        try:
            interrupted = work.bring_to_end(Here() if place is None else place)
        except KeyboardInterrupt:
            interrupted = True
        finally:
            work.table.write()
        return StudyEnd(work.table.known(), work.problems(), interrupted)


@contextmanager
def _held(out: Path) -> Iterator[None]:
    with lock(out / ".study-lock", wait=False) as held:
        if not held:
            raise RunError(
                f"another process is at work on the study in {out}: wait for it, or end it; it saves what it has"
            )
        yield


class _Work:
    """What is known of a study's models, and what is left to do."""

    def __init__(self, plan: StudyPlan, out: Path, settings: Settings, told: Callable[[Row], None]) -> None:
        self._models = {model.name: model for model in plan.models}
        self._out, self._settings, self._told = out, settings, told
        self._problems: dict[str, list[str]] = {}
        self._to_train: list[Model] = []
        self._to_score: list[Model] = []
        self.table = _Table(out / RESULTS, list(self._models))

    def stand(self) -> None:
        """Find out what there is, without reading any weights."""
        earlier = self.table.read()
        for model in self._models.values():
            row = earlier.get(model.name)
            written = _is_written(self._out / model.name, model)
            if written and row is not None and self._is_known(row, model):
                self._add(row)
            elif written and _steps(self._out / model.name) == model.recipe.steps:
                self._to_score.append(model)
            else:
                self._to_train.append(model)
        if earlier or self._to_score:
            _LOG.info(
                "%s of %s models are finished, %s more are trained and not yet scored",
                f"{len(self.table.known()):,}",
                f"{len(self._models):,}",
                f"{len(self._to_score):,}",
            )

    def _is_known(self, row: Row, model: Model) -> bool:
        """Whether a row says of a model all that is asked."""
        recipe = model.recipe
        if not is_of(row, model.method, recipe):
            return False
        if row.failure is not None:
            return True
        scored = {name.partition(".")[0] for name in row.scores}
        return (
            row.steps_done == recipe.steps
            and (row.without, row.images) == (" ".join(self._settings.without), self._settings.images)
            and row.scoring_seed == self._settings.seed
            and scored >= set(self._settings.metrics)
            # of how many samples and of which images, metrics.json says
            and not self._settings.samples
        )

    def bring_to_end(self, place: Place) -> bool:
        """Whether a signal ended it before."""
        if not self._to_train and not self._to_score:
            return False
        finished = False
        try:
            place.open(self._out, self._settings)
            for model in self._to_score:
                place.score(model)
            groups = place.pack(self._to_train) if self._to_train else []
            for outcomes in place.train(groups):
                self._take(outcomes, place)
                self._take_scored(place, wait=False)
                if any(outcome.interrupted for outcome in outcomes):
                    return True
            self._take_scored(place, wait=True)
            finished = True
        finally:
            place.close(finished=finished)
        return False

    def _take(self, outcomes: Sequence[ModelOutcome], place: Place) -> None:
        for outcome in outcomes:
            model = self._models[outcome.model]
            if outcome.failure is not None:
                self._add(failed_row(model, self._out, outcome.failure))
            elif outcome.error is not None:
                # one line for all that have one cause
                self._problem(model.name, outcome.error.replace(str(self._out / model.name), "its directory"))
            elif not outcome.interrupted:
                place.score(model)

    def _take_scored(self, place: Place, *, wait: bool) -> None:
        for scored in place.scored(wait=wait):
            if scored.row is not None:
                self._add(scored.row)
            else:
                self._problem(scored.model, scored.error or "")

    def _add(self, row: Row) -> None:
        self.table.add(row)
        self._told(row)
        if row.failure is not None:
            self._problem(row.model, f"{row.failure}; remove {self._out / row.model} to train it anew")

    def _problem(self, model: str, line: str) -> None:
        self._problems.setdefault(line, []).append(model)

    def problems(self) -> list[str]:
        """Each line once, with the models that it is of."""
        found = []
        for line, models in self._problems.items():
            others = f" and {len(models) - 1:,} more" if len(models) > 1 else ""
            found.append(printable(f"{models[0]}{others}: {line}"))
        return found


def _is_written(path: Path, model: Model) -> bool:
    """Whether a run is there whose ``recipe.json`` is a model's; what else is there, training judges."""
    try:
        return RunDirectory.open(path).recipe == replace(model.recipe, data=absolute(model.recipe.data))
    except PyvaeError:
        return False


def _steps(path: Path) -> int | None:
    described = checkpoint.newest_description(path / "checkpoints")
    return None if described is None else described["step"]


class _Table:
    """``results.csv``, written as rows come, but no more than once in a second."""

    def __init__(self, path: Path, models: Sequence[str]) -> None:
        self._path = path
        self._models = models
        self._rows: dict[str, Row] = {}
        self._unwritten = False
        self._written = time.monotonic()

    def read(self) -> dict[str, Row]:
        """Rows by model; a file that is no table is kept under another name."""
        if not self._path.exists():
            return {}
        try:
            return {row.model: row for row in read_results(self._path)}
        except RunError as error:
            if isinstance(error.__cause__, OSError):
                raise
            kept = set_aside(self._path)
            _LOG.warning("%s; it is kept as %s, and made again", error, kept.name)
            return {}

    def add(self, row: Row) -> None:
        self._rows[row.model] = row
        self._unwritten = True
        if time.monotonic() - self._written >= _WRITE_SECONDS:
            self.write()

    def known(self) -> list[Row]:
        """Rows in the order of the plan."""
        return [self._rows[name] for name in self._models if name in self._rows]

    def write(self) -> None:
        """Write what has come since.

        Raises:
            RunError: it cannot be written.
        """
        if self._unwritten:
            write_results(self._path, self.known())
            self._unwritten = False
            self._written = time.monotonic()
