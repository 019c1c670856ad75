"""Run a recipe in a run directory, from wherever it stands to its end."""

import math
import os
import platform
import signal
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any, NamedTuple

import torch
from tqdm import tqdm

import pyvae
from pyvae.allocator import keep_large_buffers
from pyvae.data.dataset import Dataset
from pyvae.engine import checkpoint
from pyvae.engine.arithmetic import settle_arithmetic
from pyvae.engine.checkpoint import Checkpoint, engine_of
from pyvae.engine.events import Events
from pyvae.engine.fused.supports import settled
from pyvae.engine.run import Run
from pyvae.engine.stepper import BURST, Stepper
from pyvae.engine.trace import HostCopy, Rows, TraceFile, to_host
from pyvae.engine.training import training
from pyvae.errors import RunError

_DRAIN_SECONDS = 0.5
_WIDER = ", or --precision tf32, whose range is that of float32"
_SHOWN = ("loss", "recon", "kl", "discriminator_loss", "information")
# how long a GPU's work handed over at once should take: Ctrl-C waits for two such portions
_PORTION_SECONDS = (0.05, 0.2)


class Outcome(NamedTuple):
    """How a call of :func:`train` ended."""

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
    settle_arithmetic(run.recipe.precision)
    with run.locked():
        run.check_recipe()  # again, now that nobody else changes it
        run.clear_leftovers()
        saved = run.resumable(repair=True)
        begun = None if saved is None else engine_of(saved.metadata)
        recipe = settled(run.recipe, dataset, device, compile=compile, begun=begun)
        if begun is not None and recipe.engine != begun:
            raise RunError(
                f"{run.path} was trained by the {begun} engine, and the {recipe.engine} one rounds otherwise: "
                f"--engine {begun}, or name another --out"
            )
        trainer = training(recipe, dataset, device, log_every=log_every, capture=capture, compile=compile)
        return _Loop(run, dataset, trainer, saved, checkpoint_seconds).train()


def train_together(
    runs: Sequence[Run], dataset: Dataset, device: torch.device, **options: Any
) -> list[Outcome]:
    """Stands in for that of the engine's branch."""
    outcomes = []
    for run in runs:
        saved = run.resumable()
        if saved is not None and saved.step == run.recipe.steps:
            outcomes.append(Outcome(saved.step, False, 0.0))
        elif outcomes and outcomes[-1].interrupted:
            outcomes.append(Outcome(0, True, 0.0))
        else:
            try:
                outcomes.append(train(run, dataset, device, **options))
            except RunError as error:
                if "not finite" not in str(error):
                    raise
                saved = run.resumable()
                outcomes.append(Outcome(saved.step if saved else 0, False, 0.0, str(error)))
    return outcomes


