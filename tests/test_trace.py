import numpy as np
import pytest
import torch

from pyvae.engine.trace import Ring, TraceFile, read_trace
from pyvae.errors import RunError


def test_ring_gives_rows_back_in_order_and_empties():
    ring = Ring(["a", "b"], 3, torch.device("cpu"))
    ring.write(0, torch.tensor([1.0, 2.0], dtype=torch.float64))
    ring.write(5, torch.tensor([3.0, 4.0], dtype=torch.float64))
    assert not ring.full
    ring.write(9, torch.tensor([5.0, 0.1], dtype=torch.float64))
    assert ring.full
    assert ring.drain() == [(0, [1.0, 2.0]), (5, [3.0, 4.0]), (9, [5.0, 0.1])]
    assert ring.drain() == []


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
