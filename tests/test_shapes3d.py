import math
import multiprocessing
import pickle
import warnings

import h5py
import numpy as np
import pytest
import torch

from pyvae.data import load
from pyvae.data.shapes3d import FACTOR_NAMES, FACTOR_SIZES, Shapes3D
from pyvae.errors import DataError

SIZES = (2, 3, 2, 2, 2, 5)
COUNT = math.prod(SIZES)
ENDS = ((0.0, 0.9), (0.0, 0.9), (0.0, 0.9), (0.75, 1.25), (0.0, 3.0), (-30.0, 30.0))


def labels_of(sizes):
    axes = [np.linspace(*ends, size) for ends, size in zip(ENDS, sizes, strict=True)]
    return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 6)


@pytest.fixture(scope="session")
def pixels():
    return np.random.default_rng(0).integers(0, 256, (COUNT, 64, 64, 3), dtype=np.uint8)


def write(path, images, labels):
    with h5py.File(path, "w") as file:
        file.create_dataset("images", data=images, chunks=(7, 16, 16, 3), compression=1)
        file.create_dataset("labels", data=labels)
    return path


@pytest.fixture
def path(tmp_path, pixels):
    return write(tmp_path / "any-name", pixels, labels_of(SIZES))


@pytest.fixture(params=["file", "memory"])
def dataset(path, request):
    dataset = Shapes3D(path, factor_sizes=SIZES)
    return dataset.to_memory(progress=False) if request.param == "memory" else dataset


INDICES = {
    "int": 17,
    "ordered": [3, 4, 5, 9],
    "any order": [200, 3, 4, 199, 0],
    "repeated": [5, 5, 7, 5, 6, 7],
    "ends": [COUNT - 1, 0],
    "two dimensions": [[8, 2], [2, 30], [31, 29]],
    "none": [],
}


@pytest.mark.parametrize("index", INDICES.values(), ids=INDICES)
def test_images(dataset, pixels, index):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        images = dataset.images(index)
    at = np.asarray(index, dtype=np.int64)
    expected = np.moveaxis(pixels[at], -1, -3).astype(np.float32) / np.float32(255)
    assert images.dtype == torch.float32
    assert images.is_contiguous()
    assert images.shape == (*at.shape, 3, 64, 64)
    assert (images.numpy() == expected).all()


def test_to_memory(path, pixels, monkeypatch):
    monkeypatch.setattr("pyvae.data.shapes3d._IMAGES_AT_ONCE", 50)
    dataset = Shapes3D(path, factor_sizes=SIZES)
    assert dataset.pixels is None
    held = dataset.to_memory(progress=False).pixels
    assert held.dtype == torch.uint8
    assert (held.numpy() == np.moveaxis(pixels, -1, 1)).all()
    path.unlink()
    dataset._file = None
    assert dataset.images(3).shape == (3, 64, 64)


def test_factors(dataset):
    index = torch.arange(COUNT)
    classes = dataset.factor_classes(index)
    assert dataset.factor_names == FACTOR_NAMES
    assert dataset.factor_sizes == SIZES
    assert (classes.numpy() == np.stack(np.unravel_index(np.arange(COUNT), SIZES), axis=1)).all()
    assert torch.equal(dataset.index(classes), index)
    assert (dataset.factor_values(index).numpy() == labels_of(SIZES)).all()


def test_wrong_index(dataset):
    with pytest.raises(IndexError, match=f"index {COUNT} "):
        dataset.images([0, COUNT])
    with pytest.raises(IndexError, match="class 5 of orientation"):
        dataset.index([0, 0, 0, 0, 0, 5])


def test_fingerprint_follows_the_content(path, tmp_path, pixels):
    first = Shapes3D(path, factor_sizes=SIZES).fingerprint
    moved = path.rename(tmp_path / "moved")
    assert Shapes3D(moved, factor_sizes=SIZES).fingerprint == first
    changed = write(tmp_path / "changed", pixels[::-1], labels_of(SIZES))
    assert Shapes3D(changed, factor_sizes=SIZES).fingerprint != first


