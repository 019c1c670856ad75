"""A lock that processes hold on a file, and that ends with them.

It is flock(2). On NFS other machines see it, and that of a machine which is lost goes when the server gives its lease
up, after some 90 seconds; Lustre and BeeGFS need it switched on (``-o flock``), or it is of one machine alone.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path

from pyvae.base.files import NotRegularError
from pyvae.engine.files import cause_of, open_lock
from pyvae.errors import RunError


@contextmanager
def lock(path: Path, *, wait: bool) -> Iterator[bool]:
    """Lock a file, which is made where there is none.

    Args:
        path: of the file.
        wait: for another process that holds it; else the block is entered without the lock.

    Yields:
        whether it is held.

    Raises:
        RunError: it cannot be opened.
    """
    file = _open(path)
    try:
        held = _take(file, wait)
        # who held it may have removed the file meanwhile
        while held and not _is_at(path, file):
            file.close()
            file = _open(path)
            held = _take(file, wait)
        yield held
    finally:
        file.close()


def _open(path: Path) -> FileIO:
    try:
        return open_lock(path)
    except OSError as error:
        odd = isinstance(error, NotRegularError | IsADirectoryError)
        fix = "remove it" if odd else "give permission, or copy the run to where there is"
        raise RunError(f"cannot lock {path}: {cause_of(error)}; {fix}") from error


def _take(file: FileIO, wait: bool) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_at(path: Path, file: FileIO) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False
