"""Files of a run."""

import contextlib
import os
import re
from io import FileIO
from pathlib import Path

from pyvae.base.files import lives, remove_leftovers, replacing, require_regular, sync_directory
from pyvae.errors import PyvaeError, RunError

# as earlier versions named what they were writing
_EARLIER_TEMPORARY = re.compile(r"\..+\.(?P<pid>\d{1,9})\.tmp|\.trace\.csv\.tmp")


def whole_path(path: Path) -> Path:
    """A path with ``~`` written out, which a shell does not do behind ``--out=``."""
    try:
        return path.expanduser()
    except RuntimeError as error:
        raise PyvaeError(f"{path}: there is no such user here; write the path out") from error


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
            f"cannot write {path}: {cause_of(error)}; what was saved before is intact, "
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


def make_directory(path: Path) -> None:
    """Make a directory and those above it, where they are not, and flush their names to the disk.

    Raises:
        RunError: it cannot be made.
    """
    try:
        missing = [at for at in (path, *path.parents) if not at.exists()]
        path.mkdir(parents=True, exist_ok=True)
        for made in missing:
            sync_directory(made.parent)
    except OSError as error:
        raise RunError(
            f"cannot make {path} ({cause_of(error)}): remove what is in its place, or allow writing there"
        ) from error


def sync_path(path: Path) -> None:
    """Flush the names of all directories above ``path`` to the disk, as far as they can be read: whoever made them
    may not have done so."""
    for directory in path.resolve().parents:
        with contextlib.suppress(OSError):
            sync_directory(directory)


def append_all(file: FileIO, content: bytes) -> None:
    """Write to an unbuffered file; nothing is left over to be written later.

    Raises:
        OSError: as the system does, perhaps after a part.
    """
    left = memoryview(content)
    while left:
        left = left[file.write(left) :]


def open_lock(path: Path) -> FileIO:
    """Open a file to be locked, and make it where it is not.

    Raises:
        OSError: as the system does; also, at once, for a named pipe or another thing that is no regular file.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    require_regular(descriptor, path)
    return FileIO(descriptor, "r+")


def set_aside(path: Path) -> Path:
    """Rename a damaged file to ``<name>.damaged``, or ``.damaged-2`` and so on where there is one; returns that path.

    Raises:
        RunError: it cannot be renamed.
    """
    number, aside = 1, path.with_name(f"{path.name}.damaged")
    while os.path.lexists(aside):
        number += 1
        aside = path.with_name(f"{path.name}.damaged-{number}")
    try:
        path.rename(aside)
        sync_directory(path.parent)
    except OSError as error:
        raise RunError(f"cannot rename {path}, which is damaged: {cause_of(error)}; move it away") from error
    return aside


def clear_leftovers(directory: Path) -> None:
    """Remove what killed processes were writing in a directory of a run that is held, those of earlier versions too."""
    remove_leftovers(directory)
    with contextlib.suppress(OSError):
        for path in list(directory.iterdir()):
            match = _EARLIER_TEMPORARY.fullmatch(path.name)
            if match and path.is_file() and not (match["pid"] and lives(int(match["pid"]))):
                with contextlib.suppress(OSError):
                    path.unlink()


def cause_of(error: OSError) -> str:
    """Why the system refused, in words."""
    return error.strerror or str(error) or type(error).__name__
