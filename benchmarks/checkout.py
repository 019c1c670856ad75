"""The checkout that is measured."""

import os
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def commit_of(checkout: Path) -> str:
    """Short name of the commit, "-dirty" behind it where files differ; empty for a folder that is no git checkout.

    Of pyvae itself, what PYVAE_COMMIT says where it is set: a copy may have no history, or an older one.
    """
    if checkout == ROOT and "PYVAE_COMMIT" in os.environ:
        return os.environ["PYVAE_COMMIT"]

    def git(*arguments: str) -> str:
        command = ["git", *arguments]
        try:
            return subprocess.run(
                command, cwd=checkout, capture_output=True, text=True, check=False
            ).stdout.strip()
        except OSError:  # no git
            return ""

    name = git("rev-parse", "--short", "HEAD")
    if not name:
        return ""
    # results that are being written are no change of what is measured
    return name + ("-dirty" if git("status", "--porcelain", "--", ".", ":!benchmarks/results") else "")
