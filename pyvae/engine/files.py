"""Files of a run."""

import os
from pathlib import Path

from pyvae.errors import RunError
from pyvae.files import replacing


def write_atomically(path: Path, content: bytes) -> None:
    """Write a temporary file beside ``path``, flush it to disk and rename it: a crash leaves the old file or the new.

    Raises:
        RunError: the disk is full or the directory cannot be written; what was there before survives.
    """
    try:
        with replacing(path) as temporary:
            temporary.write_bytes(content)
    except OSError as error:
        raise RunError(
            f"cannot write {path}: {error.strerror}; what was saved before is intact, "
            "free some space or permissions and run the same command again"
        ) from error


def check_writable(directory: Path) -> None:
    """Raise RunError unless a directory, or the one that it would be made in, can be written to.

    What takes minutes to compute asks before it begins; the disk may still fail when it is written.
    """
    existing = next(path for path in (directory, *directory.parents) if path.exists())
    if not existing.is_dir():
        raise RunError(f"cannot write to {directory}: {existing} is no directory")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise RunError(f"cannot write to {existing}: give permission, or copy it to where there is")
