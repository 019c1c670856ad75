"""A process beside this one that does not outlive it, and messages to and from it."""

import contextlib
import os
import pickle
import queue
import subprocess
import sys
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from socket import socketpair
from typing import Any

_START = """import sys
sys.path[:] = {path!r}
from pyvae.studies.child import _serve
_serve({descriptor})
"""
_GRACE_SECONDS = 40.0


class GoneError(Exception):
    """The process has ended by itself."""


class Child:
    """A process that calls ``work(inbox, send, *arguments)``.

    ``inbox`` is a ``queue.Queue`` of what was sent to it, and None at the end; ``send`` sends a message back. Signals
    of the terminal do not reach it. Nobody waits for the other to read.

    Args:
        work: a function of a module.
        arguments: that pickle can hold.
        log: file that takes what it writes to its standard output and error; None: nothing is kept.
    """

    def __init__(self, work: Callable[..., None], *arguments: Any, log: Path | None = None) -> None:
        ours, theirs = socketpair()
        with theirs, open(os.devnull if log is None else log, "ab") as output:
            start = _START.format(path=sys.path, descriptor=theirs.fileno())
            self._process = subprocess.Popen(
                [sys.executable, "-c", start],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        self._connection = Connection(ours.detach())
        self._inbox: queue.Queue[Any] = queue.Queue()
        self._outbox: queue.Queue[Any] = queue.Queue()
        self._gone = False
        for target, messages in ((_receive, self._inbox), (_transmit, self._outbox)):
            threading.Thread(target=target, args=(self._connection, messages), daemon=True).start()
        self.send((work, arguments))

    def send(self, message: Any) -> None:
        """Send a message, which it reads when it gets to it."""
        self._outbox.put(message)

    def take(self, timeout: float | None) -> Any:
        """The next message of it; waits for ``timeout`` seconds, None: as long as it takes.

        Raises:
            queue.Empty: there is none.
            GoneError: there is none, and never will be.
        """
        if self._gone:
            raise GoneError
        message = (
            self._inbox.get(timeout=timeout) if timeout is None or timeout > 0 else self._inbox.get(False)
        )
        if message is None:
            self._gone = True
            raise GoneError
        return message

    def close(self, grace: float = 0.0) -> None:
        """End it: after what it has begun, if that takes no longer than ``grace`` seconds."""
        if grace:
            self.send(None)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(grace)
        self._process.kill()
        self._process.wait()
        self._outbox.put(_END)


_END = object()


def _receive(connection: Connection, inbox: "queue.Queue[Any]") -> None:
    with contextlib.suppress(EOFError, OSError, pickle.UnpicklingError):
        while True:
            inbox.put(connection.recv())
    inbox.put(None)


def _transmit(connection: Connection, outbox: "queue.Queue[Any]") -> None:
    with contextlib.suppress(OSError):
        while (message := outbox.get()) is not _END:
            connection.send(message)


def _serve(descriptor: int) -> None:
    """In the process: do the work; when the other one is gone, end."""
    connection = Connection(descriptor)
    work, arguments = connection.recv()
    inbox: queue.Queue[Any] = queue.Queue()
    outbox: queue.Queue[Any] = queue.Queue()

    def receive() -> None:
        _receive(connection, inbox)
        # what is begun may be put away, as a cluster is; and then there is nobody to work for
        threading.Event().wait(_GRACE_SECONDS)
        os._exit(1)

    threading.Thread(target=receive, daemon=True).start()
    sending = threading.Thread(target=_transmit, args=(connection, outbox), daemon=True)
    sending.start()
    work(inbox, outbox.put, *arguments)
    outbox.put(_END)
    sending.join()
