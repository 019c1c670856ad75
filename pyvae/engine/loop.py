"""Run a recipe in a run directory, from wherever it stands to its end."""

import os
import platform
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NamedTuple

import torch
from tqdm import tqdm

import pyvae
from pyvae.data.dataset import Dataset
from pyvae.engine import checkpoint
from pyvae.engine.allocator import keep_large_buffers
from pyvae.engine.checkpoint import Checkpoint
from pyvae.engine.run import Run
from pyvae.engine.trace import Ring, TraceFile
from pyvae.engine.trainer import Trainer
from pyvae.errors import RunError

_RING_ROWS = 4096
_DRAIN_SECONDS = 0.5


class Outcome(NamedTuple):
    """How a call of :func:`train` ended."""

    step: int
    """Steps made in the whole life of the run."""
    interrupted: bool
    """Whether a signal ended it before its last step."""
    steps_per_second: float
    """Of this call."""


def train(
    run: Run,
    dataset: Dataset,
    device: torch.device,
    *,
    log_every: int = 100,
    checkpoint_seconds: float = 60.0,
) -> Outcome:
    """Train until the recipe's last step, or until SIGINT or SIGTERM, which saves first.

    Args:
        run: new, or one to resume: the result is equal bit for bit to that of an uninterrupted run.
        dataset: that of the recipe.
        device: to train on.
        log_every: steps between rows of the trace.
        checkpoint_seconds: time between checkpoints; 0 saves after every step.

    Raises:
        RunError: another process holds the run, the data is not what it was, a file cannot be written, or the loss
            is no longer finite (the last checkpoint is from before).
    """
    keep_large_buffers()
    _settle_arithmetic()
    with run.locked():
        return _Loop(run, dataset, device, log_every, checkpoint_seconds).train()


class _Loop:
    def __init__(
        self, run: Run, dataset: Dataset, device: torch.device, log_every: int, checkpoint_seconds: float
    ) -> None:
        self._run = run
        self._log_every = log_every
        self._checkpoint_seconds = checkpoint_seconds
        self._trainer = Trainer(run.recipe, dataset, device)
        self._seconds_before = 0.0
        self._metadata: dict[str, Any] = {
            "recipe": run.recipe.to_json(),
            "data": dataset.fingerprint,
            "image_shape": list(dataset.image_shape),
            "device": _device_name(device),
            "versions": {"pyvae": pyvae.__version__, "torch": torch.__version__},
        }
        self._resume()
        self._first_step = self._saved_step = self._trainer.step
        self._ring = Ring(self._trainer.fields, _RING_ROWS, device)
        self._trace = TraceFile(run.path / "trace.csv", self._trainer.fields, self._trainer.step)

    def _resume(self) -> None:
        saved = checkpoint.load_newest(self._run.checkpoints)
        if saved is None:
            return
        if saved.metadata["data"] != self._metadata["data"]:
            raise RunError(
                f"{self._run.path} was trained on {saved.metadata['data']}, but the data now is "
                f"{self._metadata['data']}: give the same data, or name another --out"
            )
        self._trainer.restore(saved.step, saved.tensors)
        self._seconds_before = saved.metadata["seconds"]

    def train(self) -> Outcome:
        trainer, total = self._trainer, self._run.recipe.steps
        self._started = self._last_save = last_drain = time.monotonic()
        with (
            _Events(self._run, trainer.step) as events,
            _signals() as signals,
            _progress(trainer.step, total) as bar,
        ):
            while trainer.step < total and not signals:
                step = trainer.step
                row = trainer.advance()
                if step % self._log_every == 0:
                    self._ring.write(step, row)
                now = time.monotonic()
                if self._ring.full or now - last_drain >= _DRAIN_SECONDS:
                    self._drain(events, bar)
                    last_drain = now
                if now - self._last_save >= self._checkpoint_seconds:
                    self._drain(events, bar)
                    self._save()
            self._drain(events, bar)
            self._save()
            self._trace.close()
            return Outcome(
                trainer.step, trainer.step < total, (trainer.step - self._first_step) / self._elapsed()
            )

    def _elapsed(self) -> float:
        return max(time.monotonic() - self._started, 1e-9)

    def _drain(self, events: "_Events", bar: "tqdm[None]") -> None:
        bad = int(self._trainer.first_bad_step)
        if bad >= 0:
            raise RunError(
                f"the loss is not finite from step {bad} on; the checkpoint of step {self._saved_step} is intact: "
                "try a lower --lr in another --out"
            )
        rows = self._ring.drain()
        self._trace.append(rows)
        if rows:
            step, values = rows[-1]
            named = dict(zip(self._trainer.fields, values, strict=True))
            events.write(step, named)
            bar.set_postfix({name: f"{named[name]:.2f}" for name in ("loss", "recon", "kl")}, refresh=False)
        bar.update(self._trainer.step - bar.n)

    def _save(self) -> None:
        step = self._trainer.step
        if step > self._saved_step or not checkpoint.paths(self._run.checkpoints):
            seconds = self._seconds_before + self._elapsed()
            metadata = {**self._metadata, "seconds": seconds}
            checkpoint.save(self._run.checkpoints, Checkpoint(step, self._trainer.tensors(), metadata))
            self._saved_step = step
        self._last_save = time.monotonic()


class _Events:
    """TensorBoard scalars of the rows that the progress bar shows, so about two a second."""

    def __init__(self, run: Run, resume_at: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(run.path / "events"), purge_step=resume_at)

    def __enter__(self) -> "_Events":
        return self

    def __exit__(self, *_: object) -> None:
        self._writer.close()

    def write(self, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name.replace("kl_", "kl/"), value, step)


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


def _settle_arithmetic() -> None:
    """Fix what cuDNN would otherwise choose by timing, so that two runs are equal bit for bit."""
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.allow_tf32 = False


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} CPU, {torch.get_num_threads()} threads"
