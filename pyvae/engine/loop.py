"""Run recipes in run directories, from wherever they stand to their ends."""

import logging
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from types import FrameType
from typing import NamedTuple

import torch

from pyvae.base.allocator import keep_large_buffers
from pyvae.base.source import loading
from pyvae.data.dataset import Dataset
from pyvae.engine.arithmetic import check_precision, settle_arithmetic
from pyvae.engine.batches import fitting
from pyvae.engine.checkpoint import engine_of, newest_description
from pyvae.engine.course import Course, Outcome
from pyvae.engine.fused.room import member_bytes
from pyvae.engine.fused.supports import settled
from pyvae.engine.fused.trainer import FusedTrainer
from pyvae.engine.recipe import Recipe
from pyvae.engine.recorder import Begun, Recorder
from pyvae.engine.run import RunDirectory
from pyvae.engine.together import shape_of
from pyvae.engine.trainer import check_data
from pyvae.engine.training import training
from pyvae.errors import RecipeError, RunError

_LOG = logging.getLogger(__name__)
# the rest is for graphs, for copies of what is saved, and for others
_SHARE_OF_FREE_MEMORY = 0.5
AT_ONCE = 64
"""Members of an ensemble, which fill an H100; more would cost memory and open files."""


def train(
    run: RunDirectory,
    dataset: Dataset,
    device: torch.device,
    *,
    log_every: int = 100,
    checkpoint_seconds: float = 60.0,
    capture: bool = True,
    compile: bool = False,
) -> Outcome:
    """Train until the recipe's last step, or until SIGINT or SIGTERM, which saves first.

    Args:
        run: new, or one to resume: the result is equal bit for bit to that of an uninterrupted run.
        dataset: that of the recipe.
        device: to train on.
        log_every: steps between rows of the trace.
        checkpoint_seconds: time between checkpoints; 0 saves after every step.
        capture: on a GPU, run several steps as one CUDA graph; the results are the same.
        compile: the networks through torch.compile, which rounds otherwise.

    Raises:
        RunError: another process holds the run, the data is not what it was, more steps are done than the recipe
            has, a file cannot be written, or the loss is no longer finite (the last checkpoint is from before).
        RecipeError: the recipe cannot be trained on this data, or not on this device.
    """
    _check_loading()
    keep_large_buffers()
    options = _Options(log_every, checkpoint_seconds, capture, compile)
    with _held([run]):
        begun = _begun(run, dataset, device, compile, repair=True)
        course = _course([begun], dataset, device, options, run.recipe.steps, _refuse)
        with _signals() as signals:
            return course.train(signals)[0]


def train_together(
    runs: Sequence[RunDirectory],
    dataset: Dataset,
    device: torch.device,
    *,
    log_every: int = 100,
    checkpoint_seconds: float = 60.0,
    capture: bool = True,
    compile: bool = False,
    at_once: int = AT_ONCE,
) -> list[Outcome]:
    """Train runs on one data set until the last step of each, or until SIGINT or SIGTERM, which saves first.

    Those of one shape that the fused engine trains make their steps together, as one ensemble; the others are trained
    one after another. Each becomes what it would have become alone, bit for bit; those that are finished are left
    alone. A run with a value that is not finite stands still and is named, while the others go on.

    Args:
        runs: new, or begun, each perhaps at another step: those behind catch up first.
        dataset: that of all recipes.
        device: to train on.
        log_every: steps between rows of the traces.
        checkpoint_seconds: time between checkpoints, which are of one step for all of an ensemble.
        capture: on a GPU, run several steps of all members as one CUDA graph; the results are the same.
        compile: the networks through torch.compile, which rounds otherwise.
        at_once: the most members of an ensemble, where the device's memory has room for them.

    Returns:
        how each ended, in the order of ``runs``.

    Raises:
        RunError: as :func:`train`, but for a loss that is not finite; or two of the runs have one path. What is known
            before the first step is refused before anything is written.
        RecipeError: a recipe cannot be trained on this data, or not on this device.
    """
    _check_loading()
    keep_large_buffers()
    options = _Options(log_every, checkpoint_seconds, capture, compile)
    standing = _standing(runs, dataset, device, compile)
    groups: dict[object, list[int]] = {}
    for n, each in enumerate(standing):
        if not each.finished:
            groups.setdefault(each.shape or n, []).append(n)
    outcomes = {n: Outcome(each.step, False, 0.0) for n, each in enumerate(standing) if each.finished}
    portions: list[list[int]] = []
    for whole in groups.values():
        size = _size(at_once, runs[whole[0]].recipe, dataset, device) if len(whole) > 1 else 1
        portions += [whole[i : i + size] for i in range(0, len(whole), size)]
    compiled: tuple[object, ...] | None = None
    with _signals() as signals:
        for members in portions:
            if signals:
                break
            if compile and (shape := shape_of(runs[members[0]].recipe)) != compiled:
                # torch keeps few versions of a network's code, and refuses one more; runs of one shape need one
                torch.compiler.reset()
                compiled = shape
            if len(portions) > 1:
                _say_which([runs[n] for n in members], len(outcomes), len(runs))
            found = _train_group([runs[n] for n in members], dataset, device, options, signals)
            outcomes |= zip(members, found, strict=True)
    return [outcomes.get(n) or Outcome(each.step, True, 0.0) for n, each in enumerate(standing)]


