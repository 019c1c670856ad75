"""Files of a run."""

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
