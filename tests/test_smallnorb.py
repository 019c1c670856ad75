"""SmallNORB: files written here from its page, of fewer toys in fewer views, in no order as the published ones."""

import gzip
import itertools
import json
import pickle
import shutil
import struct
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from pyvae import cli
from pyvae.data import load, smallnorb
from pyvae.data.binarised import Binarised
from pyvae.data.smallnorb import FACTOR_NAMES, FACTOR_SIZES, SmallNORB
from pyvae.errors import DataError
from test_data_fuzz import check, rounds, spoilt

SIZES = (2, 4, 2, 3, 2)
COUNT = 96
TRAINING, TESTING = (4, 9), (0, 5)
TRAIN = "smallnorb-5x46789x9x18x6x2x96x96-training"
TEST = "smallnorb-5x01235x9x18x6x2x96x96-testing"


@pytest.fixture(autouse=True)
def cache_dir(tmp_path, monkeypatch):
    monkeypatch.setenv("PYVAE_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setattr(smallnorb, "FACTOR_SIZES", SIZES)


def matrix(magic, array):
    """Magic number, dimensions, at least three sizes; little-endian, the last index the fastest."""
    sizes = [*array.shape] + [1] * (3 - array.ndim)
    return struct.pack(f"<Ii{len(sizes)}i", magic, array.ndim, *sizes) + array.tobytes()


def dat(images):
    return matrix(0x1E3D4C55, images)


def integers(array):
    return matrix(0x1E3D4C54, np.asarray(array, "<i4"))


def views(instances):
    """Category, instance, elevation, azimuth (0, 2, 4, ..., 34) and lighting of each pair, in no order."""
    category, _, elevation, azimuth, lighting = SIZES
    grid = itertools.product(
        range(category), instances, range(elevation), range(0, 2 * azimuth, 2), range(lighting)
    )
    return np.random.default_rng(len(instances) + instances[0]).permutation([*grid])


def pictures(rows):
    """``[n, 2, 96, 96]``: the first camera's upper half is white right, and five bands below say the values."""
    pairs = np.zeros((len(rows), 2, 96, 96), np.uint8)
    pairs[:, 0, :36, 48:] = 255
    for band in range(5):
        pairs[:, 0, 36 + 12 * band : 48 + 12 * band] = (50 + 20 * rows[:, band])[:, None, None]
    pairs[:, 1] = 255 - pairs[:, 0]
    return pairs


def write(folder, name, rows, save=lambda path, content: path.write_bytes(content)):
    folder.mkdir(exist_ok=True)
    contents = {"dat": dat(pictures(rows)), "cat": integers(rows[:, 0]), "info": integers(rows[:, 1:])}
    for kind, content in contents.items():
        save(folder / f"{name}-{kind}.mat", content)
    return folder


def packed(path, content):
    path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(content, 1))


@pytest.fixture
def folder(tmp_path):
    write(tmp_path / "norb", TRAIN, views(TRAINING))
    return write(tmp_path / "norb", TEST, views(TESTING))


def test_the_published_numbers():
    """Its page: 5 categories of 10 instances, 9 elevations, 18 azimuths, 6 lightings; 24,300 pairs in each half."""
    assert FACTOR_NAMES == ("category", "instance", "elevation", "azimuth", "lighting")
    assert FACTOR_SIZES == (5, 10, 9, 18, 6)
    assert np.prod(FACTOR_SIZES) == 2 * 24_300