def _check_loading() -> None:
    if (file := loading()) is not None:
        raise RunError(
            f'{file} trains while it is loaded for its code: put what trains below if __name__ == "__main__":'
        )


class _Options(NamedTuple):
    log_every: int
    checkpoint_seconds: float
    capture: bool
    compile: bool


@contextmanager
def _held(runs: Sequence[RunDirectory]) -> Iterator[None]:
    """Hold runs for training; their recipes are those of their directories, or may become so."""
    with ExitStack() as held:
        for run in runs:
            held.enter_context(run.locked())
        for run in runs:
            run.check_recipe()  # again, now that nobody else changes it
            run.clear_leftovers()
        yield


def _begun(
    run: RunDirectory, dataset: Dataset, device: torch.device, compile: bool, *, repair: bool
) -> Begun:
    """From where a run goes on.

    Raises:
        RunError: it cannot, with this recipe, data or engine.
        RecipeError: it cannot on this device.
    """
    # what is to be repaired is told when it is, not before
    saved = run.resumable(repair=repair, tell=repair)
    begun = None if saved is None else engine_of(saved.metadata)
    recipe = settled(run.recipe, dataset, device, compile=compile, begun=begun)
    if begun is not None and recipe.engine != begun:
        raise RunError(
            f"{run.path} was trained by the {begun} engine, and the {recipe.engine} one rounds otherwise: "
            f"--engine {begun}, or name another --out"
        )
    check_data(recipe, dataset)
    if saved is not None and saved.metadata["data"] != dataset.fingerprint:
        raise RunError(
            f"{run.path} was trained on {saved.metadata['data']}, but the data now is {dataset.fingerprint}: give the "
            "same data, or name another --out"
        )
    if saved is not None and saved.step > recipe.steps:
        raise RunError(
            f"{run.path} has made {saved.step:,} steps, more than --steps {recipe.steps}: give --steps {saved.step} or "
            "more, or name another --out"
        )
    if saved is None or saved.step < recipe.steps:  # a finished run is left alone
        check_precision(recipe, device, begun=saved is not None)
    return Begun(run, recipe, saved)


class _Standing(NamedTuple):
    """Where a run is before training."""

    step: int
    finished: bool
    shape: tuple[object, ...] | None
    """Of those who may share its steps; None where nobody can."""


def _standing(
    runs: Sequence[RunDirectory], dataset: Dataset, device: torch.device, compile: bool
) -> list[_Standing]:
    """Of every run, while nothing is written and nobody holds any.

    Raises:
        RunError, RecipeError: one of them cannot be trained.
    """
    known: dict[str, RunDirectory] = {}
    found = []
    for run in runs:
        if known.setdefault(os.path.realpath(run.path), run) is not run:
            raise RunError(f"{run.path} is named twice: each run needs a directory of its own")
        if _is_finished(run, dataset):
            found.append(_Standing(run.recipe.steps, True, None))
            continue
        if run.path.exists():
            with run.locked():
                pass
        try:
            begun = _begun(run, dataset, device, compile, repair=False)
        except RecipeError as error:
            raise RecipeError(f"{run.path}: {error}") from error
        together = begun.recipe.engine == "fused" and begun.step < run.recipe.steps
        found.append(_Standing(begun.step, False, shape_of(begun.recipe) if together else None))
    return found


