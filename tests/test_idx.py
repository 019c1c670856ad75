"""MNIST's own files."""

import gzip
import struct

import numpy as np
import pytest
import torch

from pyvae.data import load
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
    with pytest.raises(DataError, match=r"neither a \.npz"):
        load(path, size=28, cache_dir=tmp_path / "cache", progress=False)
