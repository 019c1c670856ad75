import numpy as np
import pytest
import torch

from pyvae.engine.trace import Ring, TraceFile, read_trace
from pyvae.errors import RunError


def test_ring_keeps_the_steps_that_are_logged():
    ring = Ring(["a", "b"], 4, 3, torch.device("cpu"))
    assert ring.steps == 6
    for start in range(0, 60, 6):
        for step in range(start, start + 6):
            ring.write(torch.tensor(step), torch.tensor([step, step / 8], dtype=torch.float64))
        rows = ring.copy(start, start + 6)
        # what is written afterwards does not reach a copy
        ring.write(torch.tensor(start + 6), torch.tensor([-1.0, -1.0], dtype=torch.float64))
        assert rows.wait() == [(s, [s, s / 8]) for s in (start, start + 3)]
    assert ring.copy(60, 60).wait() == []
    assert ring.copy(61, 63).wait() == []


def test_rows_are_read_back(tmp_path):
    file = TraceFile(tmp_path / "trace.csv", ["loss", "kl"], 0)
    file.append([(0, [1.5, 1 / 3]), (10, [2.5, float("inf")])])
    file.close()
    columns = read_trace(tmp_path / "trace.csv")
    assert list(columns) == ["step", "loss", "kl"]
    assert columns["step"].dtype == np.int64
    np.testing.assert_allclose(columns["kl"], [1 / 3, np.inf], rtol=1e-8)


def test_resuming_drops_what_came_after_the_checkpoint_and_a_torn_row(tmp_path):
    path = tmp_path / "trace.csv"
    path.write_text("step,loss,kl\n0,1,1\n10,2,2\n20,3,3\n30,4\n3")
    file = TraceFile(path, ["loss", "kl"], 20)
    file.append([(20, [7.0, 7.0])])
    file.close()
    assert path.read_text() == "step,loss,kl\n0,1,1\n10,2,2\n20,7,7\n"


def test_other_columns_are_refused(tmp_path):
    (tmp_path / "trace.csv").write_text("step,loss\n0,1\n")
    with pytest.raises(RunError, match="other columns"):
        TraceFile(tmp_path / "trace.csv", ["loss", "kl"], 1)


def test_missing_or_empty_trace(tmp_path):
    with pytest.raises(RunError, match=r"cannot read .*trace.csv: No such file"):
        read_trace(tmp_path / "trace.csv")
    for content in ("step,loss\n", "", "step,loss\n1\n"):
        (tmp_path / "trace.csv").write_text(content)
        with pytest.raises(RunError, match="holds no step yet"):
            read_trace(tmp_path / "trace.csv")
