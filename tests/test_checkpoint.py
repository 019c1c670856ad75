import contextlib
import errno
import json
import os
import pickle
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from safetensors.torch import save as serialise

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


@pytest.mark.parametrize("damage", ["truncated", "empty", "foreign", "pickle", "other"])
def test_a_damaged_file_is_named(tmp_path, damage):
    path = checkpoint.save(tmp_path, make(3))
    content = path.read_bytes()
    path.write_bytes(
        {
            "truncated": content[:-10],
            "empty": b"",
            "foreign": b"hello world, this is not a checkpoint",
            "pickle": pickle.dumps({"w": 1}),
            "other": serialise({"w": torch.zeros(3)}),
        }[damage]
    )
    with pytest.raises(
        RunError, match=r"step-000000000003.safetensors is not a whole checkpoint .*: put back a copy"
    ):
        checkpoint.load_newest(tmp_path)


def test_a_flipped_bit_in_any_byte_is_seen(tmp_path):
    path = checkpoint.save(tmp_path, make(3))
    whole, content = checkpoint.load(path), path.read_bytes()
    passed = []
    for at in range(len(content)):
        changed = bytearray(content)
        changed[at] ^= 1 << at % 7
        path.write_bytes(changed)
        with contextlib.suppress(RunError):
            loaded = checkpoint.load(path)
            passed.append(at)
            assert loaded.metadata == whole.metadata
            assert all(torch.equal(tensor, loaded.tensors[name]) for name, tensor in whole.tensors.items())
    # the name of the checksum alone: without one, it is a file of an earlier version
    at = content.index(b"checksum")
    assert set(passed) <= set(range(at, at + len("checksum")))


def test_the_checksum_is_of_names_types_shapes_and_bytes(tmp_path):
    about = json.dumps({"step": 1, **ABOUT})
    ours = {"a": torch.arange(6.0).view(2, 3), "b": torch.ones(2, dtype=torch.int32)}
    header = {"pyvae": about, "checksum": f"crc32:{slow_checksum(about, ours):08x}"}
    path = checkpoint.path_of(tmp_path, 1)
    path.write_bytes(serialise(ours, header))
    checkpoint.load(path)
    for other in (
        {"c": ours["a"], "b": ours["b"]},
        {"a": ours["a"].view(3, 2), "b": ours["b"]},
        {"a": ours["a"].view(torch.int32), "b": ours["b"]},
        {"a": ours["a"], "b": ours["b"].view(torch.float32)},
        {"a": ours["a"].flip(0), "b": ours["b"]},
        {"a": ours["a"]},
    ):
        path.write_bytes(serialise(other, header))
        with pytest.raises(RunError, match="its checksum is another"):
            checkpoint.load(path)


def slow_checksum(about, tensors):
    text = about.encode()
    for name in sorted(tensors):
        tensor = tensors[name]
        text += f"\0{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode()
        text += b"".join(value.tobytes() for value in tensor.numpy().flatten())
    crc = 0xFFFFFFFF
    for byte in text:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0xEDB88320 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def test_earlier_versions_wrote_no_checksum(tmp_path):
    path = checkpoint.path_of(tmp_path, 7)
    path.write_bytes(serialise({"w": torch.ones(2)}, {"pyvae": json.dumps({"step": 7, **ABOUT})}))
    assert checkpoint.load(path).tensors["w"].tolist() == [1, 1]


def without_a_checksum(path, step, change):
    tensors = {"w": torch.ones(2)}
    path.write_bytes(serialise(tensors, {"pyvae": json.dumps({"step": step, **ABOUT, **change})}))
    return path


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"step": 8}, "it says that it is of step 8"),
        ({"step": -7}, "it says that it is of step -7"),
        ({"step": True}, "step must be an integer of 64 bits, got True"),
        ({"data": 3}, "data must be text, got 3"),
        ({"image_shape": [1, 64]}, "image_shape must be a list of 3"),
        ({"image_shape": [2, 64, 64]}, "image_shape cannot be"),
        ({"image_shape": [1, 0, 64]}, "image_shape cannot be"),
        ({"seconds": -1.0}, "seconds cannot be -1.0"),
        ({"seconds": float("nan")}, "seconds cannot be nan"),
        ({"seconds": float("inf")}, "seconds cannot be inf"),
        ({"versions": {"torch": 2}}, "versions.torch must be text"),
        ({"recipe": "vae"}, "recipe must be an object"),
        ({"trace_rows": -1}, "trace_rows cannot be -1"),
    ],
)
def test_what_a_checkpoint_says_of_itself_is_checked(tmp_path, change, reason):
    path = without_a_checksum(checkpoint.path_of(tmp_path, 7), 7, change)
    with pytest.raises(RunError, match=re.escape(reason)):
        checkpoint.load(path)


@pytest.mark.parametrize("repair", [False, True])
def test_the_one_before_is_taken_and_it_is_said(tmp_path, caplog, repair):
    good, bad = (checkpoint.save(tmp_path, make(step)) for step in (5, 9))
    content = bytearray(bad.read_bytes())
    content[-1] ^= 1
    bad.write_bytes(content)
    assert checkpoint.load_newest(tmp_path, repair=repair).step == 5
    (said,) = caplog.messages
    assert said.startswith(f"{bad} is not a whole checkpoint (its checksum is another")
    assert said.endswith(": taking the one before, of step 5")
    if repair:
        # neither counted among those that are kept nor lost
        assert (tmp_path / f"{bad.name}.damaged").read_bytes() == content
        checkpoint.save(tmp_path, make(6))
        assert [checkpoint.step_of(path) for path in checkpoint.paths(tmp_path)] == [5, 6]
    else:
        assert bad.read_bytes() == content
    good.write_bytes(b"")
    for path in checkpoint.paths(tmp_path):
        path.write_bytes(b"")
    with pytest.raises(
        RunError, match=r"\(no safetensors file\), nor is any of the 1 before it: put back a copy of"
    ):
        checkpoint.load_newest(tmp_path)


