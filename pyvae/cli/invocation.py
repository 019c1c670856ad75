"""What commands have in common: paths and devices as they are named, and lines on the terminal."""

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from pyvae.errors import PyvaeError

if TYPE_CHECKING:
    import torch

INTERRUPTED = 130
"""Exit status."""


def whole_path(path: Path) -> Path:
    """A path with ``~`` written out, which a shell does not do behind ``--out=``."""
    try:
        return path.expanduser()
    except RuntimeError as error:
        raise PyvaeError(f"{path}: there is no such user here; write the path out") from error


def device_named(name: str) -> "torch.device":
    """The device of a name: "auto" is a GPU where there is one.

    Raises:
        PyvaeError: it cannot be used here.
    """
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        if device.type not in ("cpu", "cuda"):
            raise RuntimeError("there are cpu and cuda")
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise PyvaeError(
            f"--device {name} cannot be used here ({str(error).splitlines()[0]}): try --device cpu"
        ) from error
    return device


def interrupted() -> int:
    """Say how to go on, and return the exit status."""
    say(f"interrupted and saved; go on with: {shlex.join(['pyvae', *sys.argv[1:]])}")
    return INTERRUPTED


def say(line: str) -> None:
    """A line of what a command has found."""
    sys.stdout.write(line + "\n")
