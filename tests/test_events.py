"""What TensorBoard reads of a run."""

import errno
import io
import os
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

from pyvae.engine import events
from pyvae.engine.files import append_all
from pyvae.engine.loop import train
from pyvae.engine.run import RunDirectory
from pyvae.engine.trace import read_trace
from tiny import TinyData
from train_tiny import RECIPE


def test_events_are_the_trace_a_record_a_row(tmp_path):
    for steps in (4, 9):
        run = RunDirectory.create_or_resume(tmp_path, replace(RECIPE, steps=steps))
        train(run, TinyData(), torch.device("cpu"), log_every=2)
    columns = read_trace(tmp_path / "trace.csv")
    read = EventAccumulator(str(tmp_path / "events")).Reload()
    steps = columns.pop("step").tolist()
    assert steps == [0, 2, 4, 6, 8]
    assert {"loss", "kl", "grad_norm", "kl/0", "kl/9"} < set(read.Tags()["scalars"])
    assert len(read.Tags()["scalars"]) == len(columns)
    for name, column in columns.items():
        scalars = read.Scalars(name.replace("kl_", "kl/"))
        assert [s.step for s in scalars] == steps
        np.testing.assert_allclose([s.value for s in scalars], column, rtol=1e-6)
    records = [
        event for path in (tmp_path / "events").iterdir() for event in EventFileLoader(str(path)).Load()
    ]
    assert len([event for event in records if event.summary.value]) == len(steps)


def made(path, steps):
    run = RunDirectory.create_or_resume(path, replace(RECIPE, steps=steps))
    train(run, TinyData(), torch.device("cpu"), log_every=1, checkpoint_seconds=0)
    return run


def warnings(caplog):
    return [record.getMessage() for record in caplog.records if record.name.startswith("pyvae")]


def test_a_disk_that_takes_no_more_events_is_said_once(tmp_path, monkeypatch, caplog, capfd):
    written = 0

    def fails_later(file, content):
        nonlocal written
        written += 1
        if written > 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        append_all(file, content)

    monkeypatch.setattr(events, "append_all", fails_later)
    run = made(tmp_path, 6)
    assert len(read_trace(run.path / "trace.csv")["step"]) == 6
    assert run.newest_checkpoint().step == 6
    (said,) = warnings(caplog)
    assert said == (
        f"{run.events}: no more events for TensorBoard are written (No space left on device); training goes on, and "
        "trace.csv has every row"
    )
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
def test_a_device_that_is_always_full(tmp_path, monkeypatch, caplog, capfd):
    monkeypatch.setattr(events, "open", lambda *_, **__: io.FileIO("/dev/full", "w"), raising=False)
    assert made(tmp_path, 2).newest_checkpoint().step == 2
    assert len(warnings(caplog)) == 1
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize("call", ["fsync", "close"])
def test_a_failure_at_the_end_is_said_once(tmp_path, monkeypatch, caplog, call):
    class Failing(io.FileIO):
        def close(self):
            super().close()
            if call == "close":
                raise OSError(errno.EIO, os.strerror(errno.EIO))

    fsync = os.fsync

    def failing(descriptor):
        if call == "fsync" and "tfevents" in os.readlink(f"/proc/self/fd/{descriptor}"):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        fsync(descriptor)

    monkeypatch.setattr(events, "open", lambda path, mode, buffering: Failing(path, "x"), raising=False)
    monkeypatch.setattr(os, "fsync", failing)
    assert made(tmp_path, 3).newest_checkpoint().step == 3
    (said,) = warnings(caplog)
    assert "Input/output error" in said


def test_a_file_in_the_place_of_the_events(tmp_path, caplog):
    run = RunDirectory.create_or_resume(tmp_path, replace(RECIPE, steps=1))
    run.events.write_text("mine")
    made(tmp_path, 1)
    (said,) = warnings(caplog)
    assert "no more events for TensorBoard are written (cannot make" in said
    assert run.events.read_text() == "mine"


def test_training_needs_no_tensorboard(tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "tensorboard.compat.proto", None)
    assert made(tmp_path, 1).newest_checkpoint().step == 1
    (said,) = warnings(caplog)
    assert "tensorboard.compat.proto" in said
