import os
import socket
import subprocess
import sys
import time

import pytest

from pyvae.base import files
from pyvae.base.files import open_regular, remove_leftovers, replacing


def test_a_file_takes_its_place_only_when_the_block_ends(tmp_path):
    path = tmp_path / "a"
    path.write_text("old")
    with replacing(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert os.listdir(tmp_path) == ["a"]


def test_a_block_that_fails_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "a"
    path.write_text("old")

    def write():
        with replacing(path) as temporary:
            temporary.write_text("new")
            raise KeyError

    with pytest.raises(KeyError):
        write()
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a"]


def test_content_and_name_are_on_the_disk_in_that_order(tmp_path, monkeypatch):
    calls = []
    fsync, replace = os.fsync, os.replace

    def record_fsync(descriptor):
        calls.append(("fsync", os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}"))))
        fsync(descriptor)

    def record_replace(source, target):
        calls.append(("replace", os.path.basename(target)))
        replace(source, target)

    monkeypatch.setattr(os, "fsync", record_fsync)
    monkeypatch.setattr(os, "replace", record_replace)
    with replacing(tmp_path / "a") as temporary:
        temporary.write_text("new")
    assert calls == [("fsync", temporary.name), ("replace", "a"), ("fsync", tmp_path.name)]


def test_a_name_as_long_as_names_can_be(tmp_path):
    path = tmp_path / ("n" * 255)
    with replacing(path) as temporary:
        temporary.write_text("new")
    assert path.read_text() == "new"


KILLED = """
import os, sys
from pathlib import Path
from pyvae.base.files import replacing
with replacing(Path(sys.argv[1])) as temporary:
    temporary.write_text("half")
    if sys.argv[2] == "die":
        os._exit(9)
    print("writing", flush=True)
    sys.stdin.read()
"""


def test_what_a_killed_process_left_is_removed_and_no_other_file(tmp_path):
    def start(how):
        command = [sys.executable, "-c", KILLED, str(tmp_path / "a"), how]
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    assert start("die").wait() == 9
    (left,) = os.listdir(tmp_path)
    others = [".a.tmp", ".a.123.tmp", "a.123-ab.tmp", left.replace(".tmp", ".txt")]
    for name in others:
        (tmp_path / name).write_text("mine")
    with start("live") as writer:
        writer.stdout.readline()
        (living,) = {*os.listdir(tmp_path)} - {left, *others}
        assert remove_leftovers(tmp_path) == 1
        assert {*os.listdir(tmp_path)} == {living, *others}
        writer.stdin.close()
    assert {*os.listdir(tmp_path)} == {"a", *others}


def test_leftovers_of_another_machine_go_after_a_day(tmp_path, monkeypatch):
    with replacing(tmp_path / "a") as temporary:
        name = temporary.name
        temporary.write_text("")
    monkeypatch.setattr(files, "_host", lambda: "0" * 8)
    left = tmp_path / name
    left.write_text("")
    assert remove_leftovers(tmp_path) == 0
    os.utime(left, (time.time() - 100_000,) * 2)
    assert remove_leftovers(tmp_path) == 1


def test_a_directory_that_is_not_there_has_no_leftovers(tmp_path):
    assert remove_leftovers(tmp_path / "none") == 0


def test_regular_files_open_through_links(tmp_path):
    (tmp_path / "a").write_bytes(b"bytes")
    (tmp_path / "link").symlink_to("a")
    with open_regular(tmp_path / "link") as file:
        assert file.read() == b"bytes"


@pytest.mark.parametrize("kind", ["a named pipe", "a character device", "a directory", "a socket"])
def test_what_is_no_regular_file_is_refused_at_once(tmp_path, kind):
    path = tmp_path / "a"
    if kind == "a named pipe":
        os.mkfifo(path)
    elif kind == "a character device":
        path.symlink_to("/dev/zero")
    elif kind == "a directory":
        path.mkdir()
    else:
        server = socket.socket(socket.AF_UNIX)
        server.bind(str(path))
    with pytest.raises(OSError, match=r".") as caught:
        open_regular(path)
    if kind != "a socket":  # which the system itself refuses
        assert caught.value.strerror == f"{kind}, not a regular file"