def test_pickled(dataset):
    dataset.images(0)
    copy = pickle.loads(pickle.dumps(dataset))
    assert torch.equal(copy.images([9, 2]), dataset.images([9, 2]))


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_forked_process_opens_the_file_itself(path, pixels):
    dataset = Shapes3D(path, factor_sizes=SIZES)
    inherited = dataset._open()
    context = multiprocessing.get_context("fork")
    receive, send = context.Pipe(duplex=False)

    def child():
        send.send(((dataset.images(8) * 255).round().byte().numpy(), dataset._file is inherited))

    process = context.Process(target=child)
    process.start()
    image, same = receive.recv()
    process.join()
    assert (image == np.moveaxis(pixels[8], -1, 0)).all()
    assert not same
    assert dataset._file is inherited


def _nan(labels):
    labels[:, 3] = np.where(labels[:, 3] > 1, np.nan, labels[:, 3])


FAULTS = {
    "shuffled": (
        lambda x: np.random.default_rng(0).shuffle(x),
        "label .* where .* belongs: not in the published",
    ),
    "two exchanged": (
        lambda x: x.__setitem__([4, 7], x[[7, 4]]),
        "label 4 has class 1 of shape where 0",
    ),
    "too many values": (lambda x: x.__setitem__((0, 1), 0.123), "wall_hue takes 4 values instead of 3"),
    "too few values": (
        lambda x: x.__setitem__((slice(None), 0), 0.0),
        "floor_hue takes 1 values instead of 2",
    ),
    "not finite": (_nan, "scale takes"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_wrong_labels(tmp_path, pixels, fault):
    spoil, message = FAULTS[fault]
    labels = labels_of(SIZES)
    spoil(labels)
    assert_refused(write(tmp_path / "f.h5", pixels, labels), message)


def assert_refused(path, message, **kwargs):
    with pytest.raises(DataError, match=message) as caught:
        Shapes3D(path, **({"factor_sizes": SIZES} | kwargs))
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_wrong_make(tmp_path, pixels, path):
    labels = labels_of(SIZES)
    assert_refused(path, rf"images is .*{COUNT}.* instead of .*480000", factor_sizes=FACTOR_SIZES)
    assert_refused(write(tmp_path / "a.h5", pixels[:-1], labels), f"images is .*{COUNT - 1}")
    assert_refused(write(tmp_path / "b.h5", pixels.astype(np.float32), labels), "images is .*float32")
    assert_refused(write(tmp_path / "c.h5", pixels, labels[:, :5]), f"labels is .*{COUNT}, 5")
    with h5py.File(tmp_path / "d.h5", "w") as file:
        file["images"] = pixels
        file.create_group("labels")
    assert_refused(tmp_path / "d.h5", "holds .*images.*, no 'labels'")


def test_damaged_file(tmp_path, path):
    assert_refused(tmp_path / "absent.h5", "No such file")
    bad = tmp_path / "bad.h5"
    bad.write_bytes(b"")
    assert_refused(bad, "empty")
    bad.write_bytes(b"PK\3\4 and so on")
    assert_refused(bad, "not an HDF5 file")
    bad.write_bytes(path.read_bytes()[:-5000])
    assert_refused(bad, "damaged or truncated .*truncated file")
    with pytest.raises(DataError, match=r"bad.h5: damaged or truncated .* download it again"):
        load(bad)


def test_damaged_images(path):
    data = bytearray(path.read_bytes())
    with h5py.File(path) as file:
        place = file["images"].id.get_chunk_info(0)
    data[place.byte_offset : place.byte_offset + place.size] = bytes(place.size)
    path.write_bytes(data)
    dataset = Shapes3D(path, factor_sizes=SIZES)
    with pytest.raises(DataError, match="damaged or truncated"):
        dataset.images(0)


def test_load(tmp_path):
    with pytest.raises(DataError, match=r"give the path of the published 3dshapes.h5"):
        load("shapes3d")
    path = tmp_path / "mislabelled.npz"
    with h5py.File(path, "w") as file:
        images = file.create_dataset("images", (480_000, 64, 64, 3), "uint8", chunks=(64, 64, 64, 3))
        images[479_999] = 255
        file["labels"] = labels_of(FACTOR_SIZES)
    dataset = load(path)
    assert isinstance(dataset, Shapes3D)
    assert (len(dataset), dataset.factor_sizes) == (480_000, FACTOR_SIZES)
    assert dataset.images([0, 479_999]).mean(dim=(1, 2, 3)).tolist() == [0, 1]
