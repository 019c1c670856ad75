"""The order of copies and steps, on a GPU that does things as early or as late as it may."""

import threading
from collections import deque
from contextlib import contextmanager
from functools import partial

import pytest
import torch

from pyvae.engine.batches import BatchOrder, Streamed
from tiny import TinyData

WINDOW = 4


class Gpu:
    """torch.cuda's streams and events; the device's memory is the host's.

    One of two streams does everything as early as its order allows, the other when it is waited for.
    """

    def __init__(self, monkeypatch, early):
        self.lock = threading.RLock()
        self.steps, self.copies = Stream(self), Stream(self)
        self.early, self.late = (self.steps, self.copies)[:: 1 if early == "steps" else -1]
        self.log = []
        self._current = threading.local()
        monkeypatch.setattr(torch.cuda, "Stream", lambda device: self.copies)
        monkeypatch.setattr(torch.cuda, "Event", lambda: Event(self))
        monkeypatch.setattr(torch.cuda, "current_stream", self.current_stream)
        monkeypatch.setattr(torch.cuda, "stream", self.stream)
        monkeypatch.setattr(torch, "empty", self.empty(torch.empty))
        monkeypatch.setattr(torch.Tensor, "copy_", self.copy_(torch.Tensor.copy_))

    def current_stream(self, device=None):
        return getattr(self._current, "stream", self.steps)

    @contextmanager
    def stream(self, stream):
        self._current.stream = stream
        yield
        del self._current.stream

    def empty(self, new):
        def empty(*args, device=None, pin_memory=False, **kwargs):
            x = new(*args, **kwargs)
            if device is not None:
                # whoever had this memory before is not done with it yet
                self.steps.add(lambda: x.fill_(7))
            return x

        return empty

    def copy_(self, copy):
        def copy_(to, source, non_blocking=False):
            if not non_blocking:
                return copy(to, source)
            self.current_stream().add(lambda: self.log.append(("copy", copy(to, source).ndim)))
            return to

        return copy_

    def work(self, until=None):
        with self.lock:
            while True:
                while self.early.next():
                    pass
                if until is None or until():
                    return
                assert self.late.next(), "each stream waits for the other"


class Stream:
    def __init__(self, gpu):
        self.gpu, self.queue = gpu, deque()

    def add(self, work, may=lambda: True):
        with self.gpu.lock:
            self.queue.append((work, may))
            self.gpu.work()

    def next(self):
        """Do what is next, if it may be done; whether it was."""
        if not self.queue or not self.queue[0][1]():
            return False
        self.queue.popleft()[0]()
        return True

    def record_event(self):
        event = Event(self.gpu)
        event.record(self)
        return event

    def wait_event(self, event):
        last = event.recorded
        self.add(lambda: None, may=lambda: event.reached >= last)


class Event:
    def __init__(self, gpu):
        self.gpu, self.recorded, self.reached = gpu, 0, 0

    def record(self, stream):
        self.recorded += 1
        stream.add(lambda number=self.recorded: setattr(self, "reached", number))

    def synchronize(self):
        last = self.recorded
        self.gpu.work(until=lambda: self.reached >= last)


@pytest.fixture(params=["steps", "copies"])
def gpu(request, monkeypatch):
    return Gpu(monkeypatch, request.param)


def trained(gpu, steps):
    """``steps`` of a run handed to the GPU, as far as it has come with them; the batches that were wrong."""
    data, wrong = TinyData(), []
    order = BatchOrder(9, len(data), 5, torch.device("cpu"), window=WINDOW)
    streamed = Streamed(data.images, order, torch.device("cuda"), WINDOW)

    def step(number, index):
        batch = streamed.batch(torch.tensor(number))
        gpu.log.append(("step", number))
        if not (torch.equal(batch.which, index) and torch.equal(batch.images, data.images(index))):
            wrong.append(number)

    for number in steps:
        streamed.prepare(number)
        gpu.steps.add(partial(step, number, order.draw(number, 1)[0]))
    streamed._reader.shutdown()
    return wrong


@pytest.mark.parametrize(
    "steps",
    [range(40), range(22, 40), [*range(10), *range(22, 30), 17, 18, 3, 4, 5], [0, 8, 16, 0, 1, 8, 4]],
    ids=["on", "resumed", "restored", "one half alone"],
)
def test_each_step_reads_its_own_batch(gpu, steps):
    wrong = trained(gpu, steps)
    gpu.work(until=lambda: not gpu.steps.queue)
    assert wrong == []
    assert [number for what, number in gpu.log if what == "step"] == list(steps)


def test_a_window_is_copied_beside_the_steps_of_the_one_before(monkeypatch):
    gpu = Gpu(monkeypatch, early="copies")
    assert trained(gpu, range(8 * WINDOW)) == []
    gpu.work(until=lambda: not gpu.steps.queue)
    copied = [n for n, (what, _) in enumerate(gpu.log) if what == "copy"][::2]
    for window, at in enumerate(copied):
        done = [number for what, number in gpu.log[:at] if what == "step"]
        assert len(done) == max(0, window - 1) * WINDOW


def test_the_host_runs_ahead_of_the_steps(monkeypatch):
    """It waits for pinned memory alone, which a copy is done with once the steps of two windows before it are."""
    gpu = Gpu(monkeypatch, early="copies")
    trained(gpu, range(8 * WINDOW))
    done = [number for what, number in gpu.log if what == "step"]
    # window 8 was read into the memory of window 6, whose copy took the place of window 4
    assert len(done) == 5 * WINDOW
