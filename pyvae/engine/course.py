"""Steps of runs that make them together, and when what they leave behind is written."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

import pyvae
from pyvae.base.progress import bar_class, redrawn
from pyvae.base.workers import Workers
from pyvae.data.dataset import Dataset
from pyvae.engine.checkpoint import device_name
from pyvae.engine.convolutions import settle_convolutions
from pyvae.engine.pace import Pace
from pyvae.engine.recorder import Begun, Recorder
from pyvae.engine.stepper import BURST, Stepper

if TYPE_CHECKING:
    from tqdm import tqdm

_DRAIN_SECONDS = 0.5
_SHOWN = ("loss", "recon", "kl", "discriminator_loss", "information")
_SAVING_THREADS = 4


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
    made: int = 0
    """Steps that this call made."""
    signal: int | None = None
    """Its number, where one ended it."""


class Course:
    """The steps of some runs up to one of them.

    Args:
        begun: the runs, which are held, and stand at one step.
        dataset: that of all.
        trainer: of their steps, new.
        checkpoint_seconds: time between checkpoints.
        stop: the step to end at.
        failed: called for each run in which a value was not finite, once; the others go on unless it raises.

    Raises:
        RunError: a checkpoint does not fit its recipe, or a file cannot be written.
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
            Recorder(each, part, trainer.fields, _metadata(each, dataset, trainer))
            for each, part in zip(begun, trainer.parts, strict=True)
        ]
        for recorder in self._recorders:
            recorder.begin()
        self._live = list(self._recorders)
        self._failed = failed
        self._kept = {step for recorder in self._recorders for step in recorder.run.recipe.keep_at}
        self._first_step = self._drained_step = trainer.step
        self._pace = Pace(trainer)

    def train(self, signals: list[int]) -> list[Outcome]:
        """Make the steps, unless a signal comes; how each of the runs stands then."""
        trainer, recorders = self._trainer, self._recorders
        self._started = self._last_save = last_drain = time.monotonic()
        savers = min(len(recorders), _SAVING_THREADS)
        with (
            Workers(1, "pyvae-events") as noting,
            ExitStack() as opened,
            # what is being written is not lost, whatever else fails
            Workers(savers, "pyvae-save") as saving,
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
            by = signals[0] if signals else None
            return [self._outcome(recorder, by) for recorder in recorders]

    def _outcome(self, recorder: Recorder, by: int | None) -> Outcome:
        step = self._trainer.step if recorder.failure is None else recorder.failed_at
        interrupted = recorder.failure is None and step < self._stop
        made = step - self._first_step
        rate = made / self.elapsed()
        return Outcome(step, interrupted, rate, recorder.failure, made, by if interrupted else None)

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


@contextmanager
def _progress(step: int, total: int, models: int) -> Iterator["tqdm[None]"]:
    interactive = redrawn()
    with bar_class()(
        desc=f"{models} models" if models > 1 else None,
        total=total,
        initial=step,
        unit="step",
        dynamic_ncols=True,
        mininterval=0.2 if interactive else 10,
        maxinterval=10 if interactive else 60,
    ) as bar:
        yield bar


def _metadata(begun: Begun, dataset: Dataset, trainer: Stepper) -> dict[str, Any]:
    return {
        "recipe": begun.run.recipe.to_json(),
        "data": dataset.fingerprint,
        "image_shape": list(dataset.image_shape),
        "device": device_name(trainer.device),
        "engine": begun.recipe.engine,
        **settle_convolutions(trainer, begun),
        "versions": {"pyvae": pyvae.__version__, "torch": torch.__version__},
    }
