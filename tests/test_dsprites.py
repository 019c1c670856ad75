import io
import logging
import math
import os
import pickle
import time
import warnings
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from pyvae.data import load, sprites
from pyvae.data.dsprites import DSprites
from pyvae.errors import DataError

GIF = Path(__file__).resolve().parents[2] / "shared/data/dsprites.gif"
SIZES = sprites.FACTOR_SIZES
GRID = (3, 2, 5, 4, 3)
COUNT = math.prod(GRID)


@pytest.fixture(scope="session")
def full(tmp_path_factory):
    directory = tmp_path_factory.mktemp("cache")
    start = time.perf_counter()
    dataset = DSprites.generated(directory, progress=False)
    print(f"generated, written and checked in {time.perf_counter() - start:.2f} s")
    return dataset


@pytest.fixture(scope="session")
def lit(full):
    """Lit pixels of every image, [shape, scale, orientation, posX, posY]."""
    ones = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).sum(axis=1, dtype=np.uint8)
    counts = [ones[block.numpy()].sum(axis=1, dtype=np.int64) for block in full.bits.split(40960)]
    return np.concatenate(counts).reshape(SIZES)


def frame_factors():
    """The (shape, scale, orientation, posX, posY) of the 320 frames of the published animation."""
    up, down = [[s, 0, 0, 0] for s in range(6)], [[s, 0, 0, 0] for s in range(5, -1, -1)]
    turn = [[5, o, 0, 0] for o in range(40)]
    around = [[5, 0, 0, k] for k in range(32)] + [[5, 0, k, 31] for k in range(32)]
    around += [[5, 0, 31, 31 - k] for k in range(32)] + [[5, 0, 31 - k, 0] for k in range(32)]
    heart = up + down + up + turn + around + down
    other = up + down + up + turn + down
    return [[2, *f] for f in heart] + [[1, *f] for f in other] + [[0, *f] for f in other]


@pytest.mark.skipif(not GIF.exists(), reason="the published dsprites.gif is not in shared/data")
def test_every_published_frame_pixel_for_pixel(full):
    image_module = pytest.importorskip("PIL.Image")
    factors = torch.tensor(frame_factors())
    with image_module.open(GIF) as gif:
        assert (gif.n_frames, gif.size) == (320, (64, 64))
        frames = []
        for k in range(gif.n_frames):
            gif.seek(k)
            frames.append(np.asarray(gif.convert("RGB")))
    frames = np.stack(frames)
    assert set(np.unique(frames)) == {0, 255}
    assert (frames == frames[..., :1]).all()
    wrong = (full.images(full.index(factors))[:, 0].numpy() * 255 != frames[..., 0]).sum(axis=(1, 2))
    assert wrong.tolist() == [0] * 320


def test_totals(lit):
    assert lit.sum() == 128_328_864
    assert lit.sum(axis=(1, 2, 3, 4)).tolist() == [53_612_886, 42_070_950, 32_645_028]
    assert (lit.min(), lit.max()) == (50, 400)
    expected = [
        [92.196, 132.735, 180.634, 235.956, 298.654, 368.734],
        [72.344, 104.142, 141.788, 185.185, 234.340, 289.324],
        [56.126, 80.831, 110.005, 143.701, 181.837, 224.497],
    ]
    np.testing.assert_allclose(lit.mean(axis=(2, 3, 4)), expected, atol=5.01e-4)


def test_support(full):
    ever = np.zeros(512, np.uint8)
    for block in full.bits.split(40960):
        ever |= np.bitwise_or.reduce(block.numpy(), axis=0)
    ever = np.unpackbits(ever, bitorder="little").reshape(64, 64)
    assert ever.sum() == 3296
    for axis in (0, 1):
        assert np.flatnonzero(ever.any(axis=axis)).tolist() == list(range(2, 62))


def test_the_last_orientation_repeats_the_first(full):
    bits = full.bits.view(18, 40, 1024, 512)
    assert torch.equal(bits[:, 39], bits[:, 0])
    assert not torch.equal(bits[:, 38], bits[:, 0])


def test_distinct_images(full):
    assert len(np.unique(full.bits.numpy().view("V512"))) == 715_706


