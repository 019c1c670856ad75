import os
import socket

import pytest

from pyvae.engine.files import append_all, make_directory, open_lock, set_aside, write_atomically
from pyvae.errors import RunError


def test_directories_and_the_names_of_new_ones_are_on_the_disk(tmp_path, monkeypatch):
    synced = []
    fsync = os.fsync

    def record(descriptor):
        synced.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", record)
    make_directory(tmp_path / "a/b/c")
    assert sorted(synced) == [str(tmp_path), str(tmp_path / "a"), str(tmp_path / "a/b")]
    synced.clear()
    make_directory(tmp_path / "a/b/c")
    assert synced == []


def test_a_file_in_the_way_of_a_directory(tmp_path):
    (tmp_path / "a").write_text("")
    for path in (tmp_path / "a", tmp_path / "a/b"):
        with pytest.raises(RunError, match=r"cannot make .*: remove what is in its place"):
            make_directory(path)


def test_what_is_damaged_is_kept_under_a_name_of_its_own(tmp_path):
    names = []
    for content in ("one", "two", "three"):
        (tmp_path / "a").write_text(content)
        aside = set_aside(tmp_path / "a")
        assert aside.read_text() == content
        names.append(aside.name)
    assert names == ["a.damaged", "a.damaged-2", "a.damaged-3"]
    assert not (tmp_path / "a").exists()
    with pytest.raises(RunError, match="move it away"):
        set_aside(tmp_path / "a")


def test_short_writes_are_gone_on_with(tmp_path):
    class Slow:
        content = b""

        def write(self, part):
            self.content += bytes(part[:3])
            return min(len(part), 3)

    file = Slow()
    append_all(file, b"ten bytes!")
    assert file.content == b"ten bytes!"


def test_a_lock_keeps_what_is_in_its_file_and_is_one(tmp_path):
    path = tmp_path / "lock"
    open_lock(path).close()
    path.write_text("text")
    open_lock(path).close()
    assert path.read_text() == "text"


@pytest.mark.parametrize("kind", ["pipe", "device", "directory", "socket"])
def test_no_lock_is_taken_of_what_is_no_file(tmp_path, kind):
    path = tmp_path / "lock"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/null")
    elif kind == "directory":
        path.mkdir()
    else:
        socket.socket(socket.AF_UNIX).bind(str(path))
    with pytest.raises(OSError, match=r"not a regular file|directory|No such device"):
        open_lock(path)


def test_an_error_without_words_has_a_cause(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError("quota")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(RunError, match=r"cannot write .*: quota; what was saved before is intact"):
        write_atomically(tmp_path / "a", b"")