class _Loop:
    def __init__(
        self,
        run: Run,
        dataset: Dataset,
        trainer: Stepper,
        saved: Checkpoint | None,
        checkpoint_seconds: float,
    ) -> None:
        self._run = run
        self._checkpoint_seconds = checkpoint_seconds
        self._trainer = trainer
        self._seconds_before = 0.0
        self._rows_before = 0
        self._metadata: dict[str, Any] = {
            "recipe": run.recipe.to_json(),
            "data": dataset.fingerprint,
            "image_shape": list(dataset.image_shape),
            "device": _device_name(trainer.device),
            "engine": trainer.recipe.engine,
            "versions": {"pyvae": pyvae.__version__, "torch": torch.__version__},
        }
        if saved is not None:
            self._resume(saved)
        run.write_recipe()
        self._first_step = self._saved_step = trainer.step
        self._pace = _Pace(trainer)
        self._drained_step = trainer.step
        self._copying: tuple[Rows, HostCopy, HostCopy] | None = None
        self._trace = TraceFile(run.path / "trace.csv", trainer.fields, trainer.step, self._rows_before)

    def _resume(self, saved: Checkpoint) -> None:
        if saved.metadata["data"] != self._metadata["data"]:
            raise RunError(
                f"{self._run.path} was trained on {saved.metadata['data']}, but the data now is "
                f"{self._metadata['data']}: give the same data, or name another --out"
            )
        if saved.step > self._run.recipe.steps:
            raise RunError(
                f"{self._run.path} has made {saved.step:,} steps, more than --steps {self._run.recipe.steps}: give "
                f"--steps {saved.step} or more, or name another --out"
            )
        what = f"the checkpoint of step {saved.step:,} in {self._run.path}"
        checkpoint.check_fit(saved.tensors, self._trainer.tensors(), what)
        self._trainer.restore(saved.step, saved.tensors)
        self._seconds_before = saved.metadata.get("seconds", 0.0)
        # earlier versions did not say; the first step is always logged
        self._rows_before = saved.metadata.get("trace_rows", min(saved.step, 1))

    def train(self) -> Outcome:
        trainer, total = self._trainer, self._run.recipe.steps
        self._started = self._last_save = last_drain = time.monotonic()
        with (
            Events(self._run.events, trainer.fields, trainer.step) as events,
            checkpoint.Saver(self._run.checkpoints, (self._trace.sync, events.sync)) as self._saver,
            _signals() as signals,
            _progress(trainer.step, total) as bar,
        ):
            self._keep(events, bar)
            while trainer.step < total and not signals:
                self._pace.advance(min(self._next_stop() - trainer.step, self._most_steps()))
                self._keep(events, bar)
                now = time.monotonic()
                if self._most_steps() == 0 or now - last_drain >= _DRAIN_SECONDS:
                    self._drain(events, bar)
                    last_drain = now
                if now - self._last_save >= self._checkpoint_seconds:
                    self._save(events, bar)
            self._save(events, bar)
            self._saver.wait()
            self._trace.close()
            return Outcome(
                trainer.step, trainer.step < total, (trainer.step - self._first_step) / self._elapsed()
            )

    def _next_stop(self) -> int:
        recipe = self._run.recipe
        return min(step for step in (*recipe.keep_at, recipe.steps) if step > self._trainer.step)

    def _keep(self, events: "Events", bar: "tqdm[None]") -> None:
        run, step = self._run, self._trainer.step
        # one that was there before this step was made is of an earlier run
        made = step > self._first_step or not checkpoint.path_of(run.snapshots, step).exists()
        if step in run.recipe.keep_at and made:
            self._save(events, bar)
            self._saver.wait()
            saved = checkpoint.load(checkpoint.path_of(run.checkpoints, step))
            checkpoint.save(run.snapshots, saved, keep=None)

    def _elapsed(self) -> float:
        return max(time.monotonic() - self._started, 1e-9)

    def _most_steps(self) -> int:
        """Steps to the last burst that the ring holds before it must be copied out."""
        full = self._drained_step + self._trainer.ledger.ring.steps
        return full - full % BURST - self._trainer.step

    def _drain(self, events: "Events", bar: "tqdm[None]") -> None:
        """Write the rows that have been copied out, and start copying those of the steps since."""
        self._write_rows(events, bar)
        trainer = self._trainer
        rows = trainer.ledger.ring.copy(self._drained_step, trainer.step)
        self._copying = rows, to_host(trainer.ledger.bad_step), to_host(trainer.ledger.bad_row)
        self._drained_step = trainer.step

    def _write_rows(self, events: "Events", bar: "tqdm[None]") -> None:
        if self._copying is None:
            return
        (copied, bad_step, bad_row), self._copying = self._copying, None
        rows, bad = copied.wait(), int(bad_step.wait())
        if bad >= 0:
            values = dict(zip(self._trainer.fields, bad_row.wait().tolist(), strict=True))
            first = next(name for name, value in values.items() if not math.isfinite(value))
            raise RunError(
                f"{first} is not finite in step {bad}, so nothing was learnt from it on; {self._intact()}: "
                f"try a lower --lr{_WIDER if self._run.recipe.precision == 'fp16' else ''}"
            )
        self._trace.append(rows)
        if rows:
            events.write(rows)
            named = dict(zip(self._trainer.fields, rows[-1][1], strict=True))
            bar.set_postfix({name: f"{named[name]:.2f}" for name in _SHOWN if name in named}, refresh=False)
        bar.update(self._drained_step - bar.n)

    def _intact(self) -> str:
        self._saver.wait()
        if not checkpoint.paths(self._run.checkpoints):
            return "nothing had been saved yet"
        return f"the checkpoint of step {self._saved_step} is intact, and another --out leaves it so"

    def _save(self, events: "Events", bar: "tqdm[None]") -> None:
        # only what is known to be finite is saved, and no checkpoint is ahead of its trace
        self._drain(events, bar)
        self._write_rows(events, bar)
        step = self._trainer.step
        if step > self._saved_step or not checkpoint.paths(self._run.checkpoints):
            seconds = self._seconds_before + self._elapsed()
            metadata = {**self._metadata, "seconds": seconds, "trace_rows": self._trace.rows}
            self._saver.save(Checkpoint(step, self._trainer.tensors(), metadata))
            self._saved_step = step
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
def _progress(step: int, total: int) -> Iterator["tqdm[None]"]:
    interactive = sys.stderr.isatty()
    with tqdm(
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
