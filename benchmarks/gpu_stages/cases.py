"""What a stage's function is given: it runs cases one by one, each guarded, and writes what they find."""

import faulthandler
import gc
import os
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from gpu_stages import results
from pyvae.backend import choose

_LEAST_SECONDS = 2.0
Values = dict[str, Any]


class OutOfTimeError(Exception):
    """The stage's time is over; what is left is for the next call."""


def refuse_reference(op: str, device: torch.device, dtype: torch.dtype = torch.float32) -> None:
    """Raises RuntimeError where an op would run as its reference on a GPU: right, and as slow, by no merit of ours."""
    choice = choose(op, device, dtype)
    if device.type == "cuda" and choice.backend == "reference":
        raise RuntimeError(f"{op} runs as its reference: {choice.reason}")


class Cases:
    """Runs cases of a stage.

    Args:
        path: file of results.
        common: what every line says of its code and machine.
        skip: cases that need not be run again.
        end: of the stage, on the monotonic clock, which all processes share.
        device: to run on.
        dry: whether the stage is only tried, on a CPU and at tiny sizes.
    """

    def __init__(
        self, path: Path, common: Values, skip: set[str], end: float, device: torch.device, *, dry: bool
    ) -> None:
        self.device = device
        self.dry = dry
        self.end = end
        self._path = path
        self._common = common
        self.skipped = skip
        """Cases that need not be run again."""

    @property
    def left(self) -> float:
        """Seconds until the stage is ended."""
        return self.end - time.monotonic()

    @property
    def out(self) -> Path:
        """The folder of results."""
        return self._path.parent

    def emit(self, case: str, **values: Any) -> None:
        """Write a line of a case."""
        results.append(self._path, {**self._common, "time": results.now(), "case": case, **values})

    def __call__(self, case: str, call: Callable[[], Values | None], seconds: float = 45.0) -> None:
        """Run a case unless it is done.

        What it raises is its result. What hangs for ``seconds``, or leaves a device that answers no more, ends the
        process: the case is lost, and the next process goes on behind it.

        Args:
            case: its name, one of its stage.
            call: returns what it found; "ok" among it, where it is right or wrong.
            seconds: it may take.

        Raises:
            OutOfTimeError: none are left.
        """
        if case in self.skipped:
            return
        if self.left < _LEAST_SECONDS:
            raise OutOfTimeError
        self.emit(case, begun=True, limit=seconds)
        print(f"-- {case}", file=sys.stderr, flush=True)
        faulthandler.dump_traceback_later(seconds, exit=True)
        start = time.perf_counter()
        try:
            values = call() or {}
        except OutOfTimeError:
            faulthandler.cancel_dump_traceback_later()
            self.emit(case, cut=True)
            raise
        except Exception as error:
            traceback.print_exc()
            values = {"ok": False, "error": f"{type(error).__name__}: {' '.join(str(error).split())}"[:600]}
        self.emit(case, seconds=round(time.perf_counter() - start, 2), **values)
        try:
            gc.collect()  # graphs hold memory of their own
            if self.device.type == "cuda":
                torch.cuda.synchronize()
                torch.cuda.empty_cache()
        except Exception:
            os._exit(3)  # the context is broken: a fresh process goes on
        faulthandler.cancel_dump_traceback_later()
