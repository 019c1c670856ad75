"""The trace of a run: a ring of rows on the device, drained to ``trace.csv`` now and then."""

import csv
import io
import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pyvae.errors import RunError


class Ring:
    """Rows of scalars in device memory, so that logging a step does not wait for it."""

    def __init__(self, fields: list[str], capacity: int, device: torch.device) -> None:
        self.fields = fields
        self._rows = torch.zeros(capacity, len(fields), dtype=torch.float64, device=device)
        self._steps: list[int] = []

    @property
    def full(self) -> bool:
        return len(self._steps) == self._rows.shape[0]

    def write(self, step: int, values: Tensor) -> None:
        """Add the row ``values`` [fields] of a step."""
        self._rows[len(self._steps)] = values
        self._steps.append(step)

    def drain(self) -> list[tuple[int, list[float]]]:
        """Take out all rows, in order; this waits for the device."""
        rows = self._rows[: len(self._steps)].tolist()
        taken = list(zip(self._steps, rows, strict=True))
        self._steps = []
        return taken


class TraceFile:
    """``trace.csv``: a header and one row for each logged step, in order and without gaps."""

    def __init__(self, path: Path, fields: list[str], resume_at: int) -> None:
        """Open for appending rows of step ``resume_at`` on; later rows, of a run that was killed, are dropped."""
        self.path = path
        header = ",".join(["step", *fields])
        kept = [header]
        if path.exists():
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