def test_fingerprint(full):
    assert full.fingerprint == "dsprites-generated-v1-crc32:9644ff40"
    assert full.name == "dsprites"
    assert (len(full), full.image_shape, full.factor_sizes) == (737_280, (1, 64, 64), SIZES)
    assert full.factor_names == ("shape", "scale", "orientation", "posX", "posY")


def test_single_images_equal_those_of_the_whole_set(full):
    index = torch.from_numpy(np.random.default_rng(0).integers(0, len(full), 3000))
    assert torch.equal(torch.from_numpy(sprites.render(full.factor_classes(index))), full.bits[index])


def test_images_are_the_bits(full):
    index = torch.tensor([[0, 737_279, 5], [123_456, 5, 300_000]])
    images = full.images(index)
    assert (images.shape, images.dtype) == ((2, 3, 1, 64, 64), torch.float32)
    for at in np.ndindex(2, 3):
        packed = np.packbits(images[at].numpy().astype(bool).ravel(), bitorder="little")
        assert (packed == full.bits[index[at]].numpy()).all()
    assert set(images.unique().tolist()) == {0.0, 1.0}
    assert full.images(5).shape == (1, 64, 64)
    for same in ([5], np.array([5], np.uint16), np.int32(5), torch.tensor([5], dtype=torch.int32)):
        assert torch.equal(full.images(same).reshape(1, 64, 64), images[0, 2])
    assert full.images([]).shape == (0, 1, 64, 64)


def test_factor_values_are_those_of_the_published_files(full):
    ranges = ((1.0, 3.0), (0.5, 1.0), (0.0, 2 * math.pi), (0.0, 1.0), (0.0, 1.0))
    classes = full.factor_classes(torch.arange(len(full))).double()
    expected = torch.stack(
        [lo + classes[:, f] * (hi - lo) / (SIZES[f] - 1) for f, (lo, hi) in enumerate(ranges)], dim=1
    )
    values = full.factor_values(torch.arange(len(full)))
    assert values.dtype == torch.float64
    assert torch.equal(values, expected)
    assert values[0].tolist() == [1, 0.5, 0, 0, 0]
    assert values[-1].tolist() == [3, 1, 2 * math.pi, 1, 1]


def test_index_inverts_factor_classes(full):
    index = torch.arange(len(full))
    classes = full.factor_classes(index)
    assert torch.equal(full.index(classes), index)
    assert (classes.numpy() == np.stack(np.unravel_index(index.numpy(), SIZES), axis=1)).all()
    assert full.factor_classes(index.view(3, 6, -1)).shape == (3, 6, 40960, 5)
    assert full.index([[2, 5, 39, 31, 31]]).tolist() == [737_279]


@pytest.mark.parametrize("call", ["images", "factor_classes", "factor_values"])
def test_wrong_index(full, call):
    for bad in (737_280, [3, -1], torch.tensor([[2**40]])):
        with pytest.raises(IndexError, match=r"737280|-1|1099511627776"):
            getattr(full, call)(bad)
    for bad in (0.5, [True], torch.zeros(3)):
        with pytest.raises(TypeError, match="index"):
            getattr(full, call)(bad)


def test_wrong_classes(full):
    with pytest.raises(IndexError, match="class 40 of orientation"):
        full.index([[0, 0, 0, 0, 0], [0, 5, 40, 0, 0]])
    with pytest.raises(IndexError, match="class -1 of posY"):
        full.index([0, 0, 0, 0, -1])
    with pytest.raises(ValueError, match="last dimension"):
        full.index([0, 0, 0, 0])


def published(images, grid=GRID):
    """The members of a published file, made from unpacked images."""
    classes = np.stack(np.unravel_index(np.arange(len(images)), grid), axis=1).astype(np.int64)
    values = np.stack([v[classes[:, f]] for f, v in enumerate(sprites.factor_values())], axis=1)
    return {
        "imgs": images,
        "latents_classes": np.pad(classes, ((0, 0), (1, 0))),
        "latents_values": np.pad(values, ((0, 0), (1, 0)), constant_values=1.0),
    }


@pytest.fixture
def members():
    packed = np.concatenate(list(sprites.generate(GRID)))
    return published(np.unpackbits(packed, axis=1, bitorder="little").reshape(-1, 64, 64))


