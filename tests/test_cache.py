import errno
import os
import resource
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch

from pyvae.data import cache
from pyvae.errors import DataError

ROWS = np.random.default_rng(0).integers(0, 256, (1000, 64), dtype=np.uint8)


def build(append):
    append(ROWS[:400])
    append(ROWS[400:])
    return {"noted": 7}


def refuse(append):
    raise AssertionError("built although there is a cache")


def open_or_build(path, builder=build):
    return cache.load_or_build(path, "a-source", ROWS.shape, builder)


def test_directory(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("PYVAE_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache.directory() == tmp_path / "home/.cache/pyvae"
    assert cache.directory("~/here") == tmp_path / "home/here"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache.directory() == tmp_path / "xdg/pyvae"
    monkeypatch.setenv("PYVAE_CACHE", str(tmp_path / "own"))
    assert cache.directory() == tmp_path / "own"
    assert cache.directory(tmp_path) == tmp_path


@pytest.mark.filterwarnings("error")
def test_built_once_then_mapped(tmp_path, caplog):
    path = tmp_path / "made/on/demand/a.bits"
    first = open_or_build(path)
    again = open_or_build(path, refuse)
    for cached in (first, again):
        assert cached.bits.dtype == torch.uint8
        assert (cached.bits.numpy() == ROWS).all()
        assert cached.notes == {"noted": 7}
    assert first.crc32 == again.crc32
    assert os.listdir(path.parent) == ["a.bits"]
    assert not caplog.records


def test_writing_to_the_rows_leaves_the_file_alone(tmp_path):
    open_or_build(tmp_path / "a.bits").bits.zero_()
    assert (open_or_build(tmp_path / "a.bits", refuse).bits.numpy() == ROWS).all()


def _edit(position, change):
    def edit(data):
        data[position] = change(data[position])

    return edit


DAMAGE = {
    "empty": (lambda data: data.clear(), "has 0 bytes"),
    "header cut": (lambda data: data.__delitem__(slice(100, None)), "has 100 bytes"),
    "rows cut": (lambda data: data.__delitem__(slice(-1, None)), "bytes instead of"),
    "rows added": (lambda data: data.append(0), "bytes instead of"),
    "magic": (_edit(0, lambda b: b ^ 1), "not a cache file of pyvae"),
    "version": (_edit(8, lambda b: b + 1), f"version {cache.VERSION + 1}"),
    "description": (_edit(40, lambda b: b ^ 1), "damaged header"),
    "first bit": (_edit(cache.HEADER_BYTES, lambda b: b ^ 1), "checksum"),
    "last bit": (_edit(-1, lambda b: b ^ 128), "checksum"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_cache_is_built_again(tmp_path, caplog, damage):
    spoil, reason = DAMAGE[damage]
    path = tmp_path / "a.bits"
    open_or_build(path)
    data = bytearray(path.read_bytes())
    spoil(data)
    path.write_bytes(data)
    assert (open_or_build(path).bits.numpy() == ROWS).all()
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert str(path) in record.getMessage()
    assert reason in record.getMessage()
    assert "\n" not in record.getMessage()
    assert (open_or_build(path, refuse).bits.numpy() == ROWS).all()


@pytest.mark.parametrize(("source", "shape"), [("another", ROWS.shape), ("a-source", (500, 128))])
def test_cache_of_something_else_is_built_again(tmp_path, caplog, source, shape):
    path = tmp_path / "a.bits"
    cache.load_or_build(path, source, shape, build)
    open_or_build(path)
    assert f"was made from {source}" in caplog.text


@pytest.mark.parametrize("error", [KeyboardInterrupt, DataError, MemoryError])
def test_interrupted_build_leaves_nothing(tmp_path, error):
    def interrupted(append):
        append(ROWS[:400])
        raise error

    with pytest.raises(error):
        open_or_build(tmp_path / "a.bits", interrupted)
    assert not os.listdir(tmp_path)


def test_short_build_is_not_used(tmp_path):
    def short(append):
        append(ROWS[:-1])
        return {}

    with pytest.raises(DataError, match=r"just written has .* bytes instead of .* PYVAE_CACHE"):
        open_or_build(tmp_path / "a.bits", short)


def assert_refused(directory, reason, verb="write"):
    with pytest.raises(DataError) as caught:
        open_or_build(directory / "a.bits")
    message = str(caught.value)
    assert message.startswith(f"{directory}: cannot {verb}")
    assert reason in message
    assert "PYVAE_CACHE" in message
    assert "\n" not in message


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_disk_full(tmp_path, monkeypatch, call):
    def full(*args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, call, full)
    assert_refused(tmp_path, "No space left on device")
    assert not os.listdir(tmp_path)


def test_file_size_limit(tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (cache.HEADER_BYTES + 5000, limits[1]))
    try:
        assert_refused(tmp_path, "File too large")
        assert not os.listdir(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.fixture
def read_only():
    """A directory without write permission, as another user than root, who may write anywhere."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o555)
        if os.geteuid() == 0:
            os.seteuid(65534)
        yield Path(name)
        os.seteuid(os.getuid())
        Path(name).chmod(0o700)


def test_read_only_directory(read_only):
    assert_refused(read_only, "Permission denied")


def test_directory_that_is_a_file(tmp_path):
    (tmp_path / "file").touch()
    assert_refused(tmp_path / "file", "Not a directory", "read")
    (tmp_path / "a.bits").mkdir()
    assert_refused(tmp_path, "a directory, not a regular file", "read")


WRITER = """
    import os, sys, time
    from pathlib import Path
    import numpy as np
    from pyvae.data import cache

    directory, me, other = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
    rows = np.arange(64000, dtype=np.uint32).view(np.uint8).reshape(1000, 256)
    built = 0

    def build(append):
        global built
        built += 1
        for part in np.split(rows, 10):
            append(part)
            time.sleep(0.001)
        return {}

    (directory / me).touch()
    while not (directory / other).exists():
        time.sleep(0.001)
    for k in range(40):
        cached = cache.load_or_build(directory / f"{k}.bits", "s", rows.shape, build)
        assert (cached.bits.numpy() == rows).all()
    print(built)
"""


def test_two_writers_at_once(tmp_path):
    command = [sys.executable, "-W", "error", "-c", textwrap.dedent(WRITER), str(tmp_path)]
    root = Path(__file__).resolve().parents[1]
    writers = [
        subprocess.Popen(
            [*command, *names], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=root
        )
        for names in (("one", "two"), ("two", "one"))
    ]
    results = [writer.communicate(timeout=60) for writer in writers]
    assert [writer.returncode for writer in writers] == [0, 0], results
    assert [err for _, err in results] == ["", ""]
    assert sum(int(out) for out, _ in results) > 40, "the two never built the same file at once"
    assert sorted(os.listdir(tmp_path)) == sorted(["one", "two", *(f"{k}.bits" for k in range(40))])
