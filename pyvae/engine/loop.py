"""Run recipes in run directories, from wherever they stand to their ends."""

import logging
import os
import platform
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from types import FrameType
from typing import Any, NamedTuple

import torch
from tqdm import tqdm

import pyvae
from pyvae.allocator import keep_large_buffers
from pyvae.data.dataset import Dataset
from pyvae.engine.arithmetic import settle_arithmetic
from pyvae.engine.checkpoint import engine_of
from pyvae.engine.fused.supports import settled
from pyvae.engine.fused.trainer import FusedTrainer
from pyvae.engine.recorder import Begun, Recorder
from pyvae.engine.run import Run
from pyvae.engine.stepper import BURST, Stepper
from pyvae.engine.together import shape_of
from pyvae.engine.trainer import check_data
from pyvae.engine.training import training
from pyvae.errors import RunError, printable

_LOG = logging.getLogger(__name__)
_DRAIN_SECONDS = 0.5
_SHOWN = ("loss", "recon", "kl", "discriminator_loss", "information")
# how long a GPU's work handed over at once should take: Ctrl-C waits for two such portions
_PORTION_SECONDS = (0.05, 0.2)
_SAVING_THREADS = 4
AT_ONCE = 64
"""Members of an ensemble: one model-step is then all kernels, and costs no less with more beside it."""


class Outcome(NamedTuple):
    """How training a run ended."""

    step: int
    """Steps made in the whole life of the run."""
    interrupted: bool
    """Whether a signal ended it before its last step."""
    steps_per_second: float
    """Of this call."""
    failure: str | None = None
    """Why it stands still before its last step, where a value was not finite."""


