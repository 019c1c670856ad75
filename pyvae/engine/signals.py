"""SIGINT and SIGTERM while training: the step in hand is finished and saved first."""

import atexit
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def collected() -> Iterator[list[int]]:
    """The signals that have come, a list that is true once there is one; a second one ends the process at once.

    They come to the main thread alone. On another the list is true once the main thread was ended by Ctrl-C: nobody
    else can stop that thread. A main thread that came to its end lets the others go on.
    """
    caught: list[int] = []

    def note(number: int, _: FrameType | None) -> None:
        if caught:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        caught.append(number)

    if threading.current_thread() is not threading.main_thread():
        with awaited():
            yield _OfTheMainThread()
        return
    previous = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield caught
    finally:
        for number, handler in previous.items():
            # None: a handler that was not set by Python, and cannot be set again from there
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


@contextmanager
def awaited() -> Iterator[None]:
    """What a thread does within is waited for by a process whose main thread Ctrl-C has ended: that does not wait for
    daemons, nor, before Python 3.13, for a thread whose join() was interrupted."""
    if threading.current_thread() is threading.main_thread():
        yield
        return
    through = threading.Event()

    def wait() -> None:
        if _main_thread_was_interrupted():
            through.wait()

    atexit.register(wait)
    try:
        yield
    finally:
        through.set()
        atexit.unregister(wait)


class _OfTheMainThread(list[int]):
    def __bool__(self) -> bool:
        if not len(self) and _main_thread_was_interrupted():
            self.append(signal.SIGINT)
        return len(self) > 0


def _main_thread_was_interrupted() -> bool:
    if threading.main_thread().is_alive():
        return False
    # sys.last_exc came with Python 3.12
    error = getattr(sys, "last_exc", None) or getattr(sys, "last_value", None)
    return isinstance(error, KeyboardInterrupt)


def raise_again(number: int) -> None:
    """Do what the process does on this signal, now that all is saved: KeyboardInterrupt for Ctrl-C, as a rule."""
    if threading.current_thread() is not threading.main_thread():
        raise KeyboardInterrupt
    signal.raise_signal(number)
