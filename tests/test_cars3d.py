"""Cars3D: folders written by scipy, of fewer cars from fewer sides."""

import pickle
import struct
import zlib

import numpy as np
import pytest
import scipy.io
import torch
from PIL import Image

from pyvae.data import cars3d, load
from pyvae.data.cars3d import FACTOR_NAMES, FACTOR_SIZES, Cars3D
from pyvae.data.images import Images
from pyvae.data.matlab import open_bytes
from pyvae.errors import DataError
from test_data_fuzz import check, rounds, spoilt

SIZES = (2, 3, 4)
COUNT = 24
# as list.txt has them, which need not be in the order of their names
NAMES = ("car_007_mesh", "car_001_mesh", "car_100_mesh", "car_012_mesh")


@pytest.fixture(autouse=True)
def cache_dir(tmp_path, monkeypatch):
    monkeypatch.setenv("PYVAE_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setattr(cars3d, "FACTOR_SIZES", SIZES)


def car(number, azimuths=SIZES[1], elevations=SIZES[0]):
    """``im [128, 128, 3, azimuth, elevation]``: a flat colour says its classes, and the upper right corner is white."""
    image = np.empty((128, 128, 3, azimuths, elevations), np.uint8)
    for elevation in range(elevations):
        for azimuth in range(azimuths):
            image[..., azimuth, elevation] = 10 + elevation, 20 + azimuth, 30 + number
    image[:32, -64:] = 255
    return image


def write(folder, names=NAMES, listed=True, compressed=True):
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(names):
        content = {"mask": np.ones((128, 128, *SIZES[1::-1]), np.uint8), "im": car(number)}
        scipy.io.savemat(folder / f"{name}.mat", content, do_compression=compressed)
    if listed:
        (folder / "list.txt").write_text("\n".join(names) + "\n")
    return folder


@pytest.fixture
def folder(tmp_path):
    return write(tmp_path / "data" / "cars")


def test_the_published_numbers():
    """disentanglement_lib's docstring and array: elevation, azimuth, object type of 24 * 4 * 183 images."""
    assert FACTOR_NAMES == ("elevation", "azimuth", "object_type")
    assert FACTOR_SIZES == (4, 24, 183)


@pytest.mark.parametrize("within", ["", "..", "../.."])
def test_images_and_their_factors(folder, within, tiny):
    data = load(folder / within, progress=False)
    assert isinstance(data, Cars3D)
    assert (len(data), data.image_shape, data.factor_sizes) == (COUNT, (3, 64, 64), SIZES)
    index = torch.arange(COUNT)
    pixels = (data.images(index) * 255).round().to(torch.uint8)
    classes = data.factor_classes(index)
    assert torch.equal(pixels[:, :, 60, 3].long() - torch.tensor([10, 20, 30]), classes)
    assert torch.equal(data.index(classes), index)
    assert torch.equal(data.factor_values(index), classes.double())
    assert (pixels[:, :, :12, -28:] == 255).all()
    assert (pixels[:, :, -40:] < 40).all()
    assert (pixels[:, :, :12, :28] < 40).all()


def test_resized_as_disentanglement_lib_does(folder):
    noise = np.random.default_rng(0).integers(0, 256, (128, 128, 3, 3, 2), dtype=np.uint8)
    scipy.io.savemat(folder / f"{NAMES[2]}.mat", {"im": noise})
    data = Cars3D(folder, factor_sizes=SIZES, progress=False)
    for azimuth, elevation in ((0, 0), (2, 1)):
        picture = Image.fromarray(noise[..., azimuth, elevation])
        picture.thumbnail((64, 64), Image.Resampling.LANCZOS)
        image = data.images(data.index([elevation, azimuth, 2]))
        assert (image.mul(255).round().numpy() == np.asarray(picture).transpose(2, 0, 1)).all()


def test_without_a_list_cars_are_in_the_order_of_their_names(tmp_path, folder):
    def opened(path):
        return Cars3D(path, factor_sizes=SIZES, progress=False)

    bare = opened(write(tmp_path / "bare", listed=False, compressed=False))
    blue = bare.images(bare.index([[0, 0, n] for n in range(4)]))[:, 2, 60, 3].mul(255).round() - 30
    assert blue.tolist() == [NAMES.index(name) for name in sorted(NAMES)]
    assert bare.fingerprint != opened(folder).fingerprint
    assert opened(write(tmp_path / "other", compressed=False)).fingerprint == opened(folder).fingerprint


@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize("shape", [(5, 4, 3), (1, 3), (2, 1), (7, 2, 3, 1, 5)])
def test_arrays_are_those_that_scipy_reads(tmp_path, compressed, shape):
    path = tmp_path / "a.mat"
    values = np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8)
    content = {"before": {"a": [1, "b"]}, "long_name": np.arange(3.0), "im": values, "z": "after"}
    scipy.io.savemat(path, content, do_compression=compressed)
    with open_bytes(path, "im") as column:
        assert (column.shape, column.dtype) == (shape[::-1], np.uint8)
        rows = [column.read(1) for _ in range(column.shape[0])]
    assert (values == np.concatenate(rows).T).all()
    assert (scipy.io.loadmat(path)["im"] == values).all()
    for name in ("before", "long_name", "other"):
        with pytest.raises(LookupError, match=f"no array {name} in it"), open_bytes(path, name):
            pass