def test_one_that_training_removed_since_they_were_listed(tmp_path, monkeypatch, caplog):
    for step in (1, 2):
        checkpoint.save(tmp_path, make(step))
    load = checkpoint.load

    def late(path):
        if checkpoint.step_of(path) == 2:
            for step in (3, 4):
                checkpoint.save(tmp_path, make(step))
        return load(path)

    monkeypatch.setattr(checkpoint, "load", late)
    assert checkpoint.load_newest(tmp_path).step == 4
    assert not caplog.messages


def test_a_hole_is_not_read(tmp_path):
    """Files of a terabyte that take no room."""
    path = checkpoint.path_of(tmp_path, 7)
    header = json.dumps({"w": {"dtype": "F32", "shape": [2**38], "data_offsets": [0, 2**40]}}).encode()
    for start in (b"", len(header).to_bytes(8, "little") + header[:-1] + b" ", (2**40).to_bytes(8, "little")):
        path.write_bytes(start)
        os.truncate(path, 1 << 40)
        with pytest.raises(RunError, match="not a whole checkpoint"):
            checkpoint.load(path)


def test_other_files_are_no_checkpoints(tmp_path):
    for name in (
        "step-x.safetensors",
        "step-1.safetensors",
        "step-000000000001.safetensors.damaged",
        "step-.safetensors",
    ):
        (tmp_path / name).write_bytes(b"")
    assert checkpoint.paths(tmp_path) == []
    later = [checkpoint.path_of(tmp_path, step) for step in (10**12, 999_999_999_999)]
    for path in later:
        path.write_bytes(b"")
    assert checkpoint.paths(tmp_path) == later[::-1]


def test_a_place_that_is_no_directory(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(RunError, match=r"cannot read .*file: Not a directory"):
        checkpoint.paths(tmp_path / "file")
    with pytest.raises(RunError, match=r"cannot make .*file"):
        checkpoint.save(tmp_path / "file", make(1))


def test_tensors_that_do_not_fit_are_named():
    wanted = {"net.w": torch.zeros(2, 3), "net.b": torch.zeros(3)}
    fitting = {
        **{name: torch.ones_like(tensor) for name, tensor in wanted.items()},
        "net.optimizer.w.exp_avg": torch.zeros(2, 3),
        "net.optimizer.w.step": torch.zeros(()),
    }
    checkpoint.check_fit(fitting, wanted, "it")
    for name, tensor, message in (
        ("net.w", torch.zeros(3, 2), "float32 [3, 2], and should be float32 [2, 3]"),
        ("net.b", torch.zeros(3).double(), "float64 [3], and should be float32 [3]"),
        ("net.optimizer.w.exp_avg", torch.zeros(2), "float32 [2], and should be float32 [2, 3]"),
    ):
        with pytest.raises(RunError, match=re.escape(f"it does not fit its recipe: {name} is {message}")):
            checkpoint.check_fit({**fitting, name: tensor}, wanted, "it")
    del fitting["net.b"]
    with pytest.raises(RunError, match=re.escape("it does not fit its recipe: it has no net.b")):
        checkpoint.check_fit(fitting, wanted, "it")


class Broken(Exception):
    pass


def test_what_a_thread_writes_is_of_when_it_was_given_and_few_copies(tmp_path, monkeypatch):
    copies, to_host = [], checkpoint.to_host
    monkeypatch.setattr(checkpoint, "to_host", lambda x: copies.append(x) or to_host(x))
    given = make(3)
    given.tensors.update(
        bias=torch.arange(3.0), seen=torch.arange(4), none=torch.zeros(0, 2), on=torch.tensor(True)
    )
    expected = checkpoint.load(checkpoint.save(tmp_path / "here", given)).tensors
    with ThreadPoolExecutor(1) as writer:
        saver = checkpoint.Saver(tmp_path / "there", writer, [lambda: time.sleep(0.1)])
        saver.save(given)
        for tensor in given.tensors.values():
            tensor.zero_()
        saver.wait()
    written = checkpoint.load_newest(tmp_path / "there").tensors
    assert written.keys() == expected.keys()
    for name, tensor in expected.items():
        assert (written[name].dtype, written[name].shape) == (tensor.dtype, tensor.shape)
        assert torch.equal(written[name], tensor)
    assert len(copies) == 3  # one of a dtype


def test_a_failure_on_the_thread_reaches_who_waits(tmp_path, monkeypatch):
    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with ThreadPoolExecutor(1) as writer:
        saver = checkpoint.Saver(tmp_path, writer)
        saver.save(make(1))
        assert saver.wait() == 1
        monkeypatch.setattr(os, "fsync", full)
        saver.save(make(2))
        with pytest.raises(RunError, match="No space left on device; what was saved before is intact"):
            saver.wait()
    assert checkpoint.load_newest(tmp_path).step == 1


def test_what_is_being_written_is_not_lost_when_something_else_fails(tmp_path):
    def slow():
        time.sleep(0.2)

    def train():
        with ThreadPoolExecutor(1) as writer:
            checkpoint.Saver(tmp_path, writer, [slow]).save(make(1))
            raise Broken

    with pytest.raises(Broken):
        train()
    assert checkpoint.load_newest(tmp_path).step == 1