def assert_right(data, instances):
    assert isinstance(data, SmallNORB)
    assert data.image_shape == (1, 64, 64)
    assert data.factor_sizes == (SIZES[0], len(instances), *SIZES[2:])
    index = torch.arange(len(data))
    classes = data.factor_classes(index)
    values = torch.tensor(sorted(instances))[classes[:, 1]]
    pixels = (data.images(index) * 255).round()[:, 0]
    seen = (pixels[:, 28::8, 32].long() - 50) / 20
    assert torch.equal(seen[:, [0, 2, 4]].long(), classes[:, [0, 2, 4]])
    assert torch.equal(seen[:, 1].long(), values)
    assert torch.equal(seen[:, 3].long(), 2 * classes[:, 3])
    assert (pixels[:, :20, 36:] == 255).all()
    assert (pixels[:, :20, :28] == 0).all()
    named = torch.stack(
        [classes[:, 0], values, 30 + 5 * classes[:, 2], 20 * classes[:, 3], classes[:, 4]], -1
    )
    assert torch.equal(data.factor_values(index), named.double())


def test_images_and_their_factors(folder, tiny):
    data = load(folder, progress=False)
    assert len(data) == COUNT
    assert_right(data, (*TRAINING, *TESTING))


@pytest.mark.parametrize(("name", "instances"), [(TRAIN, TRAINING), (TEST, TESTING)])
def test_one_half(folder, tiny, name, instances):
    assert_right(load(folder / f"{name}-dat.mat", progress=False), instances)


def test_gzipped_and_renamed(tmp_path, folder, tiny):
    whole = load(folder, progress=False)
    other = write(tmp_path / "other", "a", views(TESTING), packed)
    write(other, "b", views(TRAINING), packed)
    assert load(other, progress=False).fingerprint == whole.fingerprint
    # unpacked beside what it was packed in
    write(other, "b", views(TRAINING))
    assert load(other, progress=False).fingerprint == whole.fingerprint
    link = tmp_path / "link"
    link.symlink_to(other)
    half = load(link / "a-dat.mat.gz", progress=False)
    assert half.fingerprint == load(folder / f"{TEST}-dat.mat", progress=False).fingerprint


def test_a_link_to_a_file_without_a_name_of_its_own(tmp_path, folder, tiny):
    links = tmp_path / "links"
    links.mkdir()
    for number, file in enumerate(sorted(folder.iterdir())):
        blob = tmp_path / f"blob{number}"
        shutil.move(file, blob)
        (links / file.name).symlink_to(blob)
    assert_right(load(links / f"{TEST}-dat.mat", progress=False), TESTING)


