"""Files of a few megabytes that say, or have it in them, that they are gigabytes."""

import gzip
import io
import json
import os
import struct
import subprocess
import sys
import textwrap
import zipfile
import zlib
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image

from pyvae.data import limit, load
from pyvae.errors import DataError

HUGE = 300_000_000
HELD = 150_000_000
SIDE = int(HUGE**0.5)


@pytest.fixture(autouse=True)
def one_gigabyte(tmp_path, monkeypatch):
    monkeypatch.setenv("PYVAE_LIMIT", "1")
    monkeypatch.setenv("PYVAE_CACHE", str(tmp_path / "cache"))


def header(shape, dtype="|u1", spaces=0):
    text = repr({"descr": dtype, "fortran_order": False, "shape": shape}).encode() + b" " * spaces
    return b"\x93NUMPY\x02\x00" + struct.pack("<I", len(text)) + text


def zeros(compressor, size=HUGE):
    """That many zeros, packed."""
    piece = bytes(1 << 20)
    return b"".join(compressor.compress(piece) for _ in range(size >> 20)) + compressor.flush()


def zipped(path, *pieces, method=zipfile.ZIP_DEFLATED):
    with (
        zipfile.ZipFile(path, "w", method, compresslevel=1) as archive,
        archive.open("images.npy", "w", force_zip64=True) as member,
    ):
        for piece in pieces:
            if isinstance(piece, int):
                for _ in range(piece >> 20):
                    member.write(bytes(1 << 20))
            else:
                member.write(piece)


def gzipped(path, shape, size):
    start = struct.pack(f">HBB{len(shape)}I", 0, 8, len(shape), *shape)
    packer = zlib.compressobj(1, zlib.DEFLATED, 31)
    path.write_bytes(packer.compress(start) + zeros(packer, size))


def hdf5(path, shape, chunk, stored=None):
    with h5py.File(path, "w") as file:
        images = file.create_dataset("images", shape, "u1", chunks=chunk, compression=1)
        if stored is not None:
            images.id.write_direct_chunk((0,) * len(shape), stored)