def test_of_the_other_byte_order(tmp_path):
    """As a PowerPC wrote it; scipy reads it too."""
    values = np.arange(12, dtype=np.uint8).reshape(2, 3, 2)
    body = struct.pack(">4I", 6, 8, 9, 0) + struct.pack(">2I3iI", 5, 12, 2, 3, 2, 0)
    body += struct.pack(">2H", 2, 1) + b"im\0\0" + struct.pack(">2I", 2, 12) + values.tobytes("F") + bytes(4)
    path = tmp_path / "a.mat"
    header = b"MATLAB 5.0 MAT-file".ljust(124) + struct.pack(">H", 0x0100) + b"MI"
    path.write_bytes(header + struct.pack(">2I", 14, len(body)) + body)
    assert (scipy.io.loadmat(path)["im"] == values).all()
    with open_bytes(path, "im") as column:
        assert (values == column.read(2).T).all()


def test_a_folder_of_images_with_matlab_files_beside_them(tmp_path, tiny):
    Image.new("L", (64, 64), 9).save(tmp_path / "a.png")
    scipy.io.savemat(tmp_path / "annotations.mat", {"im": np.zeros((3, 2)), "boxes": np.zeros((9, 4))})
    assert isinstance(load(tmp_path, progress=False), Images)


def test_packed_once_and_again_when_a_file_is_another(folder, tiny, monkeypatch):
    first = load(folder, progress=False)
    read = cars3d._read
    monkeypatch.setattr(cars3d, "_read", None)
    assert load(folder, progress=False).fingerprint == first.fingerprint
    monkeypatch.setattr(cars3d, "_read", read)
    (folder / "list.txt").write_text("\n".join(reversed(NAMES)))
    again = load(folder, progress=False)
    assert again.fingerprint != first.fingerprint
    assert torch.equal(again.images(again.index([1, 2, 0])), first.images(first.index([1, 2, 3])))
    assert torch.equal(pickle.loads(pickle.dumps(again)).images(5), again.images(5))


def refused(folder, *words):
    with pytest.raises(DataError) as caught:
        load(folder, progress=False)
    said = str(caught.value)
    assert said.isprintable()
    for word in words:
        assert word in said


