import errno
import os

import numpy as np
import pytest
import torch

from pyvae.engine import trace
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
    file.append([(0, [1.5, 1 / 3]), (10, [2.5, 0.25])])
    file.close()
    columns = read_trace(tmp_path / "trace.csv")
    assert list(columns) == ["step", "loss", "kl"]
    assert columns["step"].dtype == np.int64
    np.testing.assert_allclose(columns["kl"], [1 / 3, 0.25], rtol=1e-8)


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


DAMAGES = {
    "zeros at the end": (b"step,a\n0,1\n2,1\n" + bytes(5000), 2),
    "zeros in the middle": (b"step,a\n0,1\n" + bytes(4096) + b"\n4,1\n", 2),
    "zeros alone": (bytes(4096), 0),
    "half a row": (b"step,a\n0,1\n2,1\n4", 2),
    "half a value": (b"step,a,b\n0,1,2\n2,1,2\n4,1,", 2),
    "half a header": (b"step,", 0),
    "a header that is none": (b"st\0p,a\n0,1\n2,1\n", 2),
    "no text": (b"step,a\n0,1\n\xff\xfe,1\n4,1\n", 2),
    "no number": (b"step,a\n0,1\n2,x\n4,1\n", 2),
    "not finite": (b"step,a\n0,1\n2,nan\n4,inf\n5,1e39\n", 1),
    "another digit": ("step,a\n0,1\n\u00b2,1\n4,1\n".encode(), 2),
    "a step of a thousand digits": (b"step,a\n0,1\n" + b"1" * 1000 + b",1\n4,1\n", 2),
    "a line without end": (b"step,a\n0,1\n" + b"1" * (1 << 19) + b"\n4,1\n", 2),
    "steps that fall": (b"step,a\n0,1\n4,1\n2,1\n", 2),
    "nothing": (b"", 0),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_trace_is_gone_on_with_and_it_is_said(tmp_path, damage, caplog):
    path = tmp_path / "trace.csv"
    content, rows = DAMAGES[damage]
    path.write_bytes(content)
    fields = ["a", "b"] if damage == "half a value" else ["a"]
    file = TraceFile(path, fields, 10, 5)
    assert file.rows == rows
    file.append([(10, [0.5] * len(fields))])
    file.close()
    (said,) = caplog.messages
    assert f"lacks {5 - rows} of the rows before its checkpoint of step 10, as after a power cut" in said
    assert ("there are none" if rows == 0 else "the last is of step") in said
    columns = read_trace(path)
    assert len(columns["a"]) == rows + 1
    assert (columns["step"][-1], columns["a"][-1]) == (10, 0.5)
    assert len(caplog.messages) == 1


def test_a_trace_that_is_whole_says_nothing(tmp_path, caplog):
    (tmp_path / "trace.csv").write_text("step,a\n0,1\n2,1\n4,1\n")
    assert TraceFile(tmp_path / "trace.csv", ["a"], 4, 2).rows == 2
    (tmp_path / "trace.csv").unlink()
    assert TraceFile(tmp_path / "trace.csv", ["a"], 0).rows == 0
    assert not caplog.messages
    assert TraceFile(tmp_path / "trace.csv", ["a"], 4, 2).rows == 0
    assert len(caplog.messages) == 1


def test_damaged_rows_are_left_out_of_what_is_read(tmp_path, caplog):
    path = tmp_path / "trace.csv"
    path.write_bytes(b"step,a\n0,1\n" + bytes(100) + b"\n4,x\n6,2\n8,")
    for _ in range(2):
        assert read_trace(path)["a"].tolist() == [1, 2]
    # the last may be under way
    assert caplog.messages == [f"{path}: damaged lines are left out, 2 of them"]
    path.write_bytes(bytes(100) + b"\n0,1\n")
    with pytest.raises(RunError, match="its first line does not name its columns"):
        read_trace(path)
    path.write_bytes(b"step,a,a\n0,1,1\n")
    with pytest.raises(RunError, match="its first line does not name its columns"):
        read_trace(path)
    path.write_bytes(b"step,a\n0,1\n")
    with pytest.raises(RunError, match="it has no column kl_0"):
        read_trace(path, ["a", "kl_0"])


def test_a_full_disk_takes_all_of_the_rows_or_none(tmp_path, monkeypatch):
    path = tmp_path / "trace.csv"
    file = TraceFile(path, ["a"], 0)
    file.append([(0, [1.0])])
    before = path.read_bytes()

    def half(opened, content):
        opened.write(content[: len(content) // 2])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(trace, "append_all", half)
    with pytest.raises(
        RunError, match=r"cannot write .*: No space left on device; what was saved before is intact"
    ):
        file.append([(1, [1.0]), (2, [1.0])])
    assert path.read_bytes() == before
    assert file.rows == 1
    file.close()


def test_a_disk_that_does_not_take_it_is_an_error(tmp_path, monkeypatch):
    file = TraceFile(tmp_path / "trace.csv", ["a"], 0)

    def fail(_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(RunError, match=r"cannot write .*: Input/output error"):
        file.sync()


def test_a_hole_is_not_read(tmp_path):
    path = tmp_path / "trace.csv"
    path.write_bytes(b"step,a\n0,1\n")
    os.truncate(path, 1 << 40)
    for use in (lambda: read_trace(path), lambda: TraceFile(path, ["a"], 4)):
        with pytest.raises(RunError, match="larger than 4 GiB, which no trace is"):
            use()


def test_missing_or_empty_trace(tmp_path):
    with pytest.raises(RunError, match=r"cannot read .*trace.csv: No such file"):
        read_trace(tmp_path / "trace.csv")
    for content in ("step,loss\n", "", "step,loss\n1\n"):
        (tmp_path / "trace.csv").write_text(content)
        with pytest.raises(RunError, match="holds no step yet"):
            read_trace(tmp_path / "trace.csv")
