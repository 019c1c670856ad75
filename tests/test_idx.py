"""MNIST's own files."""

import gzip
import struct

import numpy as np
import pytest
import torch

from pyvae.data import Dataset, load, mnist
from pyvae.errors import DataError


def write(path, images, *, kind=8, packed=False):
    header = struct.pack(f">HBB{images.ndim}I", 0, kind, images.ndim, *images.shape)
    content = header + images.tobytes()
    path.write_bytes(gzip.compress(content) if packed else content)
    return path


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(0, 256, (300, 28, 28), dtype=np.uint8)


@pytest.mark.parametrize("packed", [False, True])
def test_images_as_they_are(images, tmp_path, packed):
    path = write(tmp_path / "train-images-idx3-ubyte", images, packed=packed)
    data = load(path, size=28, cache_dir=tmp_path / "cache", progress=False)
    assert (len(data), data.image_shape) == (300, (1, 28, 28))
    expected = torch.from_numpy(images).float()[:, None] / 255
    torch.testing.assert_close(data.images(torch.arange(300)), expected, rtol=0, atol=1e-7)


def test_the_folder_will_do(images, tmp_path):
    write(tmp_path / "train-images-idx3-ubyte.gz", images, packed=True)
    write(tmp_path / "t10k-images-idx3-ubyte.gz", images[:7], packed=True)
    assert len(load(tmp_path, size=28, cache_dir=tmp_path / "cache", progress=False)) == 300


@pytest.mark.parametrize("train", ["", ".gz"])
@pytest.mark.parametrize("test", ["", ".gz"])
def test_the_test_images_are_found(tmp_path, train, test):
    path, expected = (tmp_path / f"{part}-images-idx3-ubyte" for part in ("train", "t10k"))
    path = path.with_name(path.name + train)
    path.touch()
    assert mnist.test_file(path) is mnist.test_file(tmp_path) is None
    expected = expected.with_name(expected.name + test)
    expected.touch()
    assert mnist.test_file(path) == mnist.test_file(tmp_path) == expected
    assert mnist.test_file(tmp_path / "digits.npz") is None


@pytest.mark.parametrize(
    ("known", "count", "mean"),
    [(mnist.is_training_set, 60_000, 33.318421449829934), (mnist.is_test_set, 10_000, 33.791224489795916)],
)
def test_mnist_is_told_from_others_of_its_shape(known, count, mean):
    class Pixels(Dataset):
        def __init__(self, pixels):
            super().__init__(name="images", fingerprint="", image_shape=tuple(pixels.shape[1:]))
            self.pixels = pixels

        def __len__(self):
            return len(self.pixels)

        def images(self, index):
            return self.pixels[index] / 255

    # what is left of the sum goes to single pixels
    total = round(mean * count * 784)
    pixels = torch.full((count, 1, 28, 28), int(mean), dtype=torch.uint8)
    pixels.view(-1)[: total - int(mean) * count * 784] += 1
    assert known(Pixels(pixels))
    pixels[0, 0, 0, 0] += 1
    assert not known(Pixels(pixels))
    assert not known(Pixels(pixels[1:]))


@pytest.mark.parametrize("packed", [False, True])
def test_a_truncated_file_is_named(images, tmp_path, packed):
    path = write(tmp_path / "images", images, packed=packed)
    path.write_bytes(path.read_bytes()[:-5000])
    with pytest.raises(DataError, match=r"images: damaged or truncated .*; make or download it again"):
        load(path, size=28, cache_dir=tmp_path / "cache", progress=False)


def test_labels_are_no_images(images, tmp_path):
    path = write(tmp_path / "train-labels-idx1-ubyte", images[:, 0, 0])
    with pytest.raises(DataError, match="no array of images in it"):
        load(path, size=28, cache_dir=tmp_path / "cache", progress=False)


def test_other_types_are_refused(images, tmp_path):
    path = write(tmp_path / "images", images, kind=8)
    path.write_bytes(b"\0\0\x0d" + path.read_bytes()[3:])
    with pytest.raises(DataError, match="an IDX file of floats, not of bytes"):
        load(path, size=28, cache_dir=tmp_path / "cache", progress=False)


@pytest.mark.parametrize("content", [b"PK\3\4 a zip in a gzip", b"\0\0\x08\0", b"\0\0\x10\3" + bytes(12)])
def test_what_is_packed_and_no_idx_is_named(tmp_path, content):
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(gzip.compress(content))
    begins = content[:4].hex(" ")
    with pytest.raises(
        DataError, match=f"no IDX file: it begins with {begins}, the training images of MNIST"
    ):
        load(path, size=28, cache_dir=tmp_path / "cache", progress=False)


@pytest.mark.parametrize("kept", [3, 4, 9])
def test_a_header_that_ends_early(images, tmp_path, kept):
    path = tmp_path / "images.gz"
    path.write_bytes(gzip.compress(write(tmp_path / "whole", images).read_bytes()[:kept]))
    with pytest.raises(DataError, match=r"damaged or truncated \(the header ends early\)"):
        load(path, size=28, cache_dir=tmp_path / "cache", progress=False)
