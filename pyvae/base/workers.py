"""Threads that work off what they are given, also once the program's main thread has ended."""

import weakref
from collections.abc import Callable
from concurrent.futures import Executor, Future
from queue import SimpleQueue
from threading import Thread
from typing import Any, NamedTuple, ParamSpec, TypeVar

T = TypeVar("T")
P = ParamSpec("P")


class _Task(NamedTuple):
    future: "Future[Any]"
    call: Callable[[], Any]

    def run(self) -> None:
        if self.future.set_running_or_notify_cancel():
            try:
                self.future.set_result(self.call())
            except BaseException as error:
                self.future.set_exception(error)


class Workers(Executor):
    """As :class:`concurrent.futures.ThreadPoolExecutor`, which takes nothing more once the main thread is through, so
    that training on another thread could not save any more.

    Args:
        count: of threads, which begin at once.
        name: that theirs begin with.
    """

    def __init__(self, count: int, name: str) -> None:
        self._tasks: SimpleQueue[_Task | None] = SimpleQueue()
        # daemons: whoever waits for what they do is no daemon, and whoever forgot them must not wait for ever
        self._threads = [
            Thread(target=_work, args=(self._tasks,), name=f"{name}_{i}", daemon=True) for i in range(count)
        ]
        for thread in self._threads:
            thread.start()
        self._end = weakref.finalize(self, _end, self._tasks, count)
        self._end.atexit = False

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> "Future[T]":
        """Have ``fn(*args, **kwargs)`` called on one of the threads.

        Raises:
            RuntimeError: after :meth:`shutdown`.
        """
        if not self._end.alive:
            raise RuntimeError("these workers have been sent home")
        future: Future[T] = Future()
        self._tasks.put(_Task(future, lambda: fn(*args, **kwargs)))
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take nothing more; ``wait`` until what was given is done."""
        self._end()
        if wait:
            for thread in self._threads:
                thread.join()


def _work(tasks: "SimpleQueue[_Task | None]") -> None:
    while (task := tasks.get()) is not None:
        task.run()
        del task  # it may hold whoever has these workers


def _end(tasks: "SimpleQueue[_Task | None]", count: int) -> None:
    for _ in range(count):
        tasks.put(None)