def _is_finished(run: RunDirectory, dataset: Dataset) -> bool:
    """Whether there is nothing left to do, as far as a checkpoint's header says: of hundreds of runs, reading all
    weights would take minutes, and whoever evaluates one may hold it."""
    described = newest_description(run.checkpoints)
    return (
        described is not None
        and (described["step"], described["data"]) == (run.recipe.steps, dataset.fingerprint)
        # its recipe.json may be of a length, or of a place of the data, that is no longer asked for
        and run.is_written()
    )


def _size(at_once: int, recipe: Recipe, dataset: Dataset, device: torch.device) -> int:
    """Of an ensemble: ``at_once`` members, or as many as the device's memory has room for."""
    if device.type != "cuda":
        return at_once
    free, _ = torch.cuda.mem_get_info(device)
    store = fitting(dataset, device)
    # what torch keeps of ensembles that are gone
    free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    free -= 0 if store is None else store.nbytes
    room = int(_SHARE_OF_FREE_MEMORY * free) // member_bytes(
        recipe, dataset.image_shape[0], dataset.bits is not None
    )
    return max(min(at_once, room), 1)


def _say_which(runs: Sequence[RunDirectory], before: int, total: int) -> None:
    others = f" and {len(runs) - 1:,} others" if len(runs) > 1 else ""
    reached = f"{before + len(runs):,} of {total:,}"
    _LOG.info("%s%s: model %s", runs[0].path, others, f"{before + 1:,} to {reached}" if others else reached)


def _train_group(
    runs: Sequence[RunDirectory],
    dataset: Dataset,
    device: torch.device,
    options: _Options,
    signals: list[int],
) -> list[Outcome]:
    """Train runs that make their steps together, from wherever each of them stands."""
    total = runs[0].recipe.steps
    made = dict.fromkeys(range(len(runs)), 0)
    ended: dict[int, Outcome] = {}
    seconds, going = 0.0, list(range(len(runs)))
    with _held(runs):
        while going:
            begun = {n: _begun(runs[n], dataset, device, options.compile, repair=True) for n in going}
            ended |= {n: Outcome(each.step, True, 0.0) for n, each in begun.items()}
            lowest, *above = sorted({each.step for each in begun.values()})
            # a member's bits do not depend on who is beside it: those behind go alone until they have caught up
            behind = [n for n in going if begun[n].step == lowest]
            stop = above[0] if above else total
            course = _course([begun[n] for n in behind], dataset, device, options, stop, _say_failed)
            begun.clear()
            for n, outcome in zip(behind, course.train(signals), strict=True):
                ended[n] = outcome
                made[n] += outcome.made
            seconds += course.elapsed()
            del course  # the next one needs its memory
            going = [n for n in going if ended[n].failure is None]
            if signals or not above:
                break
    return [
        each._replace(
            interrupted=each.failure is None and each.step < total,
            steps_per_second=made[n] / seconds,
            made=made[n],
        )
        for n, each in sorted(ended.items())
    ]


def _refuse(recorder: Recorder) -> None:
    raise RunError(recorder.failure or "")


def _say_failed(recorder: Recorder) -> None:
    _LOG.warning("%s: %s", recorder.run.path, recorder.failure)


def _course(
    begun: Sequence[Begun],
    dataset: Dataset,
    device: torch.device,
    options: _Options,
    stop: int,
    failed: Callable[[Recorder], None],
) -> Course:
    """That of runs which stand at one step."""
    log_every, seconds, capture, compile = options
    recipes = [each.recipe for each in begun]
    settle_arithmetic(recipes[0].precision)
    if len(begun) == 1:
        trainer = training(recipes[0], dataset, device, log_every=log_every, capture=capture, compile=compile)
    else:
        trainer = FusedTrainer(recipes, dataset, device, log_every=log_every, capture=capture)
    return Course(begun, dataset, trainer, seconds, stop, failed)


@contextmanager
def _signals() -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM, so that the step in hand is finished and saved; a second one ends at once."""
    caught: list[int] = []

    def note(number: int, _: FrameType | None) -> None:
        if caught:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        caught.append(number)

    try:
        previous = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not the main thread, which alone may set handlers
        yield caught
        return
    try:
        yield caught
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
