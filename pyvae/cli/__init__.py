"""The command line: one file per command."""

from pyvae.cli.program import main, parse

__all__ = ["main", "parse"]