class Trap:
    """Leaves a directory behind when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def metadata(trap):
    """The bytes of metadata.npy as Python 2 wrote it: a 0-d object array, pickled."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "|O", "fortran_order": False, "shape": ()})
    pickle.dump(trap, file, protocol=2)
    return file.getvalue()


def write_npz(path, members):
    np.savez_compressed(path, **members)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("metadata.npy", metadata(Trap(path.with_name("unpickled"))))


def write_hdf5(path, members):
    with h5py.File(path, "w") as file:
        for key, value in members.items():
            compression = {"chunks": (len(value), 2, 4), "compression": 4} if value.ndim == 3 else {}
            file.create_dataset(key.replace("latents_", "latents/"), data=value, **compression)


WRITERS = {"npz": write_npz, "hdf5": write_hdf5}


@pytest.mark.parametrize("form", WRITERS)
def test_published_files(tmp_path, members, form, monkeypatch):
    path = tmp_path / f"any-name.{form}"
    WRITERS[form](path, members)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        first = DSprites.genuine(path, tmp_path / "cache", progress=False, _grid=GRID)
    assert (first.differing_images, first.differing_pixels) == (0, 0)
    assert (first.images(torch.arange(COUNT))[:, 0].numpy() == members["imgs"]).all()
    assert (first.factor_values(torch.arange(COUNT)).numpy() == members["latents_values"][:, 1:]).all()
    assert not (tmp_path / "unpickled").exists()
    assert first.fingerprint.startswith("dsprites-genuine-crc32:")
    monkeypatch.setattr("pyvae.data.dsprites._blocks", None)
    again = DSprites.genuine(path, tmp_path / "cache", progress=False, _grid=GRID)
    assert torch.equal(again.bits, first.bits)


def test_the_trap_is_live(tmp_path, members):
    write_npz(tmp_path / "d.npz", members)
    with np.load(tmp_path / "d.npz", allow_pickle=True) as file:
        file["metadata"]
    assert (tmp_path / "unpickled").exists()


@pytest.mark.parametrize("form", WRITERS)
def test_difference_from_the_generated_images_is_reported(tmp_path, members, form, caplog):
    members["imgs"][7, :2, :3] ^= 1
    members["imgs"][[8, COUNT - 1], 63, 63] ^= 1
    path = tmp_path / f"d.{form}"
    WRITERS[form](path, members)
    with caplog.at_level(logging.INFO, logger="pyvae"):
        first = DSprites.genuine(path, tmp_path, progress=False, _grid=GRID)
    assert [r.getMessage() for r in caplog.records] == [
        f"{path}: 3 images differ from the generated ones, in 8 pixels"
    ]
    again = DSprites.genuine(path, tmp_path, progress=False, _grid=GRID)
    for dataset in (first, again):
        assert (dataset.differing_images, dataset.differing_pixels) == (3, 8)
        assert (dataset.images(torch.arange(COUNT))[:, 0].numpy() == members["imgs"]).all()


def test_a_changed_file_is_read_again(tmp_path, members):
    path = tmp_path / "d.npz"
    write_npz(path, members)
    before = DSprites.genuine(path, tmp_path, progress=False, _grid=GRID)
    members["imgs"][3] ^= 1
    write_npz(path, members)
    after = DSprites.genuine(path, tmp_path, progress=False, _grid=GRID)
    assert after.differing_images == 1
    assert before.fingerprint != after.fingerprint


