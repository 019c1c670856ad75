"""MPI3D: files written here from what its README says, with fewer classes."""

import io
import math
import pickle
import zipfile

import numpy as np
import pytest
import torch

from pyvae.data import load, mpi3d
from pyvae.data.images import Images
from pyvae.data.mpi3d import FACTOR_SIZES, MPI3D
from pyvae.errors import DataError
from test_data_fuzz import check, rounds, spoilt

SIZES = (3, 2, 2, 3, 2, 2, 4)
COUNT = math.prod(SIZES)


@pytest.fixture(autouse=True)
def cache_dir(tmp_path, monkeypatch):
    monkeypatch.setenv("PYVAE_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def images():
    """As published: ``images.reshape([*sizes, 64, 64, 3])`` has an axis to each factor. Pixels say their classes."""
    images = np.random.default_rng(0).integers(0, 256, (*SIZES, 64, 64, 3), dtype=np.uint8)
    for classes in np.ndindex(*SIZES):
        images[classes][0, : len(SIZES), 1] = classes
    return images.reshape(COUNT, 64, 64, 3)


@pytest.fixture
def path(tmp_path, images):
    np.savez(tmp_path / "any-name", images=images)
    return tmp_path / "any-name.npz"


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setattr(mpi3d, "FACTOR_SIZES", {COUNT: SIZES})


def test_the_published_numbers():
    """https://github.com/rr-learning/disentanglement_dataset: counts, and the arguments of reshape."""
    assert FACTOR_SIZES == {1_036_800: (6, 6, 2, 3, 3, 40, 40), 460_800: (4, 4, 2, 3, 3, 40, 40)}
    assert all(math.prod(sizes) == count for count, sizes in FACTOR_SIZES.items())


def test_images_and_their_factors(path, images, tiny):
    data = load(path, progress=False)
    assert isinstance(data, MPI3D)
    assert (len(data), data.image_shape, data.factor_sizes) == (COUNT, (3, 64, 64), SIZES)
    assert data.factor_names[:3] == ("object_color", "object_shape", "object_size")
    assert data.factor_names[3:] == ("camera_height", "background_color", "horizontal_axis", "vertical_axis")
    index = torch.arange(COUNT)
    pixels = (data.images(index) * 255).round().to(torch.uint8)
    assert (pixels.numpy() == np.moveaxis(images, -1, 1)).all()
    classes = data.factor_classes(index)
    assert torch.equal(pixels[:, 1, 0, : len(SIZES)].long(), classes)
    assert torch.equal(data.index(classes), index)
    assert torch.equal(data.factor_values(index), classes.double())
    one = (2, 1, 0, 2, 1, 1, 3)
    assert data.images(data.index(one))[1, 0, : len(SIZES)].mul(255).tolist() == pytest.approx(one)


@pytest.mark.parametrize("form", ["compressed", "fortran order"])
def test_however_numpy_saved_it(tmp_path, images, path, form, monkeypatch):
    plain = MPI3D(path, factor_sizes=SIZES, progress=False)
    monkeypatch.setattr(mpi3d, "_IMAGES_AT_ONCE", 50)
    other = tmp_path / "other.npz"
    if form == "compressed":
        np.savez_compressed(other, images=images)
    else:
        np.savez(other, images=np.asfortranarray(images))
    assert MPI3D(other, factor_sizes=SIZES, progress=False).fingerprint == plain.fingerprint


def test_a_named_array_is_of_images_without_factors(path, tiny):
    assert isinstance(load(f"{path}:images", size=8, progress=False), Images)


def test_another_number_of_images(path, images, tiny):
    np.savez(path, images=images[:-1])
    assert isinstance(load(path, size=8, progress=False), Images)
    with pytest.raises(DataError, match=f"{COUNT - 1} images instead of {COUNT}, so not MPI3D; download"):
        MPI3D(path)
    with pytest.raises(DataError, match=f"{COUNT - 1} images instead of {COUNT}, so"):
        MPI3D(path, factor_sizes=SIZES)
    np.savez(path, images=images.astype(np.float32))
    with pytest.raises(DataError, match=r"not MPI3D: no .npz with uint8 images \[N, 64, 64, 3\]; download"):
        MPI3D(path, factor_sizes=SIZES)


def test_options_that_do_not_go_with_it(path, tiny):
    for options in ({"size": 32}, {"channels": 1}, {"crop": 60}, {"corrupt": "skip"}):
        with pytest.raises(DataError, match=r"images of MPI3D are 3 x 64 x 64; leave out size, channels"):
            load(path, progress=False, **options)


def test_packed_once_and_again_when_the_file_is_another(path, images, tiny, monkeypatch):
    first = load(path, progress=False)
    read = mpi3d._read
    monkeypatch.setattr(mpi3d, "_read", None)
    assert load(path, progress=False).fingerprint == first.fingerprint
    monkeypatch.setattr(mpi3d, "_read", read)
    np.savez(path, images=images[::-1])
    again = load(path, progress=False)
    assert again.fingerprint != first.fingerprint
    assert torch.equal(again.images(0), first.images(COUNT - 1))


def test_pickling_copies_no_pixels(path, tiny):
    data = load(path, progress=False)
    pickled = pickle.dumps(data)
    assert len(pickled) < 6000
    copy = pickle.loads(pickled)
    assert torch.equal(copy.images([5, 2]), data.images([5, 2]))
    assert torch.equal(copy.pixels, data.pixels)


def test_a_file_that_is_written_to_at_this_moment(path, tiny, monkeypatch):
    read = mpi3d._read

    def slowly(*arguments):
        read(*arguments)
        path.write_bytes(path.read_bytes() + b"x")

    monkeypatch.setattr(mpi3d, "_read", slowly)
    with pytest.raises(DataError, match="was written to while it was read; load it when that is done"):
        load(path, progress=False)


def published(path, count, images, said=None):
    """An archive that says of itself that it has the images of a published file, and has these."""
    header = io.BytesIO()
    shape = (count, 64, 64, 3)
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": shape})
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr("images.npy", header.getvalue() + images.tobytes())
        if said:
            archive.infolist()[0].file_size = said
    return path


@pytest.mark.parametrize("count", FACTOR_SIZES)
@pytest.mark.parametrize("lie", [False, True])
def test_a_published_file_that_ends_early(tmp_path, monkeypatch, images, count, lie):
    class Usage:
        free = 10**11

    monkeypatch.setattr("shutil.disk_usage", lambda path: Usage)
    monkeypatch.setattr(mpi3d, "_IMAGES_AT_ONCE", 100)
    path = published(tmp_path / "a.npz", count, images, 128 + count * 64 * 64 * 3 if lie else None)
    with pytest.raises(DataError, match=r"a.npz: damaged or truncated \(.*\); download it again") as caught:
        load(path, progress=False)
    assert "\n" not in str(caught.value)
    assert not [*(tmp_path / "cache").iterdir()]


def test_damaged_files(path, images, tiny):
    content = path.read_bytes()
    at = len(content) // 2
    for damaged in (
        content[:at],
        content[:-30],
        content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :],
        b"",
    ):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=r"any-name.npz: .*download it again"):
            load(path, progress=False)
    # a pickle is never executed
    np.savez(path, images=np.array([print] * COUNT))
    with pytest.raises(DataError):
        load(path, progress=False)


