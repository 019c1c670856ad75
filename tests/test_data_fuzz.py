"""Whatever bytes a data file holds, it is loaded, or refused by one line: nothing else is raised, and nothing hangs."""

import gzip
import io
import struct
import warnings
import zipfile

import h5py
import numpy as np
import pytest
import torch
from PIL import Image

from pyvae.data import load
from pyvae.errors import DataError

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (6, 8, 8), dtype=np.uint8)
COLOUR = RNG.integers(0, 256, (6, 8, 8, 3), dtype=np.uint8)
ROUNDS = 40


def npy(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def npz(save, **arrays):
    file = io.BytesIO()
    save(file, **arrays)
    return file.getvalue()


def hdf5(options, user_block=0, **arrays):
    file = io.BytesIO()
    with h5py.File(file, "w", userblock_size=user_block) as hdf5:
        for name, array in arrays.items():
            hdf5.create_dataset(name, data=array, **(options if array.ndim > 1 else {}))
    return file.getvalue()


def idx(array):
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


def picture(form, array=COLOUR[0], **options):
    file = io.BytesIO()
    Image.fromarray(array).save(file, form, **options)
    return file.getvalue()


CLASSES = np.zeros((6, 6), np.int64)
CHUNKED = {"chunks": True, "compression": 4, "fletcher32": True}
FILES = {
    "npy": npy(IMAGES),
    "npy of floats": npy(IMAGES / 255),
    "npy in Fortran order": npy(np.asfortranarray(COLOUR)),
    "npz": npz(np.savez, images=IMAGES),
    "compressed npz": npz(np.savez_compressed, images=COLOUR, labels=np.arange(6)),
    "npz in Fortran order": npz(np.savez_compressed, images=np.asfortranarray(IMAGES)),
    "dsprites npz": npz(np.savez, imgs=IMAGES, latents_classes=CLASSES),
    "hdf5": hdf5({}, images=IMAGES),
    "chunked hdf5": hdf5(CHUNKED, images=COLOUR, other=IMAGES),
    "hdf5 after a user block": hdf5({}, 512, images=IMAGES),
    "dsprites hdf5": hdf5(CHUNKED, imgs=IMAGES, **{"latents/classes": CLASSES}),
    "shapes3d": hdf5(CHUNKED, images=np.zeros((2, 64, 64, 3), np.uint8), labels=np.zeros((2, 6))),
    "idx": idx(IMAGES),
    "gzipped idx": gzip.compress(idx(IMAGES), 1),
}
PICTURES = {
    "png": picture("PNG"),
    "png of 16 bits": picture("PNG", IMAGES[0].astype(np.uint16) * 257, transparency=514),
    "jpg": picture("JPEG"),
    "gif": picture("GIF", IMAGES[0]),
    "bmp": picture("BMP"),
    "tiff": picture("TIFF", compression="tiff_lzw"),
    "webp": picture("WEBP"),
    "ppm": picture("PPM"),
}


def spoilt(content, rng):
    """A few bytes flipped, overwritten, cut out, put in or cut off."""
    data = bytearray(content)
    for _ in range(rng.integers(1, 5)):
        at = (
            int(rng.integers(0, len(data)))
            if rng.random() < 0.5
            else int(rng.integers(0, min(len(data), 400)))
        )
        how = rng.integers(0, 6)
        if how <= 1:
            data[at] ^= 1 << rng.integers(0, 8)
        elif how == 2:
            data[at : at + 8] = [b"\xff" * 8, b"\0" * 8, rng.bytes(8)][rng.integers(0, 3)]
        elif how == 3:
            del data[at : at + int(rng.integers(1, 50))]
        elif how == 4:
            data[at:at] = rng.bytes(int(rng.integers(1, 50)))
        else:
            del data[at:]
        data = data or bytearray(b"x")
    return bytes(data)


def check(path, tmp_path, size=8, **options):
    """Loaded, with every image to be had; or refused by one line. Returns which."""
    try:
        data = load(path, size=size, cache_dir=tmp_path / "cache", progress=False, **options)
    except DataError as error:
        said = str(error)
        if not said.isprintable() or len(said) > 2000:
            raise
        return False
    images = data.images(torch.arange(len(data)))
    assert images.shape == (len(data), *data.image_shape)
    assert 0 <= images.min() <= images.max() <= 1
    return True


def rounds(seed, number=ROUNDS):
    return [np.random.default_rng([seed, i]) for i in range(number)]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("form", FILES)
def test_data_files(tmp_path, form):
    path = tmp_path / "file"
    path.write_bytes(FILES[form])
    assert form == "shapes3d" or check(path, tmp_path)
    for rng in rounds(sorted(FILES).index(form)):
        path.write_bytes(spoilt(FILES[form], rng))
        check(path, tmp_path)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("form", PICTURES)
def test_pictures(tmp_path, form):
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "whole.png").write_bytes(PICTURES["png"])
    path = folder / f"a.{form.split()[0]}"
    path.write_bytes(PICTURES[form])
    assert check(folder, tmp_path)
    for number, rng in enumerate(rounds(100 + sorted(PICTURES).index(form), ROUNDS // 2)):
        path.write_bytes(spoilt(PICTURES[form], rng))
        skip = bool(number % 2)
        assert check(folder, tmp_path, corrupt="skip" if skip else "refuse") or not skip


def test_the_bytes_between_the_arrays_of_a_zip(tmp_path):
    """Members that are no arrays, that come twice, that are encrypted, or compressed by another method."""
    path = tmp_path / "file"
    with zipfile.ZipFile(path, "w") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(2):
            archive.writestr("images.npy", npy(IMAGES))
        archive.writestr("notes.txt", "x")
        archive.writestr("sub/", "")
    assert check(path, tmp_path)
    whole = bytearray(path.read_bytes())
    for at in [i for i in range(len(whole)) if whole[i : i + 4] in (b"PK\1\2", b"PK\3\4")]:
        whole[at + (8 if whole[at + 2] == 1 else 6)] |= 1
    path.write_bytes(whole)
    assert not check(path, tmp_path)
    for method in (zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        with zipfile.ZipFile(path, "w", method) as archive:
            archive.writestr("images.npy", npy(IMAGES))
        assert not check(path, tmp_path)
