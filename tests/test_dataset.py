"""A data set as those of torch are used."""

import math
import os
import pickle
import random

import h5py
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, StackDataset, Subset, TensorDataset, random_split

from pyvae.data import load
from pyvae.data.binarised import Binarised
from pyvae.data.dsprites import DSprites
from pyvae.data.mpi3d import MPI3D
from pyvae.data.shapes3d import Shapes3D
from pyvae.errors import DataError
from test_shapes3d import COUNT, SIZES, labels_of
from tiny import TinyData

PIXELS = np.random.default_rng(0).integers(0, 256, (101, 3, 8, 8), dtype=np.uint8)
GRID = (3, 2, 2, 3, 3)


@pytest.fixture(autouse=True)
def cache_dir(tmp_path, monkeypatch):
    monkeypatch.setenv("PYVAE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def images(tmp_path):
    np.save(tmp_path / "a.npy", PIXELS)
    return load(tmp_path / "a.npy", size=8, progress=False)


def shapes(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["images"] = np.random.default_rng(0).integers(0, 256, (COUNT, 64, 64, 3), dtype=np.uint8)
        file["labels"] = labels_of(SIZES)
    return Shapes3D(tmp_path / "a.h5", factor_sizes=SIZES)


def arm(tmp_path):
    sizes = (2, 2, 2, 1, 3, 2, 2)
    shape = (math.prod(sizes), 64, 64, 3)
    np.savez(tmp_path / "a.npz", images=np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8))
    return MPI3D(tmp_path / "a.npz", factor_sizes=sizes, progress=False)


KINDS = {
    "images": images,
    "dsprites": lambda tmp_path: DSprites.generated(progress=False, _grid=GRID),
    "shapes3d": shapes,
    "shapes3d in memory": lambda tmp_path: shapes(tmp_path).to_memory(progress=False),
    "mpi3d": arm,
    "binarised": lambda tmp_path: Binarised(images(tmp_path)),
    "one of a user's": lambda tmp_path: TinyData(),
}


@pytest.fixture(params=KINDS)
def dataset(request, tmp_path):
    return KINDS[request.param](tmp_path)


def test_an_image_by_its_number(dataset):
    every = dataset.images(torch.arange(len(dataset)))
    assert isinstance(dataset, torch.utils.data.Dataset)
    for index in (0, 7, len(dataset) - 1, -1, -len(dataset), np.int64(3), torch.tensor(5), np.uint8(4)):
        image = dataset[index]
        assert image.dtype == torch.float32
        assert torch.equal(image, every[int(index)])


def test_a_slice(dataset):
    every = dataset.images(torch.arange(len(dataset)))
    for at in (
        slice(2, 5),
        slice(None, 9, 3),
        slice(-3, None),
        slice(5, 2),
        slice(10, 2, -3),
        slice(0, 10**9),
    ):
        numbers = [*range(len(dataset))][at]
        assert torch.equal(dataset[at], every[numbers])
        assert dataset[at].shape == (len(numbers), *dataset.image_shape)


def test_it_ends_as_a_list_does(dataset):
    for beyond in (len(dataset), -len(dataset) - 1, 2**70):
        with pytest.raises(IndexError, match=f"index {beyond} is out of range for {len(dataset)} images"):
            dataset[beyond]
    assert sum(1 for _ in dataset) == len(dataset)
    assert len(dataset.__getitems__([])) == 0
    with pytest.raises(IndexError):
        dataset.__getitems__([0, len(dataset)])


@pytest.mark.parametrize("index", [[1, 2], torch.tensor([1, 2]), 0.5, "a", None, (1, 2)])
def test_what_is_no_number_is_referred_to_images(tmp_path, index):
    with pytest.raises(TypeError, match=r"an int or a slice expected in \[\], got .*; images\(index\) takes"):
        images(tmp_path)[index]


def test_batches_of_a_loader(dataset):
    every = dataset.images(torch.arange(len(dataset)))
    batches = [*DataLoader(dataset, batch_size=8)]
    assert [len(batch) for batch in batches[:-1]] == [8] * (len(batches) - 1)
    assert torch.equal(torch.cat(batches), every)
    generator = torch.Generator().manual_seed(0)
    shuffled = torch.cat([*DataLoader(dataset, batch_size=8, shuffle=True, generator=generator)])
    assert not torch.equal(shuffled, every)
    assert torch.equal(shuffled.flatten(1).sum(1).sort()[0], every.flatten(1).sum(1).sort()[0])
    assert torch.equal(torch.cat([*DataLoader(dataset, batch_size=None)]).view_as(every), every)


def test_a_batch_is_read_at_once(tmp_path, monkeypatch):
    data, read = images(tmp_path), []
    whole = type(data).images
    monkeypatch.setattr(
        type(data), "images", lambda self, index: read.append(len(index)) or whole(self, index)
    )
    for wrapped in (data, Subset(data, range(100)), random_split(data, [100, 1])[0]):
        read.clear()
        assert torch.cat([*DataLoader(wrapped, batch_size=50)]).shape[0] == len(wrapped)
        assert read == [50, 50, 1][: len(read)]
        assert sum(read) == len(wrapped)
    assert torch.equal(torch.stack(data.__getitems__([-1, 3])), whole(data, [100, 3]))


def test_classes_beside_the_images(tmp_path):
    data = KINDS["dsprites"](tmp_path)
    classes = TensorDataset(data.factor_classes(torch.arange(len(data))))
    both = StackDataset(data, classes)
    for number, (batch, (of_it,)) in enumerate(DataLoader(both, batch_size=4)):
        index = data.index(of_it)
        assert index[0] == 4 * number
        assert torch.equal(batch, data.images(index))


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize("kind", ["images", "dsprites", "shapes3d"])
def test_workers_that_are_forked(tmp_path, kind):
    data = KINDS[kind](tmp_path)
    every = data.images(torch.arange(len(data)))
    loader = DataLoader(data, batch_size=16, num_workers=2, multiprocessing_context="fork")
    assert torch.equal(torch.cat([*loader]), every)


def test_workers_that_are_spawned(tmp_path):
    data = images(tmp_path)
    loader = DataLoader(data, batch_size=64, num_workers=1, multiprocessing_context="spawn")
    assert torch.equal(torch.cat([*loader]), data.images(torch.arange(len(data))))


@pytest.mark.parametrize("kind", ["images", "dsprites", "mpi3d", "binarised"])
def test_pickling_copies_no_pixels(tmp_path, kind):
    data = KINDS[kind](tmp_path)
    every = data.images(torch.arange(len(data)))
    pickled = pickle.dumps(data)
    assert len(pickled) < 4000
    copy = pickle.loads(pickle.dumps(pickle.loads(pickled)))
    assert torch.equal(copy.images(torch.arange(len(data))), every)
    assert copy.fingerprint == data.fingerprint
    assert repr(copy) == repr(data)


@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize("kind", ["images", "dsprites"])
def test_what_was_written_to_is_copied(tmp_path, kind, inference):
    with torch.inference_mode(inference):
        data = KINDS[kind](tmp_path)
        (data.pixels if kind == "images" else data.bits)[5] = 255
        copy = pickle.loads(pickle.dumps(data))
        assert torch.equal(copy.images(5), torch.ones(data.image_shape))
        replaced = KINDS[kind](tmp_path)
        setattr(
            replaced,
            "pixels" if kind == "images" else "bits",
            (data.pixels if kind == "images" else data.bits) * 1,
        )
        assert torch.equal(pickle.loads(pickle.dumps(replaced)).images(5), torch.ones(data.image_shape))


def test_a_cache_that_changed_before_it_was_unpickled(tmp_path, cache_dir):
    data = images(tmp_path)
    pickled = pickle.dumps(data)
    (file,) = cache_dir.iterdir()
    whole = file.read_bytes()
    os.rename(file, tmp_path / "kept")
    file.write_bytes(whole)  # another file with the same bytes
    assert torch.equal(pickle.loads(pickled).images(3), data.images(3))
    for content, words in (
        (whole[:-1], "cannot be mapped again"),
        (whole[:-1] + b"x", "holds other data now"),
    ):
        os.rename(file, tmp_path / f"kept {random.random()}")
        file.write_bytes(content)
        with pytest.raises(DataError, match=f"{words}.*load the data again"):
            pickle.loads(pickled)
    file.unlink()
    with pytest.raises(DataError, match=r"cannot be mapped again .*No such file.*; load the data again"):
        pickle.loads(pickled)