@pytest.mark.filterwarnings("ignore")
def test_whatever_bytes_a_file_holds(tmp_path, images, monkeypatch):
    monkeypatch.setattr(mpi3d, "FACTOR_SIZES", {4: (1, 1, 1, 1, 1, 2, 2)})
    path = tmp_path / "a.npz"
    for number, save in enumerate((np.savez, np.savez_compressed)):
        save(path, images=images[:4])
        whole = path.read_bytes()
        for rng in rounds(300 + number, 30):
            path.write_bytes(spoilt(whole, rng))
            check(path, tmp_path, 64)


def test_more_than_may_be_unpacked(path, tiny, monkeypatch):
    monkeypatch.setenv("PYVAE_LIMIT", "0.001")
    np.savez_compressed(path, images=np.zeros((COUNT, 64, 64, 3), np.uint8))
    with pytest.raises(DataError, match=r"more than the 1 MB that are taken; .* set PYVAE_LIMIT"):
        load(path, progress=False)


def test_a_disk_without_room(path, tiny, monkeypatch):
    class Usage:
        free = 10**6

    monkeypatch.setattr("shutil.disk_usage", lambda path: Usage)
    with pytest.raises(DataError, match=r"7.08 MB are needed .* 1 MB are free; make room"):
        load(path, progress=False)