def test_resized_as_disentanglement_lib_does(folder):
    rows = views(TRAINING)
    noise = np.random.default_rng(0).integers(60, 190, (len(rows), 2, 96, 96), dtype=np.uint8)
    (folder / f"{TRAIN}-dat.mat").write_bytes(dat(noise))
    data = SmallNORB(folder / f"{TRAIN}-dat.mat", factor_sizes=(2, 2, 2, 3, 2), progress=False)
    for pair, (category, instance, elevation, azimuth, lighting) in list(zip(noise, rows, strict=True))[:9]:
        at = data.index([category, TRAINING.index(instance), elevation, azimuth // 2, lighting])
        expected = np.asarray(Image.fromarray(pair[0]).resize((64, 64), Image.Resampling.LANCZOS))
        assert (data.images(at)[0].mul(255).round().numpy() == expected).all()


def test_grey_images_can_be_binarised(folder, tiny):
    data = Binarised(load(folder, progress=False))
    assert data.images([0, 5]).unique().tolist() == [0, 1]


def test_packed_once_and_again_when_a_file_is_another(folder, tiny, monkeypatch):
    first = load(folder, progress=False)
    read = smallnorb._read
    monkeypatch.setattr(smallnorb, "_read", None)
    assert load(folder, progress=False).fingerprint == first.fingerprint
    monkeypatch.setattr(smallnorb, "_read", read)
    rows = views(TRAINING)
    (folder / f"{TRAIN}-dat.mat").write_bytes(dat(255 - pictures(rows)))
    again = load(folder, progress=False)
    assert again.fingerprint != first.fingerprint
    assert torch.equal(pickle.loads(pickle.dumps(again)).images(5), again.images(5))


def refused(path, *words):
    with pytest.raises(DataError) as caught:
        load(path, progress=False)
    said = str(caught.value)
    assert said.isprintable()
    for word in words:
        assert word in said


AGAIN = "download it again from https://cs.nyu.edu/~ylclab/data/norb-v1.0-small"


def test_missing_files(folder, tiny, tmp_path):
    refused(folder / f"{TRAIN}-info.mat", "no -dat.mat file; give the folder of SmallNORB's files")
    third = write(folder, "third", views(TESTING))
    refused(third, "3 -dat files of SmallNORB in it instead of two")
    for kind in ("dat", "cat", "info"):
        (folder / f"third-{kind}.mat").unlink()
    (folder / f"{TEST}-cat.mat").unlink()
    refused(folder, f"{TEST}-dat.mat: {TEST}-cat.mat is not beside it, gzipped or not; {AGAIN}")
    (folder / f"{TEST}-dat.mat").unlink()
    refused(folder, "1 -dat files of SmallNORB in it instead of two", "or give the path of one -dat file")
    assert_right(load(folder / f"{TRAIN}-dat.mat", progress=False), TRAINING)
    with pytest.raises(DataError, match="images of SmallNORB are 1 x 64 x 64; leave out size"):
        load(folder, channels=3)


def test_wrong_values(folder, tiny):
    info, cat = folder / f"{TEST}-info.mat", folder / f"{TEST}-cat.mat"
    rows = views(TESTING)

    def spoilt(at, value):
        info.write_bytes(integers(np.where(np.arange(4) == at, value, rows[:, 1:])))

    for at, value, words in (
        (0, 10, "instance 10 of image 0 is none"),
        (1, 9, "elevation 9 of image 0 is none"),
        (2, 3, "azimuth 3 of image 0 is none"),
        (2, 36, "azimuth 36 of image 0 is none"),
        (3, -1, "lighting -1 of image 0 is none"),
        (3, 0, "some images have the same factors, and others are missing"),
        (0, 7, "images of 3 instances instead of 96 of 4"),
        (0, 4, "images of 2 instances instead of 96 of 4"),
    ):
        spoilt(at, value)
        refused(folder, words, AGAIN)
    info.write_bytes(integers(rows[:, 1:]))
    cat.write_bytes(integers(rows[:, 0] + 4))
    refused(folder, f"{cat}: category ", "is none of SmallNORB's")
    cat.write_bytes(integers(1 - rows[:, 0]))
    assert len(load(folder, progress=False)) == COUNT


def test_wrong_shapes(folder, tiny):
    rows, path = views(TESTING), folder / f"{TEST}-dat.mat"
    count, zeros = len(rows), np.zeros
    for kind, content, words in (
        (
            "dat",
            dat(zeros((count, 2, 108, 108), np.uint8)),
            "[48, 2, 108, 108] instead of uint8 [N, 2, 96, 96]",
        ),
        ("dat", dat(zeros((count, 96, 96), np.uint8)), "uint8 [48, 96, 96] instead of"),
        ("dat", integers(zeros((count, 2, 96, 96))), "int32 [48, 2, 96, 96] instead of uint8"),
        ("dat", dat(pictures(rows[1:])), "int32 [48] instead of int32 [47]"),
        ("cat", integers(rows[:, :1]), "int32 [48, 1] instead of int32 [48]"),
        ("cat", matrix(0x1E3D4C53, zeros(count)), "damaged or truncated (a matrix of doubles)"),
        ("info", integers(rows), "int32 [48, 5] instead of int32 [48, 4]"),
        ("info", matrix(0x1E3D4C54, zeros(0, "<i4")), "a matrix of [0, 1, 1]"),
        ("info", struct.pack("<Ii", 0x1E3D4C54, 10**9), "a matrix of 1000000000 dimensions"),
        ("info", b"MATLAB 5.0 MAT-file", "it begins with 4c54414d, no matrix of NORB"),
    ):
        path = folder / f"{TEST}-{kind}.mat"
        whole = path.read_bytes()
        path.write_bytes(content)
        refused(folder, words, AGAIN)
        path.write_bytes(whole)


@pytest.mark.parametrize("kind", ["dat", "cat", "info"])
@pytest.mark.parametrize("save", [None, packed])
def test_damaged_files(tmp_path, folder, tiny, kind, save):
    if save:
        folder = write(tmp_path / "packed", TRAIN, views(TRAINING), save)
        write(folder, TEST, views(TESTING), save)
    path = folder / f"{TEST}-{kind}.mat{'.gz' if save else ''}"
    whole = path.read_bytes()
    half = len(whole) // 2
    for damaged in (
        whole[:0],
        whole[:7],
        whole[:half],
        whole[:-1],
        whole + b"\0x",
        whole[:3] + b"x" + whole[4:],
    ):
        path.write_bytes(damaged)
        refused(folder, f"{path}: damaged or truncated (", AGAIN)
    if save:
        path.write_bytes(gzip.compress(gzip.decompress(whole) + b"x"))
        refused(folder, "a matrix goes on after its end")
        path.write_bytes(whole[:half] + bytes([whole[half] ^ 16]) + whole[half + 1 :])
        refused(folder, f"{path}: damaged or truncated (")
    path.unlink()
    path.mkdir()
    refused(folder)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["dat", "cat", "info"])
@pytest.mark.parametrize("save", [None, packed])
def test_whatever_bytes_a_file_holds(tmp_path, monkeypatch, kind, save):
    monkeypatch.setattr(smallnorb, "FACTOR_SIZES", (1, 4, 1, 2, 1))
    rows = np.array([[0, instance, 0, azimuth, 0] for instance in (3, 8) for azimuth in (0, 2)])
    suffix = "mat.gz" if save else "mat"
    half = write(tmp_path / "half", "a", rows, *filter(None, [save]))
    path = half / f"a-{kind}.{suffix}"
    assert check(half / f"a-dat.{suffix}", tmp_path, 64)
    whole = path.read_bytes()
    for rng in rounds(400 + len(whole), 15):
        path.write_bytes(spoilt(whole, rng))
        check(half / f"a-dat.{suffix}", tmp_path, 64)


def test_huge_claims(folder, tiny):
    path = folder / f"{TEST}-dat.mat"
    path.unlink()
    gzipped = path.with_name(f"{path.name}.gz")
    gzipped.write_bytes(gzip.compress(struct.pack("<6i", 0x1E3D4C55, 4, 2**31 - 1, 2, 96, 96)))
    refused(folder, f"{gzipped}: ", "more than the 16 GB that are taken")
    sizes = struct.pack("<6i", 0x1E3D4C55, 4, 800_000, 2, 96, 96)
    gzipped.write_bytes(gzip.compress(sizes))
    refused(folder, f"{TEST}-cat.mat: it is int32 [48] instead of int32 [800000]")
    path.write_bytes(sizes + bytes(100))
    refused(folder, f"{path}: damaged or truncated (124 bytes instead of 14,745,600,024)")


def test_trained_and_scored_by_the_command_line(folder, tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["pyvae", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        said = capsys.readouterr()
        return ended.value.code, said.out + said.err

    small = ("--latents", "2", "--batch-size", "4", "--device", "cpu")
    status, said = call("train", "beta-vae", "--data", "norb", *small, "--steps", "3", "--out", "run")
    assert status == 0, said
    assert "run: 3 of 3 steps" in said
    status, said = call("evaluate", "run", "--metrics", "mig", "--without", "instance", "--device", "cpu")
    assert status == 0, said
    scores = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert scores["data"].startswith("smallnorb-crc32:")
    assert scores["scores"]["mig"]["factors"] == ["category", "elevation", "azimuth", "lighting"]
