"""What commands have in common: lines on the terminal, and how they end."""

import shlex
import sys

INTERRUPTED = 130
"""Exit status."""


def interrupted() -> int:
    """Say how to go on, and return the exit status."""
    say(f"interrupted and saved; go on with: {shlex.join(['pyvae', *sys.argv[1:]])}")
    return INTERRUPTED


def say(line: str) -> None:
    """A line of what a command has found."""
    sys.stdout.write(line + "\n")
