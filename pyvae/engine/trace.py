"""The trace of a run: a ring of rows on the device, drained to ``trace.csv`` now and then."""

import contextlib
import logging
import os
import re
from array import array
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pyvae.base.files import open_regular, replacing
from pyvae.engine.files import append_all, cause_of
from pyvae.errors import RunError

_LOG = logging.getLogger(__name__)
# ten times what a run of millions of steps writes, each of them logged
_MOST_BYTES = 4 << 30
# a row of a thousand latents is a tenth of it
_LONGEST_LINE = 1 << 18
_HEADER = re.compile(rb"step(,[A-Za-z_][A-Za-z0-9_.-]*)*\r?\n")
_LARGEST = float(np.finfo(np.float32).max)
# exact as float64
_STEP = re.compile(rb"\d{1,15}")


class Ring:
    """Rows of scalars in device memory: a step writes its own without the host, which copies them out later."""

    def __init__(self, fields: list[str], capacity: int, every: int, device: torch.device) -> None:
        """Of the last ``capacity`` steps that ``every`` divides."""
        self.fields = fields
        self.every = every
        self.capacity = capacity
        # the last row is for steps that are not logged
        self.rows = torch.zeros(capacity + 1, len(fields), dtype=torch.float64, device=device)

    @property
    def steps(self) -> int:
        """How many steps may be made between two calls of :meth:`copy`, with one copy more in hand."""
        return self.every * self.capacity // 2

    def write(self, step: Tensor, row: Tensor) -> None:
        """Keep the row [fields] of a step int64 ``[]``, if it is to be logged."""
        slot = step // self.every % self.capacity
        slot = torch.where(step % self.every == 0, slot, self.capacity)
        self.rows.index_copy_(0, slot.view(1), row.unsqueeze(0))

    def copy(self, first: int, stop: int) -> "Rows":
        """Start copying the rows of the steps in [first, stop) to the host."""
        logged = range(-(-first // self.every) * self.every, stop, self.every)
        start = logged.start // self.every % self.capacity
        ahead = min(len(logged), self.capacity - start)
        rows = torch.cat([self.rows[start : start + ahead], self.rows[: len(logged) - ahead]])
        return Rows(list(logged), to_host(rows))


class Rows(NamedTuple):
    """Rows that are on their way to the host."""

    steps: list[int]
    values: "HostCopy"

    def wait(self) -> list[tuple[int, list[float]]]:
        """(step, values) of each, in order, when they have arrived."""
        return list(zip(self.steps, self.values.wait().tolist(), strict=True))


class HostCopy(NamedTuple):
    """A tensor that is on its way to the host."""

    tensor: Tensor
    event: "torch.cuda.Event | None"

    def wait(self) -> Tensor:
        """The tensor, when it has arrived."""
        if self.event is not None:
            self.event.synchronize()
        return self.tensor


def to_host(x: Tensor) -> HostCopy:
    """Start copying ``x``, as it is at this point of the device's work, which goes on meanwhile."""
    if x.device.type != "cuda":
        return HostCopy(x.clone(), None)
    taken = x.clone()
    side = _side_stream(x.device)
    side.wait_stream(torch.cuda.current_stream(x.device))
    event = torch.cuda.Event(blocking=True)
    with torch.cuda.stream(side):
        host = torch.empty(x.shape, dtype=x.dtype, pin_memory=True)
        host.copy_(taken, non_blocking=True)
        taken.record_stream(side)
        event.record(side)
    return HostCopy(host, event)


@lru_cache(maxsize=8)
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)


class TraceFile:
    """``trace.csv``: a header and one row for each logged step, in order; without gaps, but for what a disk lost."""

    def __init__(self, path: Path, fields: list[str], resume_at: int, rows: int = 0) -> None:
        """Open for appending rows of step ``resume_at`` on; later rows, of a run that was killed, are dropped.

        Args:
            path: of the file, new or begun.
            fields: names of the values of a row.
            resume_at: step of the checkpoint that is gone on with.
            rows: that the file had then. Where it lacks some, a warning says so.

        Raises:
            RunError: it has other columns than these, or cannot be read or written.
        """
        self.path = path
        self.rows = 0
        """In the file now."""
        last = -1
        there = os.path.lexists(path)
        try:
            with replacing(path) as temporary, open(temporary, "wb") as new:
                new.write(",".join(["step", *fields]).encode() + b"\n")
                for step, line in self._begun(fields) if resume_at and there else ():
                    if last < step < resume_at:
                        new.write(line)
                        self.rows, last = self.rows + 1, step
            self._file = open(path, "ab", buffering=0)  # noqa: SIM115
        except OSError as error:
            raise RunError(f"cannot write {path}: {cause_of(error)}") from error
        if lost := max(rows - self.rows, 0):
            _LOG.warning(
                "%s lacks %s of the rows before its checkpoint of step %s, as after a power cut (%s): training goes "
                "on, and the rows are not made again",
                path,
                f"{lost:,}",
                f"{resume_at:,}",
                f"the last is of step {last:,}"
                if self.rows
                else "there are none"
                if there
                else "there is no file",
            )

    def _begun(self, fields: list[str]) -> Iterator[tuple[int, bytes]]:
        with _open(self.path) as file:
            columns = _columns(file.readline(_LONGEST_LINE))
            # of a header that is damaged nothing is known; the rows tell by their length
            if columns not in (None, fields):
                raise RunError(f"{self.path} has other columns than this run; move it away to go on")
            for line in _lines(file):
                if row := _row(line, len(fields)):
                    yield row[0], line

    def append(self, rows: list[tuple[int, list[float]]]) -> None:
        """Write rows, all of them or none.

        Raises:
            RunError: they cannot be written.
        """
        text = "".join(
            ",".join([str(step), *(f"{value:.9g}" for value in values)]) + "\n" for step, values in rows
        )
        size = os.fstat(self._file.fileno()).st_size
        try:
            append_all(self._file, text.encode())
        except OSError as error:
            with contextlib.suppress(OSError):
                self._file.truncate(size)
            raise self._failed(error) from error
        self.rows += len(rows)

    def sync(self) -> None:
        """Wait until what has been appended is on the disk; on any thread.

        Raises:
            RunError: it cannot be written.
        """
        try:
            os.fsync(self._file.fileno())
        except OSError as error:
            raise self._failed(error) from error

    def close(self) -> None:
        try:
            self._file.close()
        except OSError as error:
            raise self._failed(error) from error

    def _failed(self, error: OSError) -> RunError:
        return RunError(
            f"cannot write {self.path}: {cause_of(error)}; what was saved before is intact, "
            "free some space or permissions and run the same command again"
        )


def read_trace(path: Path, needed: Iterable[str] = ()) -> dict[str, np.ndarray]:
    """Columns of a ``trace.csv`` by name, float64, the steps int64. Damaged lines are left out, with a warning.

    Args:
        path: of the file.
        needed: columns that it must have.

    Raises:
        RunError: there is no such file, it lacks a column, or it holds no row.
    """
    values = array("d")
    damaged = 0
    try:
        with _open(path) as file:
            header = file.readline(_LONGEST_LINE)
            fields = _columns(header)
            for line in _lines(file) if fields else ():
                if row := _row(line, len(fields or ())):
                    values.extend([row[0], *row[1]])
                # another process may be writing the last
                elif line.endswith(b"\n"):
                    damaged += 1
    except OSError as error:
        raise RunError(
            f"cannot read {path}: {cause_of(error)}; run the `pyvae train` command of this run"
        ) from error
    if header and fields is None:
        raise RunError(
            f"{path} is damaged: its first line does not name its columns; put back a copy, or run the `pyvae train` "
            "command of this run, which mends it"
        )
    if damaged:
        _say_damaged(path, damaged)
    if fields is None or not values:
        raise RunError(f"{path} holds no step yet: run the `pyvae train` command of this run")
    if missing := [name for name in needed if name not in fields]:
        raise RunError(f"{path} is not that of its recipe: it has no column {missing[0]}; put back a copy")
    table = np.frombuffer(values).reshape(-1, 1 + len(fields))
    columns = {name: table[:, i] for i, name in enumerate(["step", *fields])}
    columns["step"] = columns["step"].astype(np.int64)
    return columns


def _open(path: Path) -> BinaryIO:
    file = open_regular(path)
    if os.fstat(file.fileno()).st_size > _MOST_BYTES:
        file.close()
        raise RunError(f"{path} is larger than {_MOST_BYTES >> 30} GiB, which no trace is: move it away")
    return file


@lru_cache(maxsize=64)  # once, however often it is read
def _say_damaged(path: Path, lines: int) -> None:
    _LOG.warning("%s: damaged lines are left out, %s of them", path, f"{lines:,}")


def _lines(file: BinaryIO) -> Iterator[bytes]:
    """The lines from here on; of what has no end of line, as zeros in the place of lost blocks, pieces."""
    return iter(lambda: file.readline(_LONGEST_LINE), b"")


def _columns(line: bytes) -> list[str] | None:
    """Names of the values of a row; None of what is no whole header."""
    if not _HEADER.fullmatch(line):
        return None
    _, *names = line.decode().rstrip().split(",")
    return names if len({"step", *names}) == 1 + len(names) else None


def _row(line: bytes, fields: int) -> tuple[int, list[float]] | None:
    """The step and the values of a row; None of one that a crash cut short or a disk changed."""
    step, *values = line.rstrip(b"\r\n").split(b",")
    if len(values) != fields or not line.endswith(b"\n") or not _STEP.fullmatch(step):
        return None
    try:
        numbers = [float(value) for value in values]
    except ValueError:
        return None
    # training ends before it writes another
    return (int(step), numbers) if all(abs(number) <= _LARGEST for number in numbers) else None
