"""Files as they are written and read here: whole or not at all, on the disk before they are relied on, regular."""

import contextlib
import errno
import hashlib
import os
import platform
import re
import secrets
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

_TEMPORARY = re.compile(r"\.(?P<host>[0-9a-f]{8})-(?P<pid>\d+)-[0-9a-f]{8}\.tmp")
_LONGEST_PREFIX = 64
_DAY = 86_400.0

_KINDS = (
    (stat.S_ISDIR, "a directory"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a character device"),
    (stat.S_ISBLK, "a block device"),
)


class NotRegularError(OSError):
    """A pipe, a device, a socket or a directory stands where a file should be."""


def open_regular(path: str | os.PathLike[str]) -> BinaryIO:
    """Open a regular file for reading bytes, following links.

    Raises:
        NotRegularError: at once, for a named pipe, a device, a socket or a directory, which would give bytes for ever
            or never. ``strerror`` says which.
        OSError: as ``open``.
    """
    # without O_NONBLOCK a pipe is waited for until somebody writes
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    require_regular(descriptor, path)
    return os.fdopen(descriptor, "rb")


def require_regular(descriptor: int, path: str | os.PathLike[str]) -> None:
    """Close a descriptor and raise NotRegularError, unless a regular file is open there."""
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        raise NotRegularError(errno.EINVAL, f"{kind_of(mode)}, not a regular file", os.fspath(path))


def kind_of(mode: int) -> str:
    """What a path is, by its ``st_mode``, in words."""
    return next((words for is_kind, words in _KINDS if is_kind(mode)), "a file")


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """The path of a temporary file to be made beside ``path``.

    When the block ends, it is flushed to the disk and takes the place of ``path``, and the directory is flushed as
    well; it is removed when the block fails. What a kill leaves behind, :func:`remove_leftovers` finds by its name.

    Raises:
        OSError: as the system does.
    """
    # the name itself may be as long as a name can be
    temporary = path.with_name(
        f".{path.name[:_LONGEST_PREFIX]}.{_host()}-{os.getpid()}-{secrets.token_hex(4)}.tmp"
    )
    try:
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_directory(path.parent)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def sync_directory(path: Path) -> None:
    """Flush the names in a directory to the disk, as a rename needs it to outlast a power cut."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_leftovers(directory: Path) -> int:
    """Remove temporary files of :func:`replacing` whose process is dead; returns how many.

    Of another machine's processes nothing is known: their files go a day after the last write.
    """
    removed = 0
    try:
        with os.scandir(directory) as entries:
            found = [(entry.path, match) for entry in entries if (match := _TEMPORARY.search(entry.name))]
    except OSError:
        return 0
    for path, match in found:
        with contextlib.suppress(OSError):
            if _is_dead(int(match["pid"]), match["host"], os.lstat(path).st_mtime):
                os.unlink(path)
                removed += 1
    return removed


def _is_dead(pid: int, host: str, written: float) -> bool:
    return not lives(pid) if host == _host() else time.time() - written > _DAY


def lives(pid: int) -> bool:
    """Whether there is such a process on this machine."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # somebody else's
        pass
    return True


def _host() -> str:
    """Of this machine or container, in eight digits."""
    return hashlib.sha256(platform.node().encode()).hexdigest()[:8]