def train(
    run: Run,
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
        RecipeError: the recipe cannot be trained on this data.
    """
    keep_large_buffers()
    options = _Options(log_every, checkpoint_seconds, capture, compile)
    with _held([run]):
        begun = _begun(run, dataset, device, compile, repair=True)
        loop = _loop([begun], dataset, device, options, run.recipe.steps, _refuse)
        with _signals() as signals:
            return loop.train(signals)[0]


def train_together(
    runs: Sequence[Run],
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
        at_once: the most members of an ensemble.

    Returns:
        how each ended, in the order of ``runs``.

    Raises:
        RunError: as :func:`train`, but for a loss that is not finite; or two of the runs have one path. What is known
            before the first step is refused before anything is written.
        RecipeError: a recipe cannot be trained on this data.
    """
    keep_large_buffers()
    options = _Options(log_every, checkpoint_seconds, capture, compile)
    standing = _standing(runs, dataset, device, compile)
    groups: dict[object, list[int]] = {}
    for n, each in enumerate(standing):
        if not each.finished:
            groups.setdefault(each.shape or n, []).append(n)
    outcomes = {n: Outcome(each.step, False, 0.0) for n, each in enumerate(standing) if each.finished}
    portions = [whole[i : i + at_once] for whole in groups.values() for i in range(0, len(whole), at_once)]
    with _signals() as signals:
        for members in portions:
            if signals:
                break
            if len(portions) > 1:
                _say_which([runs[n] for n in members], len(outcomes), len(runs))
            found = _train_group([runs[n] for n in members], dataset, device, options, signals)
            outcomes |= zip(members, found, strict=True)
    return [outcomes.get(n) or Outcome(each.step, True, 0.0) for n, each in enumerate(standing)]


class _Options(NamedTuple):
    log_every: int
    checkpoint_seconds: float
    capture: bool
    compile: bool


@contextmanager
def _held(runs: Sequence[Run]) -> Iterator[None]:
    """Hold runs for training; their recipes are those of their directories, or may become so."""
    with ExitStack() as held:
        for run in runs:
            held.enter_context(run.locked())
        for run in runs:
            run.check_recipe()  # again, now that nobody else changes it
            run.clear_leftovers()
        yield


def _begun(run: Run, dataset: Dataset, device: torch.device, compile: bool, *, repair: bool) -> Begun:
    """From where a run goes on.

    Raises:
        RunError: it cannot, with this recipe, data or engine.
    """
    saved = run.resumable(repair=repair)
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
    return Begun(run, recipe, saved)


class _Standing(NamedTuple):
    """Where a run is before training."""

    step: int
    finished: bool
    shape: tuple[object, ...] | None
    """Of those who may share its steps; None where nobody can."""


def _standing(runs: Sequence[Run], dataset: Dataset, device: torch.device, compile: bool) -> list[_Standing]:
    """Of every run, while nothing is written and nobody holds any.

    Raises:
        RunError, RecipeError: one of them cannot be trained.
    """
    known: dict[str, Run] = {}
    found = []
    for run in runs:
        if known.setdefault(os.path.realpath(run.path), run) is not run:
            raise RunError(f"{run.path} is named twice: each run needs a directory of its own")
        if run.path.exists():
            with run.locked():
                pass
        begun = _begun(run, dataset, device, compile, repair=False)
        # its recipe.json may be of a length, or of a place of the data, that is no longer asked for
        finished = begun.step == run.recipe.steps and run.is_written()
        together = begun.recipe.engine == "fused" and begun.step < run.recipe.steps
        found.append(_Standing(begun.step, finished, shape_of(begun.recipe) if together else None))
    return found


def _say_which(runs: Sequence[Run], before: int, total: int) -> None:
    which = f"{before + 1:,}" if len(runs) == 1 else f"{before + 1:,} to {before + len(runs):,}"
    _LOG.info("%s: model %s of %s", printable(runs[0].path), which, f"{total:,}")


def _train_group(
    runs: Sequence[Run], dataset: Dataset, device: torch.device, options: _Options, signals: list[int]
) -> list[Outcome]:
    """Train runs that make their steps together, from wherever each of them stands."""
    total = runs[0].recipe.steps
    first: dict[int, int] = {}
    ended: dict[int, Outcome] = {}
    seconds, going = 0.0, list(range(len(runs)))
    with _held(runs):
        while going:
            begun = {n: _begun(runs[n], dataset, device, options.compile, repair=True) for n in going}
            ended |= {n: Outcome(each.step, True, 0.0) for n, each in begun.items()}
            first = {n: each.step for n, each in begun.items()} | first
            lowest, *above = sorted({each.step for each in begun.values()})
            # a member's bits do not depend on who is beside it: those behind go alone until they have caught up
            behind = [n for n in going if begun[n].step == lowest]
            stop = above[0] if above else total
            loop = _loop([begun[n] for n in behind], dataset, device, options, stop, _say_failed)
            begun.clear()
            ended.update(zip(behind, loop.train(signals), strict=True))
            seconds += loop.elapsed()
            going = [n for n in going if ended[n].failure is None]
            if signals or not above:
                break
    return [
        each._replace(
            interrupted=each.failure is None and each.step < total,
            steps_per_second=(each.step - first[n]) / seconds,
        )
        for n, each in sorted(ended.items())
    ]


def _refuse(recorder: Recorder) -> None:
    raise RunError(recorder.failure or "")


def _say_failed(recorder: Recorder) -> None:
    _LOG.warning("%s: %s", recorder.run.path, recorder.failure)


def _loop(
    begun: Sequence[Begun],
    dataset: Dataset,
    device: torch.device,
    options: _Options,
    stop: int,
    failed: Callable[[Recorder], None],
) -> "_Loop":
    """That of runs which stand at one step."""
    log_every, seconds, capture, compile = options
    recipes = [each.recipe for each in begun]
    settle_arithmetic(recipes[0].precision)
    if len(begun) == 1:
        trainer = training(recipes[0], dataset, device, log_every=log_every, capture=capture, compile=compile)
    else:
        trainer = FusedTrainer(recipes, dataset, device, log_every=log_every, capture=capture)
    return _Loop(begun, dataset, trainer, seconds, stop, failed)


class _Loop:
    """Steps of runs that make them together, to the step ``stop``, and when what they leave behind is written.

    ``failed`` is called once for each run in which a value was not finite.
    """

    def __init__(
        self,
        begun: Sequence[Begun],
        dataset: Dataset,
        trainer: Stepper,
        checkpoint_seconds: float,
        stop: int,
        failed: Callable[[Recorder], None],
    ) -> None:
        self._checkpoint_seconds = checkpoint_seconds
        self._trainer = trainer
        self._stop = stop
        self._recorders = [
            Recorder(each, part, trainer.fields, _metadata(each, dataset, trainer.device))
            for each, part in zip(begun, trainer.parts, strict=True)
        ]
        for recorder in self._recorders:
            recorder.begin()
        self._live = list(self._recorders)
        self._failed = failed
        self._kept = {step for recorder in self._recorders for step in recorder.run.recipe.keep_at}
        self._first_step = self._drained_step = trainer.step
        self._pace = _Pace(trainer)

    def train(self, signals: list[int]) -> list[Outcome]:
        """Make the steps, unless a signal comes; how each of the runs stands then."""
        trainer, recorders = self._trainer, self._recorders
        self._started = self._last_save = last_drain = time.monotonic()
        savers = min(len(recorders), _SAVING_THREADS)
        with (
            ThreadPoolExecutor(1, thread_name_prefix="pyvae-events") as noting,
            ExitStack() as opened,
            # what is being written is not lost, whatever else fails
            ThreadPoolExecutor(savers, thread_name_prefix="pyvae-save") as saving,
            _progress(trainer.step, self._stop, len(recorders)) as bar,
        ):
            for recorder in recorders:
                recorder.open(noting, saving)
                opened.callback(recorder.close)
            self._keep(bar)
            while trainer.step < self._stop and not signals and self._live:
                self._pace.advance(min(self._next_stop() - trainer.step, self._most_steps()))
                self._keep(bar)
                now = time.monotonic()
                if self._most_steps() == 0 or now - last_drain >= _DRAIN_SECONDS:
                    self._drain(bar)
                    last_drain = now
                if now - self._last_save >= self._checkpoint_seconds:
                    self._save(bar)
            self._save(bar)
            for recorder in recorders:
                recorder.finish()
            return [self._outcome(recorder) for recorder in recorders]

    def _outcome(self, recorder: Recorder) -> Outcome:
        step = self._trainer.step if recorder.failure is None else recorder.failed_at
        interrupted = recorder.failure is None and step < self._stop
        return Outcome(step, interrupted, (step - self._first_step) / self.elapsed(), recorder.failure)

    def _next_stop(self) -> int:
        return min(step for step in (*self._kept, self._stop) if step > self._trainer.step)

    def _keep(self, bar: "tqdm[None]") -> None:
        step = self._trainer.step
        if step in self._kept and any(recorder.keeps(step) for recorder in self._live):
            self._save(bar)
            for recorder in self._live:
                if recorder.keeps(step):
                    recorder.keep(step)

    def elapsed(self) -> float:
        """Seconds since the first step."""
        return max(time.monotonic() - self._started, 1e-9)

    def _most_steps(self) -> int:
        """Steps to the last burst that the ring holds before it must be copied out."""
        full = self._drained_step + self._trainer.ledger.ring.steps
        return full - full % BURST - self._trainer.step

    def _drain(self, bar: "tqdm[None]") -> None:
        """Write the rows that have been copied out, and start copying those of the steps since."""
        self._write_rows(bar)
        for recorder in self._live:
            recorder.drain(self._drained_step, self._trainer.step)
        self._drained_step = self._trainer.step

    def _write_rows(self, bar: "tqdm[None]") -> None:
        rows = [row for recorder in self._live if (row := recorder.write())]
        for recorder in [each for each in self._live if each.failure is not None]:
            self._live.remove(recorder)
            self._failed(recorder)
        if rows:
            shown = {name: sum(row[name] for row in rows) / len(rows) for name in _SHOWN if name in rows[0]}
            bar.set_postfix({name: f"{value:.2f}" for name, value in shown.items()}, refresh=False)
        bar.update(self._drained_step - bar.n)

    def _save(self, bar: "tqdm[None]") -> None:
        # only what is known to be finite is saved, and no checkpoint is ahead of its trace
        self._drain(bar)
        self._write_rows(bar)
        for recorder in self._live:
            recorder.save(self._trainer.step, self.elapsed())
        self._last_save = time.monotonic()


class _Pace:
    """Hands a GPU portions of steps, and runs at most two of them ahead of it; a CPU makes one step at a time."""

    def __init__(self, trainer: Stepper) -> None:
        self._trainer = trainer
        self._portion = BURST
        self._ends: deque[tuple[torch.cuda.Event, int]] = deque()
        self._last_end = time.monotonic()

    def advance(self, most: int) -> None:
        """Make some steps, at most ``most``."""
        if self._trainer.device.type != "cuda":
            self._trainer.advance()
            return
        # to where a burst may begin: steps before that are made one by one
        steps = min(most, self._portion - self._trainer.step % BURST)
        self._trainer.advance(steps)
        end = torch.cuda.Event(blocking=True)
        # not the current stream, which is that of the first GPU
        end.record(torch.cuda.current_stream(self._trainer.device))
        self._ends.append((end, steps))
        if len(self._ends) > 2:
            end, steps = self._ends.popleft()
            end.synchronize()
            self._adapt(steps)

    def _adapt(self, steps: int) -> None:
        """Learn from how long ``steps`` took, which may be fewer than a whole portion."""
        now = time.monotonic()
        seconds, self._last_end = (now - self._last_end) * self._portion / steps, now
        shortest, longest = _PORTION_SECONDS
        if seconds < shortest:
            self._portion *= 2
        elif seconds > longest and self._portion > BURST:
            self._portion //= 2


@contextmanager
def _progress(step: int, total: int, models: int) -> Iterator["tqdm[None]"]:
    interactive = sys.stderr.isatty()
    with tqdm(
        desc=f"{models} models" if models > 1 else None,
        total=total,
        initial=step,
        unit="step",
        dynamic_ncols=True,
        mininterval=0.2 if interactive else 10,
        maxinterval=10 if interactive else 60,
    ) as bar:
        yield bar


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


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} CPU, {torch.get_num_threads()} threads"


def _metadata(begun: Begun, dataset: Dataset, device: torch.device) -> dict[str, Any]:
    return {
        "recipe": begun.run.recipe.to_json(),
        "data": dataset.fingerprint,
        "image_shape": list(dataset.image_shape),
        "device": _device_name(device),
        "engine": begun.recipe.engine,
        "versions": {"pyvae": pyvae.__version__, "torch": torch.__version__},
    }
