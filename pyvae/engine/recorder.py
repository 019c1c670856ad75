"""What one run leaves on disk while it trains: trace, events for TensorBoard, checkpoints and snapshots."""

import math
from collections.abc import Sequence
from concurrent.futures import Executor
from typing import Any, NamedTuple

from pyvae.engine import checkpoint
from pyvae.engine.checkpoint import Checkpoint
from pyvae.engine.events import Events
from pyvae.engine.recipe import Recipe
from pyvae.engine.run import RunDirectory
from pyvae.engine.stepper import Part
from pyvae.engine.trace import HostCopy, Rows, TraceFile, to_host

_WIDER = ", or --precision tf32, whose range is that of float32"


class Begun(NamedTuple):
    """A run, and from where it goes on."""

    run: RunDirectory
    recipe: Recipe
    """That of the run, with the engine that trains it."""
    saved: Checkpoint | None
    """None of a run without any."""

    @property
    def step(self) -> int:
        """Steps that are made and kept."""
        return 0 if self.saved is None else self.saved.step


class Recorder:
    """Writes what a run leaves behind, from the rows and tensors of its part of a stepper.

    Args:
        begun: the run, which is held. Its part goes back to what was saved of it.
        part: of the stepper, before its first step.
        fields: names of the values of a row.
        metadata: of its checkpoints, but for what is of their step.

    Raises:
        RunError: the checkpoint does not fit the recipe.
    """

    def __init__(self, begun: Begun, part: Part, fields: Sequence[str], metadata: dict[str, Any]) -> None:
        self.run = begun.run
        self.failure: str | None = None
        """Why nothing more is learnt and written, once something was not finite."""
        self.failed_at = -1
        """The step of that."""
        self._part = part
        self._fields = list(fields)
        self._metadata = metadata
        self._seconds_before = 0.0
        self._rows_before = 0
        self._first_step = self._saved_step = begun.step
        self._copying: tuple[Rows, HostCopy] | None = None
        if begun.saved is not None:
            self._resume(begun.saved)

    def _resume(self, saved: Checkpoint) -> None:
        what = f"the checkpoint of step {saved.step:,} in {self.run.path}"
        checkpoint.check_fit(saved.tensors, self._part.tensors(), what)
        self._part.restore(saved.step, saved.tensors)
        self._seconds_before = saved.metadata.get("seconds", 0.0)
        # earlier versions did not say; the first step is always logged
        self._rows_before = saved.metadata.get("trace_rows", min(saved.step, 1))

    def begin(self) -> None:
        """Write the recipe, and open the trace; all that can be refused has been.

        Raises:
            RunError: they cannot be written, or the trace is of another run.
        """
        self.run.write_recipe()
        self._trace = TraceFile(
            self.run.path / "trace.csv", self._fields, self._first_step, self._rows_before
        )

    def open(self, noting: Executor, saving: Executor) -> None:
        """Begin a file of events, which ``noting`` of one thread writes; ``saving`` writes checkpoints."""
        self._events = Events(self.run.events, self._fields, self._first_step, noting)
        self._saver = checkpoint.Saver(self.run.checkpoints, saving, (self._trace.sync, self._events.sync))

    def close(self) -> None:
        """Note no more events."""
        self._events.close()

    def finish(self) -> None:
        """Wait until everything is written.

        Raises:
            RunError: it cannot be.
        """
        self._saver.wait()
        self._trace.close()

    def drain(self, first: int, stop: int) -> None:
        """Start copying the rows of the steps in [first, stop) out of the ring."""
        ledger = self._part.ledger
        self._copying = ledger.ring.copy(first, stop), to_host(ledger.bad_step)

    def write(self) -> dict[str, float]:
        """Write the rows that have been copied out, unless one of their steps was not finite, which is then the
        failure of the run; returns the last of them by name, empty for none.

        Raises:
            RunError: the trace cannot be written.
        """
        if self._copying is None:
            return {}
        (copied, bad_step), self._copying = self._copying, None
        rows, bad = copied.wait(), int(bad_step.wait())
        if bad >= 0:
            self._fail(bad)
            return {}
        self._trace.append(rows)
        if not rows:
            return {}
        self._events.write(rows)
        return dict(zip(self._fields, rows[-1][1], strict=True))

    def _fail(self, step: int) -> None:
        # that of the first such step stays
        values = self._part.ledger.bad_row.tolist()
        first = next(
            name for name, value in zip(self._fields, values, strict=True) if not math.isfinite(value)
        )
        self.failed_at = step
        self.failure = (
            f"{first} is not finite in step {step}, so nothing was learnt from it on; {self._intact()}: "
            f"try a lower --lr{_WIDER if self.run.recipe.precision == 'fp16' else ''}"
        )
        if self._part.freeze is not None:
            self._part.freeze()

    def _intact(self) -> str:
        self._saver.wait()
        if not checkpoint.paths(self.run.checkpoints):
            return "nothing had been saved yet"
        return f"the checkpoint of step {self._saved_step} is intact, and another --out leaves it so"

    def save(self, step: int, seconds: float) -> None:
        """Start writing a checkpoint, if none of this step is there.

        Args:
            step: which the rows that have been written reach.
            seconds: since the run was gone on with.

        Raises:
            RunError: the checkpoint before could not be written.
        """
        if step > self._saved_step or not checkpoint.paths(self.run.checkpoints):
            seconds += self._seconds_before
            metadata = {**self._metadata, "seconds": seconds, "trace_rows": self._trace.rows}
            self._saver.save(Checkpoint(step, self._part.tensors(), metadata))
            self._saved_step = step

    def keeps(self, step: int) -> bool:
        """Whether the recipe keeps this step for good, and it is to be written."""
        # one that was there before this step was made is of an earlier run
        made = step > self._first_step or not checkpoint.path_of(self.run.snapshots, step).exists()
        return made and step in self.run.recipe.keep_at

    def keep(self, step: int) -> None:
        """Keep the checkpoint of this step, which has been saved, for good.

        Raises:
            RunError: it could not be written.
        """
        self._saver.wait()
        saved = checkpoint.load(checkpoint.path_of(self.run.checkpoints, step))
        checkpoint.save(self.run.snapshots, saved, keep=None)