def _scaled(m):
    m["imgs"][COUNT // 2] *= 255


def _shuffled(m):
    for key in m:
        m[key][[1, 5]] = m[key][[5, 1]]


def _short(m):
    for key in m:
        m[key] = m[key][:-1]


FAULTS = {
    "values": (_scaled, f"image {COUNT // 2} has the value 255"),
    "order": (_shuffled, r"image 1 has the latent classes \[.*\] where .* belong"),
    "count": (_short, rf"imgs is uint8 \[{COUNT - 1}, 64, 64\] instead of"),
    "shape": (lambda m: m.update(imgs=m["imgs"].reshape(-1, 4096)), r"imgs is uint8 .*4096\] instead of"),
    "dtype": (lambda m: m.update(imgs=m["imgs"].astype(np.float32)), "imgs is float32"),
    "classes": (lambda m: m.update(latents_classes=m["latents_classes"] / 1), "latent classes are float64"),
    "no images": (lambda m: m.update(images=m.pop("imgs")), "holds .*images.* instead of imgs"),
    "no classes": (lambda m: m.pop("latents_classes"), "not dSprites: it holds"),
}


@pytest.mark.parametrize("form", WRITERS)
@pytest.mark.parametrize("fault", FAULTS)
def test_wrong_content(tmp_path, members, form, fault):
    spoil, message = FAULTS[fault]
    spoil(members)
    path = tmp_path / f"d.{form}"
    WRITERS[form](path, members)
    assert_refused(path, message)


def assert_refused(path, message):
    cache = path.with_name("cache")
    with pytest.raises(DataError, match=message) as caught:
        DSprites.genuine(path, cache, progress=False, _grid=GRID)
    assert path.name in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not cache.exists() or not list(cache.iterdir())


@pytest.mark.parametrize("form", WRITERS)
def test_damaged_file(tmp_path, members, form):
    path = tmp_path / f"d.{form}"
    assert_refused(path, "No such file")
    path.write_bytes(b"")
    assert_refused(path, "empty")
    path.write_bytes(b"<html>not found</html>")
    assert_refused(path, "neither a .npz .* nor an HDF5")
    WRITERS[form](path, members)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert_refused(path, "damaged or truncated")
    assert_refused(tmp_path, "cannot be opened")


def test_flipped_bit_in_a_zip_member(tmp_path, members):
    path = tmp_path / "d.npz"
    np.savez(path, **members)
    data = bytearray(path.read_bytes())
    data[data.index(b"imgs.npy") + 3000] ^= 1
    path.write_bytes(data)
    assert_refused(path, "damaged or truncated .*CRC")


def test_object_arrays_are_refused_unread(tmp_path, members):
    path = tmp_path / "d.npz"
    del members["imgs"]
    np.savez(path, **members)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("imgs.npy", metadata(Trap(tmp_path / "unpickled")))
    assert_refused(path, "imgs is object")
    assert not (tmp_path / "unpickled").exists()


def test_load(tmp_path, monkeypatch):
    with pytest.raises(DataError, match="give 'dsprites', or the path"):
        load("celeba")
    calls = []
    monkeypatch.setattr("pyvae.data.dsprites.COUNT", 4)
    monkeypatch.setattr(DSprites, "generated", lambda *a: calls.append(("generated", *a)))
    monkeypatch.setattr(DSprites, "genuine", lambda *a: calls.append(("genuine", *a)))
    path = tmp_path / "mislabelled.h5"
    write_hdf5(path, {"imgs": np.zeros((4, 64, 64), np.uint8), "latents_classes": np.zeros((4, 6))})
    load("dsprites", cache_dir=tmp_path, progress=False)
    load(path, cache_dir=tmp_path)
    assert calls == [("generated", tmp_path, False), ("genuine", path, tmp_path, True)]


@pytest.mark.slow
def test_full_size_npz(full, tmp_path):
    path = tmp_path / "dsprites_ndarray_co1sh3sc6or40x32y32_64x64.npz"
    rest = published(np.empty((len(full), 0)), SIZES)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr("metadata.npy", metadata(Trap(tmp_path / "unpickled")))
        with archive.open("imgs.npy", "w", force_zip64=True) as member:
            header = {"descr": "|u1", "fortran_order": False, "shape": (len(full), 64, 64)}
            np.lib.format.write_array_header_1_0(member, header)
            for block in full.bits.split(8192):
                member.write(np.unpackbits(block.numpy(), bitorder="little").data)
        for key in ("latents_classes", "latents_values"):
            with archive.open(f"{key}.npy", "w") as member:
                np.lib.format.write_array(member, rest[key])
    genuine = load(path, cache_dir=tmp_path, progress=False)
    assert isinstance(genuine, DSprites)
    assert torch.equal(genuine.bits, full.bits)
    assert (genuine.differing_images, genuine.differing_pixels) == (0, 0)
    assert not (tmp_path / "unpickled").exists()
