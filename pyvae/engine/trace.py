"""The trace of a run: a ring of rows on the device, drained to ``trace.csv`` now and then."""

import csv
import io
import os
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pyvae.errors import RunError


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
    """``trace.csv``: a header and one row for each logged step, in order and without gaps."""

    def __init__(self, path: Path, fields: list[str], resume_at: int) -> None:
        """Open for appending rows of step ``resume_at`` on; later rows, of a run that was killed, are dropped."""
        self.path = path
        header = ",".join(["step", *fields])
        kept = [header]
        if resume_at and path.exists():
            lines = path.read_text().splitlines()
            if lines and lines[0] != header:
                raise RunError(f"{path} has other columns than this run; move it away to go on")
            kept += [line for line in lines[1:] if _step(line, len(fields)) < resume_at]
        temporary = path.with_name(f".{path.name}.tmp")
        try:
            temporary.write_text("\n".join(kept) + "\n")
            os.replace(temporary, path)
            self._file = open(path, "a", newline="")  # noqa: SIM115
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise RunError(f"cannot write {path}: {error.strerror}") from error

    def append(self, rows: list[tuple[int, list[float]]]) -> None:
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerows([step, *(f"{value:.9g}" for value in values)] for step, values in rows)
        try:
            self._file.write(text.getvalue())
            self._file.flush()
        except OSError as error:
            raise RunError(f"cannot write {self.path}: {error.strerror}") from error

    def close(self) -> None:
        self._file.close()


def _step(line: str, fields: int) -> float:
    """The step of a row; infinite for one that a crash cut short, which drops it."""
    cells = line.split(",")
    complete = len(cells) == fields + 1 and cells[-1] != ""
    return int(cells[0]) if complete and cells[0].isdigit() else float("inf")


def read_trace(path: Path) -> dict[str, np.ndarray]:
    """Columns of a ``trace.csv`` by name, float64, the steps int64.

    Raises:
        RunError: there is no such file, or it holds no row.
    """
    try:
        with open(path, newline="") as file:
            rows = list(csv.reader(file))
    except OSError as error:
        raise RunError(
            f"cannot read {path}: {error.strerror}; run the `pyvae train` command of this run"
        ) from error
    whole = [row for row in rows[1:] if len(row) == len(rows[0])]
    if not whole:
        raise RunError(f"{path} holds no step yet: run the `pyvae train` command of this run")
    table = np.array(whole, dtype=np.float64)
    columns = {name: table[:, i] for i, name in enumerate(rows[0])}
    columns["step"] = columns["step"].astype(np.int64)
    return columns
