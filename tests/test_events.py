"""What TensorBoard reads of a run."""

from dataclasses import replace

import numpy as np
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

from pyvae.engine.loop import train
from pyvae.engine.run import Run
from pyvae.engine.trace import read_trace
from tiny import TinyData
from train_tiny import RECIPE


def test_events_are_the_trace_a_record_a_row(tmp_path):
    for steps in (4, 9):
        run = Run.create_or_resume(tmp_path, replace(RECIPE, steps=steps))
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