def test_wrong_folders(folder, tiny, tmp_path, monkeypatch):
    refused(folder / f"{NAMES[0]}.mat", "one car of Cars3D; give its folder")
    refused(write(tmp_path / "more", (*NAMES, "car_101_mesh")), "5 cars instead of 4", "unpack nips2015")
    (folder / "list.txt").write_text("\n".join([*NAMES[:3], "car_099_mesh"]))
    refused(folder, "list.txt: it names car_099_mesh.mat, which is not there; unpack")
    (folder / "list.txt").write_text("\n".join([*NAMES[:3], "../cars/car_012_mesh"]))
    refused(folder, "it names ../cars/car_012_mesh.mat, which is not there")
    (folder / "list.txt").write_text("\n".join([*NAMES[:3], NAMES[0]]))
    refused(folder, "it names a car twice")
    (folder / "list.txt").unlink()
    (folder / f"{NAMES[0]}.mat").unlink()
    refused(folder, "3 cars instead of 4")
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(DataError, match="no MATLAB files in this folder, nor in cars"):
        Cars3D(empty)
    monkeypatch.setattr(cars3d, "FACTOR_SIZES", (*SIZES[:2], 183))
    refused(folder, "3 cars instead of 183, so not Cars3D")
    with pytest.raises(DataError, match="are 3 x 64 x 64; leave out size"):
        load(folder, size=32)


def test_a_car_of_another_shape(folder, tiny):
    path = folder / f"{NAMES[3]}.mat"
    for im, words in (
        (car(0, azimuths=4), "its images im are [128, 128, 3, 4, 2] instead of [128, 128, 3, 3, 2]"),
        (car(0) / 255, "no array im in it"),
        (car(0)[..., 0] * 1j, "no array im in it"),
    ):
        scipy.io.savemat(path, {"im": im})
        refused(folder, f"{path}: ", words, "unpack")
    path.write_bytes(b"MATLAB 7.3 MAT-file".ljust(124) + b"\0\2IM" + bytes(400))
    refused(folder, f"{path}: damaged or truncated (no MATLAB file of version 5); unpack")
    path.unlink()
    path.mkdir()
    refused(folder, f"{path}: damaged or truncated", "a directory")


@pytest.mark.parametrize("compressed", [True, False])
def test_damaged_files(folder, tiny, tmp_path, compressed):
    path = folder / f"{NAMES[1]}.mat"
    scipy.io.savemat(path, {"im": car(1)}, do_compression=compressed)
    whole = path.read_bytes()
    fingerprint = load(folder, progress=False).fingerprint
    for end in (0, 60, 128, 131, 140, 180, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:end])
        refused(folder, f"{path}: damaged or truncated (", "unpack")
    for rng in rounds(500 + compressed, 25):
        path.write_bytes(spoilt(whole, rng))
        # unspoilt are the text of the header, and without checksums a pixel
        if check(folder, tmp_path, 64) and compressed:
            assert load(folder, progress=False).fingerprint == fingerprint


def test_huge_claims(folder, tiny):
    """A file of kilobytes that says, or has it in it, that it is gigabytes."""
    path = folder / f"{NAMES[0]}.mat"
    header = path.read_bytes()[:128]

    def variable(sizes, held, content=b""):
        dims = struct.pack("<2I", 5, 4 * len(sizes)) + struct.pack(f"<{len(sizes)}i", *sizes)
        body = struct.pack("<4I", 6, 8, 9, 0) + dims + bytes(-len(dims) % 8)
        body += struct.pack("<2H", 1, 2) + b"im\0\0" + struct.pack("<2I", 2, held) + content
        packed = zlib.compress(struct.pack("<2I", 14, len(body)) + body, 1)
        return header + struct.pack("<2I", 15, len(packed)) + packed

    sizes, size = (128, 128, 3, 3, 2), 128 * 128 * 18
    for content, words in (
        (variable(sizes, 2**32 - 1), f"im has 4,294,967,295 bytes for sizes {list(sizes)}"),
        (variable((2**31 - 1,) * 5, 1), "im has 1 bytes for sizes"),
        (variable(sizes, size, bytes(10**8)), "im goes on after its end"),
        (variable(sizes, size, bytes(100)), "ends early"),
        (header + struct.pack("<2I", 14, 2**32 - 1) + bytes(100), "an element of"),
    ):
        path.write_bytes(content)
        refused(folder, f"{path}: damaged or truncated (", words)
