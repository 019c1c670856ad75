import errno
import os
import pickle
import subprocess
import sys

import pytest
import torch

from pyvae.engine import checkpoint
from pyvae.engine.checkpoint import Checkpoint
from pyvae.errors import RunError


ABOUT = {"data": "tiny", "image_shape": (1, 64, 64)}


def make(step, scale=1.0):
    channels_last = (
        (torch.arange(96.0) * scale).view(2, 3, 4, 4).contiguous(memory_format=torch.channels_last)
    )
    return Checkpoint(step, {"net.w": channels_last, "optimizer.w.step": torch.tensor(7.0)}, dict(ABOUT))


def test_round_trip(tmp_path):
    checkpoint.save(tmp_path, make(12))
    loaded = checkpoint.load_newest(tmp_path)
    assert loaded.step == 12
    assert loaded.metadata == ABOUT
    for name, tensor in make(12).tensors.items():
        assert torch.equal(loaded.tensors[name], tensor)


def test_the_newest_two_are_kept(tmp_path):
    for step in (5, 999, 1000, 20_000):
        checkpoint.save(tmp_path, make(step))
    assert [p.name for p in checkpoint.paths(tmp_path)] == [
        "step-000000001000.safetensors",
        "step-000000020000.safetensors",
    ]


def test_no_checkpoint(tmp_path):
    assert checkpoint.load_newest(tmp_path / "none") is None


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO])
def test_a_full_disk_leaves_the_previous_checkpoint(tmp_path, monkeypatch, error):
    checkpoint.save(tmp_path, make(1))

    def fail(_):
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(RunError, match="saved before is intact"):
        checkpoint.save(tmp_path, make(2))
    assert [p.name for p in tmp_path.iterdir()] == ["step-000000000001.safetensors"]
    assert checkpoint.load_newest(tmp_path).step == 1


FULL_DISK = """
import resource, signal, sys
from pathlib import Path
import torch
from pyvae.engine import checkpoint
from pyvae.errors import RunError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    checkpoint.save(Path(sys.argv[1]), checkpoint.Checkpoint(2, {"w": torch.zeros(100_000)}, {}))
except RunError as error:
    print(error)
    sys.exit(1)
"""


def test_a_write_that_stops_half_way(tmp_path):
    checkpoint.save(tmp_path, make(1))
    done = subprocess.run([sys.executable, "-c", FULL_DISK, tmp_path], capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    assert "File too large" in done.stdout
    assert len(list(tmp_path.iterdir())) == 1
    assert checkpoint.load_newest(tmp_path).step == 1


@pytest.mark.parametrize("damage", ["truncated", "empty", "foreign", "pickle"])
def test_a_damaged_file_is_named(tmp_path, damage):
    path = checkpoint.save(tmp_path, make(3))
    content = path.read_bytes()
    path.write_bytes(
        {
            "truncated": content[:-10],
            "empty": b"",
            "foreign": b"hello world, this is not a checkpoint",
            "pickle": pickle.dumps({"w": 1}),
        }[damage]
    )
    with pytest.raises(RunError, match=r"step-000000000003.safetensors is not a whole checkpoint"):
        checkpoint.load_newest(tmp_path)
