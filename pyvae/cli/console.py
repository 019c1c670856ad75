"""What a terminal shows of messages and errors: one line each."""

import io
import logging
import sys

import torch

from pyvae.errors import PyvaeError, printable


def set_up() -> None:
    """Messages of pyvae's loggers as one line each, and names of files that are no text as they can be shown."""
    handler = logging.StreamHandler()
    handler.setFormatter(_OneLine())
    logging.basicConfig(handlers=[handler])
    logging.getLogger("pyvae").setLevel(logging.INFO)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def one_line(error: Exception) -> str | None:
    """What a user is told of an error; None for those that are faults of pyvae, whose traceback is to be seen."""
    if isinstance(error, PyvaeError):
        return str(error)
    if isinstance(error, OSError):
        file = "" if error.filename is None else f"{error.filename}: "
        return printable(f"{file}{error.strerror or error}; give room or permission, or another path")
    if isinstance(error, MemoryError) or _is_of_memory(error):
        return "out of memory: give a smaller --batch-size, or another --device"
    return None


def _is_of_memory(error: Exception) -> bool:
    """Whether torch lacked memory: on a CPU it says so in words alone."""
    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    )


class _OneLine(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return printable(record.getMessage())
