"""A cache file is that of the files as they are: whatever took their place, and however it was dated."""

import os
import shutil
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image

from pyvae.data import cache, load, sprites
from pyvae.data.dsprites import DSprites
from pyvae.data.origin import Origin
from pyvae.errors import DataError
from test_dsprites import GRID, published, write_hdf5, write_npz

SHAPE = (5, 64, 64)


@pytest.fixture(autouse=True)
def cache_dir(tmp_path, monkeypatch):
    monkeypatch.setenv("PYVAE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def members():
    """Those of dSprites on a small grid."""
    packed = np.concatenate(list(sprites.generate(GRID)))
    return published(np.unpackbits(packed, axis=1, bitorder="little").reshape(-1, 64, 64))


def write_npy(path, value):
    np.save(path, np.full(SHAPE, value, np.uint8))


def write_npz_of(path, value):
    np.savez(path, images=np.full(SHAPE, value, np.uint8))


def write_h5_of(path, value):
    with h5py.File(path, "w") as file:
        file["images"] = np.full(SHAPE, value, np.uint8)


def write_idx(path, value):
    path.write_bytes(bytes.fromhex("00000803 00000005 00000040 00000040") + bytes([value]) * (5 * 64 * 64))


def write_picture(path, value):
    Image.fromarray(np.full(SHAPE[1:], value, np.uint8)).save(path)


def write_folder(path, value):
    path.mkdir(exist_ok=True)
    for number, each in enumerate((150, value, 150)):
        write_picture(path / f"{number}.bmp", each)


WRITERS = {
    "a.npy": write_npy,
    "a.npz": write_npz_of,
    "a.h5": write_h5_of,
    "idx": write_idx,
    "folder": write_folder,
}


def value(path):
    """Of the second image."""
    return int(load(path, progress=False).pixels[1, 0, 0, 0])


def replace_unseen(write, path, new):
    """As ``cp -p``, ``rsync -t`` and ``tar`` do: another file with the old one's times."""
    other = path.with_name(f"other{path.suffix}")
    write(other, new)
    target = path / "1.bmp" if path.is_dir() else path
    source = other / "1.bmp" if path.is_dir() else other
    before = target.stat()
    assert source.stat().st_size == before.st_size
    os.utime(source, ns=(before.st_atime_ns, before.st_mtime_ns))
    os.replace(source, target)
    after = target.stat()
    assert (after.st_size, after.st_mtime_ns) == (before.st_size, before.st_mtime_ns)


def write_unseen(write, path, new):
    """Into the same file, whose time is then set back."""
    target = path / "1.bmp" if path.is_dir() else path
    before = target.stat()
    (write_picture if path.is_dir() else write)(target, new)
    os.utime(target, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = target.stat()
    assert (after.st_size, after.st_mtime_ns) == (before.st_size, before.st_mtime_ns)


@pytest.mark.parametrize("form", WRITERS)
@pytest.mark.parametrize("settled", [True, False], ids=["settled", "just made"])
@pytest.mark.parametrize("change", [replace_unseen, write_unseen])
def test_a_file_of_the_same_size_and_time(tmp_path, monkeypatch, form, settled, change):
    if settled:
        monkeypatch.setattr("pyvae.data.origin._TICK", -1e12)
    path = tmp_path / form
    WRITERS[form](path, 100)
    assert value(path) == 100
    time.sleep(0.02 * settled)  # a tick of the file system's clock
    change(WRITERS[form], path, 50)
    assert value(path) == 50
    assert value(path) == 50


@pytest.mark.parametrize("change", [replace_unseen, write_unseen])
def test_dsprites_of_the_same_size_and_time(tmp_path, members, change):
    def write(path, flipped):
        images = members["imgs"].copy()
        images[3, 0, 0] = flipped
        write_npz_uncompressed(path, members | {"imgs": images})

    def opened():
        data = DSprites.genuine(path, progress=False, _grid=GRID)
        return int(data.images(3)[0, 0, 0]), data.differing_pixels

    path = tmp_path / "d.npz"
    write(path, 0)
    assert opened() == (0, 0)
    change(write, path, 1)
    assert opened() == (1, 1)
    assert len(os.listdir(tmp_path / "cache")) == 1


def write_npz_uncompressed(path, arrays):
    with open(path, "wb") as file:
        np.savez(file, **arrays)


@pytest.fixture
def no_packing(monkeypatch):
    def stop(*_):
        raise AssertionError("packed although the content is the same")

    def no_more():
        monkeypatch.setattr("pyvae.data.images._pack", stop)
        monkeypatch.setattr("pyvae.data.dsprites._blocks", stop)

    return no_more


def chmod(path):
    for each in [path, *path.rglob("*")]:
        each.chmod(0o700)


def touch(path):
    for each in [path, *path.rglob("*")]:
        os.utime(each, (1, 1))


def link(path):
    target = path / "1.bmp" if path.is_dir() else path
    os.link(target, path.parent / "link")


def copy_over(path):
    """Another file of the same content, as a restored backup or a second download is."""
    kept = path.with_name("kept")
    (shutil.copytree if path.is_dir() else shutil.copy2)(path, kept)
    (shutil.rmtree if path.is_dir() else os.unlink)(path)
    kept.rename(path)


@pytest.mark.parametrize("form", WRITERS)
@pytest.mark.parametrize("change", [chmod, touch, link, copy_over])
def test_another_state_of_the_same_content_is_not_packed_again(tmp_path, form, change, no_packing, caplog):
    path = tmp_path / form
    WRITERS[form](path, 100)
    assert value(path) == 100
    no_packing()
    change(path)
    assert value(path) == 100
    assert not caplog.records


def test_dsprites_of_another_state_is_not_packed_again(tmp_path, members, no_packing):
    path = tmp_path / "d.hdf5"
    write_hdf5(path, members)
    first = DSprites.genuine(path, progress=False, _grid=GRID)
    no_packing()
    path.chmod(0o600)
    assert DSprites.genuine(path, progress=False, _grid=GRID).fingerprint == first.fingerprint


@pytest.mark.parametrize("form", WRITERS)
def test_the_content_is_read_once_for_each_state(tmp_path, monkeypatch, form):
    """And not at all as long as the state is the one in which the files were packed, but for files just made."""
    read = []
    digest = Origin._digest
    monkeypatch.setattr(Origin, "_digest", lambda self, name: read.append(name) or digest(self, name))
    path = tmp_path / form
    WRITERS[form](path, 100)
    files = 3 if form == "folder" else 1
    for expected in (files, files):  # packed; just made
        value(path)
        assert len(read) == expected
        read.clear()
    monkeypatch.setattr("pyvae.data.origin._TICK", -1e12)
    for expected in (files, 0, 0):
        value(path)
        assert len(read) == expected
        read.clear()
    chmod(path)
    for expected in (files, 0):
        value(path)
        assert len(read) == expected
        read.clear()


def test_a_cache_that_cannot_be_written_to_is_read(tmp_path, cache_dir, monkeypatch, no_packing):
    path = tmp_path / "a.npy"
    write_npy(path, 100)
    assert value(path) == 100
    no_packing()
    monkeypatch.setattr("pyvae.data.origin._TICK", -1e12)
    (file,) = cache_dir.iterdir()
    before = file.read_bytes()

    def refuse(name, mode="r"):
        assert mode == "r+b"
        raise PermissionError

    monkeypatch.setattr(cache, "open", refuse, raising=False)
    path.chmod(0o600)
    assert value(path) == 100
    assert file.read_bytes() == before


def test_the_state_in_a_header_may_be_torn(tmp_path, members, cache_dir, no_packing):
    """It is written in place: half of it says only that the content is to be compared."""
    path = tmp_path / "d.npz"
    write_npz(path, members)
    DSprites.genuine(path, progress=False, _grid=GRID)
    no_packing()
    (file,) = cache_dir.iterdir()
    data = bytearray(file.read_bytes())
    data[cache.HEADER_BYTES - 40 : cache.HEADER_BYTES] = b"x" * 40
    file.write_bytes(data)
    DSprites.genuine(path, progress=False, _grid=GRID)


def test_the_cache_of_an_older_pyvae_is_made_again(tmp_path, cache_dir, caplog):
    path = tmp_path / "a.npy"
    write_npy(path, 100)
    fingerprint = load(path, progress=False).fingerprint
    (file,) = cache_dir.iterdir()
    with h5py.File(file, "r+") as hdf5:
        status = path.stat()
        hdf5.attrs["source"] = f"{hdf5.attrs['source']} {status.st_size} {status.st_mtime_ns}"
        del hdf5["state"], hdf5.attrs["content"]
    assert load(path, progress=False).fingerprint == fingerprint
    assert "rebuilding the cache file" in caplog.text


@pytest.mark.parametrize("form", ["a.npy", "folder"])
def test_files_that_change_while_they_are_packed(tmp_path, cache_dir, monkeypatch, form):
    from pyvae.data import images

    pack = images._pack

    def then_written(source, *rest):
        skipped = pack(source, *rest)
        time.sleep(0.02)
        write_unseen(WRITERS[form], path, 50)
        return skipped

    path = tmp_path / form
    WRITERS[form](path, 100)
    with monkeypatch.context() as patch:
        patch.setattr(images, "_pack", then_written)
        with pytest.raises(DataError, match="was written to while it was read; load it when that is done"):
            load(path, progress=False)
    assert not list(cache_dir.iterdir())
    assert value(path) == 50


KILLED = """
    import os, sys
    from pathlib import Path
    import numpy as np
    from pyvae.data import dsprites, images, packed, sprites

    def die(*_):
        os._exit(9)

    def die_later(generate):
        return lambda grid: ((block, die() if i else 0)[0] for i, block in enumerate(generate(grid)))

    for writer in ("generated", "genuine", "images"):
        os.environ["PYVAE_CACHE"] = writer
        child = os.fork()
        if child:
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
        elif writer == "generated":
            sprites.generate = die_later(sprites.generate)
            dsprites.DSprites.generated(progress=False, _grid=(2, 2, 2, 2, 2))
        elif writer == "genuine":
            dsprites._packed = die
            dsprites.DSprites.genuine(sys.argv[1], progress=False, _grid=(3, 2, 5, 4, 3))
        else:
            packed.shutil.copyfileobj = die
            images.Images(sys.argv[1], progress=False)
"""


def test_what_a_killed_writer_left_is_removed_by_the_next(tmp_path, monkeypatch, members):
    path = tmp_path / "d.npz"
    write_npz(path, members)
    root = str(Path(__file__).resolve().parents[1])
    command = [sys.executable, "-c", textwrap.dedent(KILLED), str(path)]
    environment = os.environ | {"PYTHONPATH": root}
    run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    for writer, open_ in {
        "generated": lambda: DSprites.generated(progress=False, _grid=(2, 2, 2, 2, 2)),
        "genuine": lambda: DSprites.genuine(path, progress=False, _grid=GRID),
        "images": lambda: load(path, progress=False),
    }.items():
        (left,) = os.listdir(tmp_path / writer)
        assert left.endswith(".tmp")
        monkeypatch.setenv("PYVAE_CACHE", str(tmp_path / writer))
        assert len(open_()) > 0
        (kept,) = os.listdir(tmp_path / writer)
        assert not kept.endswith(".tmp")


def test_what_older_versions_left_goes_after_a_day(tmp_path, cache_dir):
    cache_dir.mkdir()
    old, new, other = ".a.bits.123-0123abcd.tmp", ".b.bits.123-0123abcd.tmp", "c.123-0123abcd.tmp"
    for name in (old, new, other):
        (cache_dir / name).touch()
    for name in (old, other):
        os.utime(cache_dir / name, (time.time() - 90_000,) * 2)
    write_npy(tmp_path / "a.npy", 100)
    load(tmp_path / "a.npy", progress=False)
    assert {new, other} < {*os.listdir(cache_dir)}
    assert len(os.listdir(cache_dir)) == 3
