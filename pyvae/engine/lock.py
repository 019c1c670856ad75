"""A lock that processes hold on a file, and that ends with them."""

import fcntl
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pyvae.errors import RunError
from pyvae.files import kind_of


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
    descriptor = _open(path)
    try:
        held = _take(descriptor, wait)
        # who held it may have removed the file meanwhile
        while held and not _is_at(path, descriptor):
            os.close(descriptor)
            descriptor = _open(path)
            held = _take(descriptor, wait)
        yield held
    finally:
        os.close(descriptor)


def _open(path: Path) -> int:
    try:
        # with O_RDWR a named pipe does not wait
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK, 0o666)
    except OSError as error:
        raise RunError(f"cannot write {path}: {error.strerror}") from error
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        raise RunError(f"cannot lock {path}: it is {kind_of(mode)}; remove it")
    return descriptor


def _take(descriptor: int, wait: bool) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_at(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False