def png(path, width, height):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    path.mkdir()
    rows = zeros(zlib.compressobj(1), height * (width // 8 + 1) + (1 << 20))
    start = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    (path / "a.png").write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", start) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    )


HELD_AT_ONCE = "more than the 31.2 MB that are held at once; if it is meant so, set PYVAE_LIMIT="
TAKEN = "more than the 1 GB that are taken; if it is meant so, set PYVAE_LIMIT="
BOMBS = {
    "one image in a zip": (lambda p: zipped(p, header((1, SIDE, SIDE))), HELD_AT_ONCE + "10"),
    "many images in a zip": (lambda p: zipped(p, header((250_000, 64, 64))), TAKEN + "2"),
    "more small images than can be packed": (
        lambda p: zipped(p, header((10**7, 5, 5))),
        TAKEN + "41",
    ),
    "a header in a zip": (
        lambda p: zipped(p, header((9, 64, 64), spaces=HUGE)[:HUGE], HUGE),
        "a header of 300000",
    ),
    "bzip2 in a zip": (
        lambda p: zipped(p, header((100_000, 64, 64)), HUGE, method=zipfile.ZIP_BZIP2),
        "not compressed as numpy.savez_compressed does",
    ),
    "a .npy that is not there": (lambda p: p.write_bytes(header((2**31, 2**31, 2**31))), TAKEN),
    "a .npy that ends early": (lambda p: p.write_bytes(header((100_000, 64, 64))), "an array ends early"),
    "one image in a gzip": (lambda p: gzipped(p, (1, SIDE, SIDE), 0), HELD_AT_ONCE + "10"),
    "an IDX that is not there": (lambda p: gzipped(p, (2**32 - 1,) * 3, 0), TAKEN),
    "a gzip that goes on": (lambda p: gzipped(p, (9, 64, 64), HUGE), "goes on after its end"),
    "one image in HDF5": (lambda p: hdf5(p, (1, SIDE, SIDE), (1, 64, 64)), HELD_AT_ONCE + "10"),
    "a chunk of HDF5": (lambda p: hdf5(p, (100_000, 64, 64), (100_000, 64, 64)), HELD_AT_ONCE + "14"),
    "a chunk of HDF5 that is more than it says": (
        lambda p: hdf5(p, (9, 64, 64), (9, 64, 64), zeros(zlib.compressobj(1))),
        "unpacks to more than its 36864 bytes",
    ),
    "a picture": (lambda p: png(p, 8 * 8000, 8000), f"64000 x 8000 pixels, 512 MB, {HELD_AT_ONCE}17"),
}

LOADER = """
    import json, resource, sys, warnings
    import numpy as np
    from pathlib import Path
    warnings.simplefilter("error")
    from pyvae.data import load
    from pyvae.errors import DataError

    def peak():
        return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    np.save("small.npy", np.full((9, 64, 64), 255, np.uint8))
    load("small.npy", progress=False)
    Path("small.npy").unlink()
    results = {}
    for path in sorted(Path().iterdir()):
        before = peak()
        try:
            load(path, progress=False)
            said = ""
        except DataError as error:
            said = str(error)
        results[path.name] = said, peak() - before
    print(json.dumps(results))
"""


@pytest.fixture(scope="module")
def refusals(tmp_path_factory):
    """What is said of each, and how much memory it took, all in one process."""
    directory = tmp_path_factory.mktemp("bombs")
    for number, (make, _) in enumerate(BOMBS.values()):
        make(directory / f"{number:02}")
    assert sum(file.stat().st_size for file in directory.rglob("*")) < 40_000_000
    pieces = [header((7500, 64, 64), "<f8"), np.ones((1, 64, 64)).tobytes(), *[bytes(8 * 64 * 64)] * 7499]
    zipped(directory / "99", *pieces)
    root = str(Path(__file__).resolve().parents[1])
    environment = os.environ | {
        "PYTHONPATH": root,
        "PYVAE_LIMIT": "1",
        "PYVAE_CACHE": str(tmp_path_factory.mktemp("cache")),
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-c", textwrap.dedent(LOADER)]
    run = subprocess.run(command, cwd=directory, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


@pytest.mark.parametrize("bomb", BOMBS)
def test_refused_by_one_line_and_little_memory(refusals, bomb):
    said, memory = refusals[f"{[*BOMBS].index(bomb):02}"]
    assert BOMBS[bomb][1] in said
    assert said.isprintable()
    assert memory < HELD


def test_what_is_within_the_limit_is_read_in_pieces(refusals):
    said, memory = refusals["99"]
    assert said == ""
    assert memory < 7500 * 8 * 64 * 64 / 2


@pytest.mark.parametrize("form", ["npy", "png"])
def test_the_limit_can_be_raised(tmp_path, monkeypatch, form):
    picture = np.full((6000, 6000), 200, np.uint8)
    path = tmp_path / "data"
    if form == "npy":
        path.write_bytes(header((1, 6000, 6000)) + picture.tobytes())
    else:
        path.mkdir()
        Image.fromarray(picture).save(path / "a.png", compress_level=1)
    with pytest.raises(DataError, match=r"36 MB, more than the 31.2 MB .* set PYVAE_LIMIT=2 \(gigabytes\)"):
        load(path, progress=False)
    monkeypatch.setenv("PYVAE_LIMIT", "2")
    assert (load(path, progress=False).pixels == 200).all()


def test_pictures_beyond_what_pillow_itself_takes(tmp_path, monkeypatch, recwarn):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    for name in ("f", "g"):
        (tmp_path / name).mkdir()
        Image.new("L", (100, 100), 7).save(tmp_path / name / "a.png")
    assert (load(tmp_path / "f", progress=False).pixels == 7).all()
    assert not recwarn.list
    assert Image.MAX_IMAGE_PIXELS == 1000


def test_a_large_file_may_be_as_large_as_it_is(tmp_path, monkeypatch):
    monkeypatch.setenv("PYVAE_LIMIT", "0.0002")
    images = np.random.default_rng(0).integers(0, 256, (100, 64, 64), dtype=np.uint8)
    np.savez_compressed(tmp_path / "a.npz", images=images)
    assert limit.most() < images.nbytes
    assert len(load(tmp_path / "a.npz", progress=False)) == 100


@pytest.mark.parametrize("value", ["0", "-1", "nan", "inf", "many", "1e400"])
def test_a_limit_that_cannot_be(tmp_path, monkeypatch, value):
    monkeypatch.setenv("PYVAE_LIMIT", value)
    np.save(tmp_path / "a.npy", np.full((9, 64, 64), 200, np.uint8))
    with pytest.raises(DataError, match=f"PYVAE_LIMIT={value}: not a number of gigabytes above 0"):
        load(tmp_path / "a.npy", progress=False)


def test_a_disk_without_room_is_told_before_packing(tmp_path, monkeypatch):
    class Usage:
        free = 90_000

    monkeypatch.setattr("shutil.disk_usage", lambda path: Usage)
    monkeypatch.setattr("pyvae.data.images._pack", None)
    np.save(tmp_path / "a.npy", np.full((12, 64, 64), 200, np.uint8))
    with pytest.raises(DataError, match=r"98.3 kB are needed .* 90 kB are free; make room"):
        load(tmp_path / "a.npy", progress=False)


def test_what_the_bombs_are_made_of():
    assert gzip.decompress(zeros(zlib.compressobj(1, zlib.DEFLATED, 31), 1 << 21)) == bytes(1 << 21)
    assert np.load(io.BytesIO(header((2, 3), "<f8") + bytes(48))).shape == (2, 3)
