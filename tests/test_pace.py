"""How many steps are handed to a GPU at once, on one that is a clock."""

from types import SimpleNamespace

import pytest
import torch

from pyvae.engine import course, loop, pace, recorder, stepper
from pyvae.engine.recipe import Recipe
from pyvae.engine.run import RunDirectory
from pyvae.engine.stepper import Stepper
from tiny import TinyData

EAGER, CAPTURED = 5e-3, 4e-4
"""Seconds of a step, the one on the host, the other on the device."""


class Gpu:
    """Does what it is told, one thing after the other; the host waits for it at events alone."""

    def __init__(self, monkeypatch, captured=CAPTURED):
        self.host = self.device = 0.0
        self.captured = captured
        self.recorded = []
        monkeypatch.setattr(torch.cuda, "Event", lambda **_: Event(self))
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: f"stream of {device}")
        for module in (course, pace):
            monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: self.host))
        monkeypatch.setattr(course, "device_name", str)

    def work(self, host, device):
        self.host += host
        self.device = max(self.host, self.device) + device


class Event:
    def __init__(self, gpu):
        self._gpu = gpu

    def record(self, stream):
        self._gpu.recorded.append(stream)
        self._end = self._gpu.device

    def synchronize(self):
        self._gpu.host = max(self._gpu.host, self._end)


class Timed(Stepper):
    """Steps that take time and do nothing else."""

    def __init__(self, recipe, gpu, monkeypatch, log_every=100):
        super().__init__(recipe, ["loss", "kl_0"], torch.device("cpu"), log_every=log_every, capture=True)
        self.device = torch.device("cuda", 1)
        self._capturable = True
        self.gpu, self.eager, self.portions = gpu, 0, []
        replayed = SimpleNamespace(replay=lambda: gpu.work(1e-5, stepper.BURST * gpu.captured))
        monkeypatch.setattr(stepper, "Capture", lambda step, count: replayed)

    def tensors(self):
        return {"nothing": torch.zeros(1)}

    def restore(self, step, tensors):
        self._restart(step)

    def _prepare(self, step):
        pass

    def _step(self):
        self.eager += 1
        self.gpu.work(EAGER, self.gpu.captured)

    def advance(self, count=1):
        self.portions.append(count)
        super().advance(count)


@pytest.fixture
def train(monkeypatch, tmp_path):
    def train(captured=CAPTURED, log_every=100, **options):
        recipe = Recipe(data="tiny", **options)
        trainer = Timed(recipe, Gpu(monkeypatch, captured), monkeypatch, log_every)
        run = RunDirectory.create_or_resume(tmp_path / "run", recipe)
        with run.locked():
            begun = recorder.Begun(run, recipe, run.resumable())
            looped = course.Course([begun], TinyData(), trainer, 1.0, recipe.steps, loop._refuse)
            (outcome,) = looped.train([])
        assert outcome.step == trainer.step == recipe.steps
        trainer.pace = looped._pace
        return trainer

    return train


def test_what_is_no_whole_burst_is_all_that_is_eager(train):
    # 16 at first, when nothing is warm; then what ends a burst early, and the rest of that burst
    assert train(steps=5003, keep_at=(1000, 2025)).eager == 16 + 16 + 16 + 5003 % 16
    # and from there
    assert train(steps=9000, keep_at=(1000, 2025)).eager == 16 - 5003 % 16 + 9000 % 16


def test_a_full_ring_ends_a_portion_with_a_burst(train):
    """A trace of every step, and steps so fast that the ring is full long before half a second has gone."""
    trainer = train(captured=1e-5, log_every=1, steps=16_008, keep_at=(40,))
    assert max(trainer.portions) > 1000
    assert trainer.eager == 16 + 16 + 8


def test_portions_take_the_time_they_should(train):
    portions = train(steps=20_000).portions
    assert 0.05 <= portions[-3] * CAPTURED <= 0.2
    assert max(portions) * CAPTURED <= 0.2


def test_portions_cut_short_do_not_make_longer_ones(train):
    """Snapshots every burst look like a fast GPU."""
    portions = train(steps=20_000, keep_at=tuple(range(16, 800, 16))).portions
    assert max(portions) * CAPTURED <= 0.2


def test_the_pace_is_that_of_the_gpu_it_trains_on(monkeypatch):
    gpu = Gpu(monkeypatch)
    pace.Pace(Timed(Recipe(), gpu, monkeypatch)).advance(16)
    assert gpu.recorded == ["stream of cuda:1"]
