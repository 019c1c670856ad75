import errno
import json
import logging
import os
import pickle
import resource
import signal
import struct
import subprocess
import sys
import textwrap
import time
import zipfile
import zlib
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from PIL import Image

from pyvae.data import Dataset, FactorDataset, load
from pyvae.data.folder import Folder
from pyvae.data.images import Images
from pyvae.engine.loop import train
from pyvae.engine.recipe import Recipe
from pyvae.engine.run import RunDirectory
from pyvae.errors import DataError, PyvaeError, RunError
from pyvae.evaluation import read_scores, score
from pyvae.metrics import encode, unsupervised
from pyvae.report import report, traverse

RNG = np.random.default_rng(0)
COLOUR = RNG.integers(0, 256, (7, 64, 64, 3), dtype=np.uint8)
GREY = RNG.integers(0, 256, (5, 64, 64), dtype=np.uint8)


@pytest.fixture(autouse=True)
def cache_dir(tmp_path, monkeypatch):
    monkeypatch.setenv("PYVAE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def open_images(path, **options):
    return Images(path, progress=False, **options)


def write_folder(path, arrays=COLOUR, suffix=".png"):
    path.mkdir(parents=True, exist_ok=True)
    for i, array in enumerate(arrays):
        Image.fromarray(array).save(path / f"{i}{suffix}")
    return path


def pixels_of(path, **options):
    """The bytes of the only image in a folder, ``[C, H, W]``."""
    (pixels,) = open_images(path, **options).pixels.numpy()
    return pixels


def one(tmp_path, picture, name="a.png", **options):
    """The bytes of a picture that was saved in a folder of its own."""
    folder = tmp_path / f"of {name}"
    folder.mkdir()
    picture.save(folder / name, **options)
    return folder


def refused(path, *words, **options):
    """Refused with one line that holds the words, and nothing is added to the cache."""
    before = cached()
    with pytest.raises(DataError) as caught:
        open_images(path, **options)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message, message
    assert cached() == before
    return message


def cached():
    return sorted(Path(os.environ["PYVAE_CACHE"]).glob("*"))


def png(folder, depth, kind, values, transparency=None, palette=None, exif=None):
    """A folder with a PNG of values ``[H, W, samples]``, written here since Pillow does not write most of them."""

    def chunk(name, data):
        if data is None:
            return b""
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    height, width, _ = values.shape
    bits = (values.reshape(height, -1, 1) >> np.arange(depth)[::-1]) & 1
    rows = np.packbits(bits.astype(np.uint8).reshape(height, -1), axis=1)
    header = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    folder.mkdir()
    (folder / "a.png").write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"eXIf", exif)
        + chunk(b"PLTE", palette)
        + chunk(b"tRNS", transparency)
        + chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows)))
        + chunk(b"IEND", b"")
    )
    return folder


class TestFolder:
    def test_bytes_and_floats(self, tmp_path):
        data = load(write_folder(tmp_path / "f"), progress=False)
        assert isinstance(data, Dataset)
        assert not isinstance(data, FactorDataset)
        assert (len(data), data.name, data.image_shape) == (7, "images", (3, 64, 64))
        assert data.skipped == {}
        expected = COLOUR.transpose(0, 3, 1, 2)
        assert data.pixels.dtype == torch.uint8
        assert np.array_equal(data.pixels.numpy(), expected)
        for index in (3, [6, 0, 0], [[1, 2], [3, 4]], []):
            images = data.images(index)
            at = np.asarray(index, dtype=np.int64)
            assert images.dtype == torch.float32
            assert images.is_contiguous()
            assert images.shape == (*at.shape, 3, 64, 64)
            assert np.array_equal(images.numpy(), expected[at].astype(np.float32) / np.float32(255))
        with pytest.raises(IndexError, match="index 7 is out of range for 7 images"):
            data.images([0, 7])

    def test_order_is_that_of_relative_paths(self, tmp_path):
        names = ["b/2.png", "a.png", "b/10.png", "b.PNG", "a/z/1.bmp", "c/.hidden.png", ".git/x.png"]
        for value, name in enumerate(names):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            Image.new("L", (64, 64), 10 * (value + 1)).save(tmp_path / name)
        (tmp_path / "labels.csv").write_text("1,2")
        (tmp_path / "folder.png").mkdir()
        data = open_images(tmp_path)
        assert data.pixels[:, 0, 0, 0].tolist() == [20, 50, 40, 30, 10]

    def test_links_are_followed_once(self, tmp_path):
        write_folder(tmp_path / "elsewhere")
        (tmp_path / "f/a").mkdir(parents=True)
        (tmp_path / "f/a/up").symlink_to(tmp_path / "f")
        (tmp_path / "f/b").symlink_to(tmp_path / "elsewhere")
        (tmp_path / "f/c").symlink_to(tmp_path / "elsewhere")
        (tmp_path / "f/a/z.png").symlink_to(tmp_path / "elsewhere/0.png")
        assert Folder(tmp_path / "f").names == ["a/z.png", *(f"b/{i}.png" for i in range(7))]
        (tmp_path / "f/gone.png").symlink_to(tmp_path / "nothing")
        refused(tmp_path / "f", "gone.png: cannot be read (No such file")

    @pytest.mark.parametrize("corrupt", ["refuse", "skip"])
    def test_a_file_that_goes_away(self, tmp_path, monkeypatch, corrupt):
        whole = Folder.read

        def removed(self, how):
            (tmp_path / "f/3.png").unlink()
            return whole(self, how)

        monkeypatch.setattr(Folder, "read", removed)
        words = {
            "refuse": "3.png: cannot be read (No such file",
            "skip": "f: was written to while it was read; load it when that is done",
        }
        refused(write_folder(tmp_path / "f"), words[corrupt], corrupt=corrupt)

    @pytest.mark.parametrize("content", [(), ("labels.csv", "weights.h5", ".hidden.png")])
    def test_no_images(self, tmp_path, content):
        folder = tmp_path / "f"
        folder.mkdir()
        for name in content:
            (folder / name).write_bytes(b"x")
        refused(folder, f"{folder}: no image file", ".jpg", ".png")

    def test_absent(self, tmp_path):
        refused(tmp_path / "nowhere", "nowhere: no such file or folder")
        with pytest.raises(DataError, match=r"neither a known name nor a file; .* folder of images"):
            load(tmp_path / "nowhere")


class TestPictures:
    """What becomes of each kind of picture."""

    @pytest.mark.parametrize("mode", ["1", "L", "RGB"])
    @pytest.mark.parametrize("suffix", [".png", ".bmp", ".ppm", ".tiff", ".webp", ".gif"])
    def test_lossless_files_come_back_bit_for_bit(self, tmp_path, mode, suffix):
        colours = 2 if mode == "1" else 200  # a GIF has 256
        array = COLOUR[0] if mode == "RGB" else GREY[0]
        array = (array >= 128) * np.uint8(255) if colours == 2 else array
        if suffix == ".gif" and mode == "RGB":
            array = array // 64 * 64  # 64 colours
        picture = Image.fromarray(array).convert(mode)
        options = {"lossless": True} if suffix == ".webp" else {}
        if suffix == ".gif" and mode == "RGB":
            picture = picture.quantize(colors=256, method=Image.Quantize.FASTOCTREE)
            array = np.asarray(picture.convert("RGB"))
        folder = one(tmp_path, picture, f"a{suffix}", **options)
        channels = 3 if mode == "RGB" else 1
        pixels = pixels_of(folder, channels=channels)
        assert np.array_equal(pixels, np.atleast_3d(array).transpose(2, 0, 1))

    def test_jpeg(self, tmp_path):
        ramp = np.linspace(20, 220, 64).astype(np.uint8)
        picture = np.stack(np.broadcast_arrays(ramp[:, None], ramp[None, :], 255 - ramp[:, None]), -1)
        for mode, close in (("RGB", 6), ("CMYK", 8)):
            image = Image.fromarray(picture).convert(mode)
            pixels = pixels_of(one(tmp_path, image, f"{mode}.jpg", quality=95)).astype(int)
            assert abs(pixels - picture.transpose(2, 0, 1)).max() <= close

    def test_channels(self, tmp_path):
        grey = write_folder(tmp_path / "grey", GREY)
        assert open_images(grey).image_shape == (1, 64, 64)
        assert np.array_equal(open_images(grey, channels=3).pixels, GREY[:, None].repeat(3, 1))
        mixed = write_folder(tmp_path / "mixed", GREY)
        Image.fromarray(COLOUR[0]).save(mixed / "z.png")
        data = open_images(mixed)
        assert np.array_equal(data.pixels[:5], GREY[:, None].repeat(3, 1))
        assert np.array_equal(data.pixels[5], COLOUR[0].transpose(2, 0, 1))
        luma = COLOUR[0].astype(float) @ [0.299, 0.587, 0.114]
        assert abs(open_images(mixed, channels=1).pixels[5, 0].numpy() - luma).max() <= 1

    def test_transparent_pixels_are_laid_on_white(self, tmp_path):
        picture = Image.new("RGBA", (64, 64), (200, 100, 0, 255))
        picture.paste((200, 100, 0, 0), (0, 0, 64, 32))
        picture.paste((200, 100, 0, 51), (0, 0, 64, 16))
        pixels = pixels_of(one(tmp_path, picture))
        assert pixels[:, [0, 20, 40], 0].T.tolist() == [[244, 224, 204], [255, 255, 255], [200, 100, 0]]
        grey = Image.new("LA", (64, 64), (0, 0))
        assert (pixels_of(one(tmp_path, grey, "la.png"), channels=1) == 255).all()

    def test_palettes(self, tmp_path):
        index = Image.fromarray((GREY[0] % 3).astype(np.uint8), "P")
        palette = np.array([[255, 0, 0], [0, 255, 0], [9, 9, 9]], np.uint8)
        index.putpalette(palette.tobytes())
        expected = palette[GREY[0] % 3].transpose(2, 0, 1)
        assert np.array_equal(pixels_of(one(tmp_path, index)), expected)
        pixels = pixels_of(one(tmp_path, index, "clear.png", transparency=1))
        expected[:, GREY[0] % 3 == 1] = 255
        assert np.array_equal(pixels, expected)

    def test_sixteen_bits_are_divided(self, tmp_path):
        values = np.zeros((64, 64), np.uint16)
        values[0, :8] = [0, 128, 129, 257, 257 * 100, 257 * 100 + 128, 65406, 65535]
        for name in ("a.png", "a.tiff"):
            pixels = pixels_of(one(tmp_path, Image.fromarray(values), name))
            assert pixels.shape == (1, 64, 64)
            assert pixels[0, 0, :8].tolist() == [0, 0, 1, 1, 100, 100, 254, 255]

    @pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
    def test_the_transparent_value_of_grey_png(self, tmp_path, depth):
        """In the units of the file's own depth (PNG, third edition, 11.3.1.1)."""
        most = 2**depth - 1
        values = RNG.integers(0, most + 1, (64, 64, 1))
        clear = int(values[5, 9, 0])
        values[6] = np.minimum(most, clear + 1)  # next to it, and no more transparent than others
        folder = png(tmp_path / "f", depth, 0, values, clear.to_bytes(2, "big"))
        expected = np.where(values == clear, 255, np.rint(values * 255 / most))[..., 0]
        assert np.array_equal(pixels_of(folder, channels=1)[0], expected)

    @pytest.mark.parametrize("depth", [8, 16])
    def test_the_transparent_colour_of_png(self, tmp_path, depth):
        values = RNG.integers(0, 2**depth, (64, 64, 3))
        clear = values[5, 9].copy()
        values[6] = clear ^ 1  # of the same upper byte
        values[7] = clear
        folder = png(tmp_path / "f", depth, 2, values, np.array(clear, ">u2").tobytes())
        pixels = pixels_of(folder, channels=3).transpose(1, 2, 0)
        transparent = (values == clear).all(-1)
        assert transparent.sum() >= 64
        assert (pixels[transparent] == 255).all()
        assert np.array_equal(pixels[~transparent], (values >> (depth - 8))[~transparent])

    @pytest.mark.parametrize("depth", [1, 2, 4, 8])
    def test_transparent_palettes_of_png(self, tmp_path, depth):
        colours = min(2**depth, 7)
        values = RNG.integers(0, colours, (64, 64, 1))
        palette = RNG.integers(0, 256, (colours, 3), dtype=np.uint8)
        folder = png(tmp_path / "f", depth, 3, values, b"\xff\x00", palette.tobytes())
        expected = palette.copy()
        expected[1] = 255
        assert np.array_equal(pixels_of(folder).transpose(1, 2, 0), expected[values[..., 0]])

    @pytest.mark.parametrize("depth", [8, 16])
    @pytest.mark.parametrize("kind", [4, 6], ids=["grey", "colour"])
    def test_alpha_of_png(self, tmp_path, depth, kind):
        most = 2**depth - 1
        values = np.zeros((64, 64, {4: 2, 6: 4}[kind]), int)
        values[:, :32, -1] = most
        folder = png(tmp_path / "f", depth, kind, values)
        assert (pixels_of(folder)[:, :, :32] == 0).all()
        assert (pixels_of(folder)[:, :, 32:] == 255).all()

    @pytest.mark.parametrize("depth", [4, 16])
    def test_transparent_and_turned(self, tmp_path, depth):
        values = np.zeros((64, 64, 1), int)
        values[:8] = 3
        exif = Image.Exif()
        exif[0x0112] = 3
        folder = png(tmp_path / "f", depth, 0, values, b"\0\3", exif=exif.tobytes().removeprefix(b"Exif\0\0"))
        pixels = pixels_of(folder, channels=1)[0]
        assert (pixels[-8:] == 255).all()
        assert (pixels[:-8] == 0).all()

    @pytest.mark.parametrize(("dtype", "words"), [(np.float32, "floats"), (np.int32, "32-bit integers")])
    def test_values_that_do_not_say_what_is_white(self, tmp_path, dtype, words):
        folder = one(tmp_path, Image.fromarray(GREY[0].astype(dtype)), "a.tiff")
        refused(folder, "a.tiff: corrupt (its pixels are", words)

    @pytest.mark.parametrize("mode", ["RGB", "I;16"])
    def test_turned_as_exif_says(self, tmp_path, mode):
        array = COLOUR[0] if mode == "RGB" else GREY[0].astype(np.uint16) * 257
        exif = Image.Exif()
        exif[0x0112] = 6  # the first row of the file is the right side of the picture
        pixels = pixels_of(one(tmp_path, Image.fromarray(array), exif=exif))
        upright = np.rot90(COLOUR[0] if mode == "RGB" else GREY[0], -1)
        assert np.array_equal(pixels, np.atleast_3d(upright).transpose(2, 0, 1))

    def test_the_central_square_is_kept(self, tmp_path):
        wide = RNG.integers(0, 256, (64, 101), dtype=np.uint8)
        folder = one(tmp_path, Image.fromarray(wide))
        assert np.array_equal(pixels_of(folder)[0], wide[:, 18:82])
        assert np.array_equal(pixels_of(folder, crop=20, size=20)[0], wide[22:42, 40:60])
        tall = one(tmp_path, Image.fromarray(wide.T), "tall.png")
        assert np.array_equal(pixels_of(tall)[0], wide.T[18:82])
        refused_crop = pytest.raises(DataError, match=r"a.png: 101 x 64 pixels, smaller than the crop of 65")
        with refused_crop:
            open_images(folder, crop=65, corrupt="skip")

    def test_resizing_averages_and_never_overshoots(self, tmp_path):
        edge = np.zeros((256, 256), np.uint8)
        edge[:, 128:] = 200
        pixels = pixels_of(one(tmp_path, Image.fromarray(edge)))[0].astype(int)
        assert (pixels[:, :31] == 0).all()
        assert (pixels[:, 33:] == 200).all()
        assert (np.diff(pixels, axis=1) >= 0).all()
        noise = Image.fromarray(RNG.integers(0, 2, (640, 640), dtype=np.uint8) * 255)
        reduced = pixels_of(one(tmp_path, noise, "noise.png"))
        assert reduced.std() < 20  # picking one of a hundred pixels would leave 127
        assert abs(reduced.mean() - 127.5) < 2
        enlarged = pixels_of(one(tmp_path, Image.new("L", (5, 5), 77), "small.png"), size=32)
        assert enlarged.shape == (1, 32, 32)
        assert (enlarged == 77).all()

    def test_formats_that_are_not_listed_are_not_opened(self, tmp_path):
        """Whatever their names: Pillow has other programs run the scripts of some."""
        folder = one(tmp_path, Image.fromarray(GREY[0]), format="PCX")
        assert Image.open(folder / "a.png").size == (64, 64)
        refused(folder, "a.png: corrupt (of no known format)")

    def test_other_sizes(self, tmp_path):
        data = open_images(write_folder(tmp_path / "f"), size=16)
        assert data.image_shape == (3, 16, 16)
        assert data.images([1]).shape == (1, 3, 16, 16)


def jpeg(path):
    Image.fromarray(COLOUR[0]).save(path)
    return path.read_bytes()


SPOILT = {
    "cut.jpg": lambda path: path.write_bytes(jpeg(path)[:900]),
    "header.jpg": lambda path: path.write_bytes(jpeg(path)[:20]),
    "empty.png": lambda path: path.write_bytes(b""),
    "text.png": lambda path: path.write_text("<html>not found</html>"),
    "cut.png": lambda path: path.write_bytes(
        write_folder(path.parent / "x").joinpath("0.png").read_bytes()[:99]
    ),
    "script.png": lambda path: path.write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n"),
}


class TestCorrupt:
    @pytest.fixture(params=SPOILT)
    def spoilt(self, request, tmp_path):
        folder = write_folder(tmp_path / "f")
        SPOILT[request.param](tmp_path / request.param)
        (tmp_path / request.param).rename(folder / request.param)
        return folder, request.param

    def test_refused_by_name(self, spoilt):
        folder, name = spoilt
        message = refused(folder, f"{folder / name}: corrupt (", "--corrupt skip")
        assert ("the file is empty" in message) == (name == "empty.png")

    def test_skipped_by_name(self, spoilt, caplog):
        folder, name = spoilt
        for _ in range(2):  # packed, then from the cache
            caplog.clear()
            data = open_images(folder, corrupt="skip")
            assert list(data.skipped) == [name]
            assert np.array_equal(data.pixels, COLOUR.transpose(0, 3, 1, 2))
            (record,) = caplog.records
            assert record.getMessage() == f"{folder / name}: corrupt ({data.skipped[name]}), left out"

    def test_refused_after_it_was_skipped(self, spoilt, tmp_path):
        folder, name = spoilt
        open_images(folder, corrupt="skip")
        with pytest.raises(DataError, match=f"{name}: corrupt"):
            open_images(folder)

    def test_many(self, tmp_path, caplog):
        folder = write_folder(tmp_path / "f")
        names = [f"bad{i:02}.jpg" for i in range(30)]
        for name in names:
            (folder / name).write_bytes(b"no")
        data = open_images(folder, corrupt="skip")
        assert list(data.skipped) == names
        assert len(caplog.records) == 21
        assert caplog.messages[-1] == f"{folder}: 30 corrupt files are left out in all"

    def test_all(self, tmp_path):
        (tmp_path / "f").mkdir()
        (tmp_path / "f/a.jpg").write_bytes(b"")
        refused(tmp_path / "f", "each of its 1 files is corrupt", "a.jpg (the file is empty)", corrupt="skip")


def save_npz(path, **arrays):
    np.savez(path, **arrays)
    return path


def save_h5(path, **arrays):
    with h5py.File(path, "w") as file:
        for name, array in arrays.items():
            file[name] = array
    return path


def save_npy(path, **arrays):
    (array,) = arrays.values()
    with open(path, "wb") as file:
        np.save(file, array)
    return path


SAVE = {"npz": save_npz, "h5": save_h5, "npy": save_npy}


class TestArrays:
    @pytest.mark.parametrize("form", SAVE)
    @pytest.mark.parametrize("layout", ["NHWC", "NCHW", "NHW", "NHW1", "N1HW"])
    def test_layouts(self, tmp_path, form, layout):
        expected = GREY[:, None]
        array = {"NHW": GREY, "NHW1": GREY[..., None], "N1HW": expected}.get(layout)
        if array is None:
            expected = COLOUR.transpose(0, 3, 1, 2)
            array = COLOUR if layout == "NHWC" else np.ascontiguousarray(expected)
        data = load(SAVE[form](tmp_path / f"a.{form}", anything=array), progress=False)
        assert np.array_equal(data.pixels, expected)

    @pytest.mark.parametrize("form", SAVE)
    def test_the_dtype_says_what_is_white(self, tmp_path, form):
        save, path = SAVE[form], tmp_path / f"a.{form}"
        for dtype in (np.float32, np.float64, np.float16):
            floats = (GREY / 255).astype(dtype)
            pixels = open_images(save(path, images=floats)).pixels[:, 0].numpy()
            assert np.array_equal(pixels, GREY)
        binary = GREY > 127
        assert np.array_equal(open_images(save(path, images=binary)).pixels[:, 0], binary * np.uint8(255))
        ones = binary.astype(np.float32)
        assert np.array_equal(open_images(save(path, images=ones)).pixels[:, 0], binary * np.uint8(255))

    @pytest.mark.parametrize(
        ("array", "words"),
        [
            ((GREY > 127).astype(np.uint8), ("above 1 of 255", "save them as bool, or times 255")),
            (np.zeros_like(GREY), ("above 0 of 255",)),
            (GREY.astype(np.float32), ("image 0 has the value", "[0, 1]", "uint8 from 0 to 255")),
            (np.where(np.arange(5)[:, None, None] == 3, 1.5, GREY / 255), ("image 3 has the value 1.5",)),
            (GREY / 127.5 - 1, ("has the value -",)),
            (np.where(GREY > 250, np.nan, GREY / 255), ("has the value nan",)),
            (GREY.astype(np.int64), ("images is int64 [5, 64, 64]", "what is white")),
            (GREY.astype(np.uint16), ("images is uint16",)),
            (GREY.astype(np.complex64), ("images is complex64",)),
            (COLOUR[0], ("images is uint8 [64, 64, 3], not images",)),
            (COLOUR[0, 0], ("images is uint8 [64, 3], not images",)),
            (np.zeros((5, 3, 64, 3), np.uint8), ("[5, 3, 64, 3], not images",)),
            (np.zeros((5, 64, 64, 4), np.uint8), ("[5, 64, 64, 4], not images", "1 or 3 channels")),
            (GREY[:0], ("[0, 64, 64], not images",)),
        ],
    )
    @pytest.mark.parametrize("form", ["npz", "h5"])
    def test_what_cannot_be_told_is_refused(self, tmp_path, form, array, words):
        path = SAVE[form](tmp_path / f"a.{form}", images=array)
        refused(path, str(path), *words)

    def test_which_array(self, tmp_path):
        labels = np.zeros((7, 40))
        path = tmp_path / "a.npz"
        for named in (
            {"x": COLOUR, "labels": labels},
            {"imgs": COLOUR, "x_test": GREY, "labels": labels},
            {"images": COLOUR, "masks": COLOUR},
        ):
            assert open_images(save_npz(path, **named)).image_shape == (3, 64, 64)
        refused(
            save_npz(path, x=COLOUR, y=GREY), "more than one array", "x uint8 [7, 64, 64, 3], y uint8 [5,"
        )
        refused(save_npz(path, weights=np.zeros(3)), "no array of images in it, but weights float64 [3];")
        refused(save_npz(path), "no array of images in it, but nothing;")
        refused(save_npz(path, **{f"x{i}": labels for i in range(10)}), "x7 float64 [7, 40] and 2 more;")
        with h5py.File(tmp_path / "a.h5", "w") as file:
            file["deep/down"] = COLOUR
            file["none"] = h5py.Empty("f")
        assert open_images(tmp_path / "a.h5").image_shape == (3, 64, 64)

    def test_resized(self, tmp_path):
        flat = np.arange(0, 250, 50, dtype=np.uint8)[:, None, None].repeat(28, 1).repeat(30, 2)
        data = open_images(save_npz(tmp_path / "a.npz", x=flat))
        assert data.pixels.shape == (5, 1, 64, 64)
        assert (data.pixels[3] == 150).all()
        with pytest.raises(DataError, match=r"a.npz: images of 30 x 28 pixels, smaller than the crop of 29"):
            open_images(tmp_path / "a.npz", crop=29)

    def test_blocks_and_chunks(self, tmp_path, monkeypatch):
        monkeypatch.setattr("pyvae.data.arrays._ROWS", 4)
        with h5py.File(tmp_path / "a.h5", "w") as file:
            file.create_dataset("images", data=COLOUR, chunks=(3, 16, 16, 3), compression=1)
        save_npz(tmp_path / "a.npz", images=COLOUR)
        for name in ("a.h5", "a.npz"):
            assert np.array_equal(open_images(tmp_path / name).pixels, COLOUR.transpose(0, 3, 1, 2))

    @pytest.mark.parametrize("form", SAVE)
    def test_truncated(self, tmp_path, form):
        path = SAVE[form](tmp_path / f"a.{form}", images=COLOUR)
        whole = path.read_bytes()
        for length in (12, 100, len(whole) // 2, len(whole) - 1):
            path.write_bytes(whole[:length])
            refused(path, str(path), "damaged or truncated (")
            with pytest.raises(DataError, match=r"damaged or truncated .*make or download it again"):
                load(path)

    def test_damaged(self, tmp_path):
        path = save_npz(tmp_path / "a.npz", images=COLOUR)
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
        refused(path, "damaged or truncated (Bad CRC-32")
        with h5py.File(tmp_path / "a.h5", "w") as file:
            file.create_dataset("images", data=COLOUR, chunks=(1, 64, 64, 3), compression=1)
            place = file["images"].id.get_chunk_info(3)
        data = bytearray((tmp_path / "a.h5").read_bytes())
        data[place.byte_offset : place.byte_offset + place.size] = bytes(place.size)
        (tmp_path / "a.h5").write_bytes(data)
        refused(tmp_path / "a.h5", "damaged or truncated (")

    def test_nothing_is_unpickled(self, tmp_path):
        class Trap:
            def __reduce__(self):
                return os.mkdir, (str(tmp_path / "unpickled"),)

        objects = np.empty((5, 64, 64), object)
        objects[:] = Trap()
        np.savez(tmp_path / "a.npz", images=objects)
        np.save(tmp_path / "a.npy", objects, allow_pickle=True)
        for name in ("a.npz", "a.npy"):
            refused(tmp_path / name, "is object [5, 64, 64]")
        assert not (tmp_path / "unpickled").exists()
        np.load(tmp_path / "a.npy", allow_pickle=True)
        assert (tmp_path / "unpickled").exists(), "the trap is live"

    @pytest.mark.parametrize("form", ["npy", "npz", "compressed"])
    @pytest.mark.parametrize(
        "array", [GREY, COLOUR, GREY / 255, GREY > 127], ids=["grey", "colour", "floats", "bool"]
    )
    def test_fortran_order(self, tmp_path, monkeypatch, form, array):
        """As numpy saves a transposed array, in one block and in blocks of two rows."""
        save = {
            "compressed": np.savez_compressed,
            "npz": np.savez,
            "npy": lambda path, images: np.save(path, images),
        }
        path = tmp_path / ("a.npy" if form == "npy" else "a.npz")
        save[form](path, images=np.asfortranarray(array))
        expected = open_images(save_npz(tmp_path / "c.npz", images=array)).pixels
        assert np.array_equal(open_images(path).pixels, expected)
        monkeypatch.setattr("pyvae.data.columns.BLOCK", 2 * array[0].nbytes)
        monkeypatch.setattr("pyvae.data.arrays._ROWS", 2)
        assert np.array_equal(open_images(path, channels=3).pixels[:, 0], expected[:, 0])

    @pytest.mark.parametrize("form", ["npy", "npz"])
    def test_fortran_order_cut_short(self, tmp_path, form):
        path = SAVE[form](tmp_path / f"a.{form}", images=np.asfortranarray(GREY))
        whole = bytearray(path.read_bytes())
        if form == "npy":
            path.write_bytes(whole[:-1])
            refused(path, "damaged or truncated (an array ends early)")
        whole[len(whole) // 2] ^= 1
        path.write_bytes(whole)
        if form == "npz":
            refused(path, "damaged or truncated (Bad CRC-32")

    @pytest.mark.parametrize("block", [512, 1024, 8192])
    def test_hdf5_after_a_block_of_somebody_elses(self, tmp_path, block):
        with h5py.File(tmp_path / "a.mat", "w", userblock_size=block) as file:
            file["images"] = COLOUR
        with open(tmp_path / "a.mat", "r+b") as file:
            file.write(b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(124) + b"\0\2IM")
        assert np.array_equal(open_images(tmp_path / "a.mat").pixels, COLOUR.transpose(0, 3, 1, 2))
        (tmp_path / "a.mat").write_bytes(bytes(3 * block))
        refused(tmp_path / "a.mat", "neither a .npz (zip), a .npy nor an HDF5")

    @pytest.mark.parametrize("kind", ["uint8", "double", "logical"])
    @pytest.mark.parametrize("array", [GREY, COLOUR], ids=["grey", "colour"])
    def test_images_of_matlab(self, tmp_path, kind, array):
        """save -v7.3 of A(row, column, [channel,] image): the file has the dimensions in the opposite order."""
        array = array[..., :40, :] if array.ndim == 3 else array[:, :, :40]
        values = {"uint8": array, "double": array / 255, "logical": (array > 127).astype(np.uint8)}[kind]
        matlab = values.transpose(1, 2, 0) if array.ndim == 3 else values.transpose(1, 2, 3, 0)
        with h5py.File(tmp_path / "a.mat", "w", userblock_size=512) as file:
            file["A"] = matlab.T
            file["A"].attrs["MATLAB_class"] = np.bytes_(kind)
        expected = array if kind != "logical" else (array > 127) * np.uint8(255)
        assert np.array_equal(
            open_images(tmp_path / "a.mat").pixels,
            open_images(save_npz(tmp_path / "a.npz", images=expected)).pixels,
        )

    @pytest.mark.parametrize("form", ["npz", "h5"])
    def test_sprites_of_ones_own(self, tmp_path, form, caplog):
        """Made as dSprites is, so that 1 is white, but not the published grid."""
        sprites = (GREY > 127).astype(np.uint8)
        classes = "latents_classes" if form == "npz" else "latents/classes"
        path = SAVE[form](tmp_path / f"a.{form}", imgs=sprites, **{classes: np.zeros((5, 6), np.int64)})
        data = load(path, progress=False)
        assert not isinstance(data, FactorDataset)
        assert np.array_equal(data.pixels[:, 0], sprites * 255)
        assert caplog.messages == [
            f"{path}: made as dSprites is, but of 5 images instead of 737,280, so that it is not known which factors "
            "they have: taken as images without"
        ]
        assert np.array_equal(load(f"{path}:imgs", channels=3, progress=False).pixels[:, 2], sprites * 255)
        SAVE[form](path, imgs=GREY, **{classes: np.zeros((5, 6), np.int64)})
        assert np.array_equal(load(path, progress=False).pixels[:, 0], GREY)
        SAVE[form](path, imgs=np.float64(7), **{classes: np.zeros((5, 6), np.int64)})
        refused(path, "imgs is float64 [], not images")

    def test_shapes_of_ones_own(self, tmp_path, caplog):
        images = np.random.default_rng(1).integers(0, 256, (9, 64, 64, 3), dtype=np.uint8)
        path = save_h5(tmp_path / "a.h5", images=images, labels=np.zeros((9, 6)))
        assert np.array_equal(load(path, progress=False).pixels, images.transpose(0, 3, 1, 2))
        assert "made as 3D Shapes is, but of 9 images instead of 480,000" in caplog.text

    def test_neither(self, tmp_path):
        Image.fromarray(GREY[0]).save(tmp_path / "a.png")
        refused(
            tmp_path / "a.png", "neither a .npz (zip), a .npy nor an HDF5", "the folder of the image files"
        )


class TestLoad:
    def test_which_kind(self, tmp_path, monkeypatch):
        """Published sets keep their own reader; what only looks like them does not."""
        calls = []
        monkeypatch.setattr("pyvae.data.dsprites.DSprites.genuine", lambda *a: calls.append("dsprites"))
        monkeypatch.setattr("pyvae.data.shapes3d.Shapes3D.__init__", lambda *a: calls.append("shapes3d"))
        monkeypatch.setattr("pyvae.data.images.Images.__init__", lambda *a, **k: calls.append("images"))
        classes = np.zeros((5, 6), int)
        monkeypatch.setattr("pyvae.data.dsprites.COUNT", 5)
        monkeypatch.setattr("pyvae.data.shapes3d.COUNT", 7)
        load(save_npz(tmp_path / "a.npz", imgs=GREY, latents_classes=classes))
        load(save_h5(tmp_path / "a.h5", imgs=GREY, **{"latents/classes": classes}))
        load(save_h5(tmp_path / "b.h5", images=COLOUR, labels=np.zeros((7, 6))))
        assert calls == ["dsprites", "dsprites", "shapes3d"]
        load(save_h5(tmp_path / "c.h5", images=COLOUR, labels=np.zeros((7, 40))))
        load(save_h5(tmp_path / "d.h5", images=COLOUR, labels=np.zeros(7)))
        load(save_h5(tmp_path / "e.h5", images=GREY, **{"labels/kind": np.zeros((5, 6))}))
        load(save_h5(tmp_path / "f.h5", imgs=GREY))
        load(save_npz(tmp_path / "f.npz", imgs=GREY))
        load(save_npy(tmp_path / "f.npy", imgs=GREY))
        load(tmp_path)
        assert calls[3:] == ["images"] * 7

    def test_options_reach_the_images(self, tmp_path):
        folder = write_folder(tmp_path / "f")
        (folder / "z.jpg").write_bytes(b"")
        data = load(
            folder, size=32, channels=1, crop=40, corrupt="skip", cache_dir=tmp_path / "c", progress=False
        )
        assert data.image_shape == (1, 32, 32)
        assert list(data.skipped) == ["z.jpg"]
        assert len(list((tmp_path / "c").iterdir())) == 1

    @pytest.mark.parametrize(
        "options", [{"size": 32}, {"channels": 3}, {"crop": 60}, {"corrupt": "skip"}], ids=str
    )
    def test_published_sets_have_no_options(self, options):
        with pytest.raises(DataError, match="images of dSprites are 1 x 64 x 64; leave out"):
            load("dsprites", **options)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"size": 0}, "size must be at least 1, got 0"),
            ({"channels": 2}, "channels must be 1 or 3, got 2"),
            ({"crop": 0}, "crop must be at least 1, got 0"),
            ({"corrupt": "ignore"}, "corrupt must be 'refuse' or 'skip', got 'ignore'"),
        ],
    )
    def test_impossible_options(self, tmp_path, options, message):
        refused(write_folder(tmp_path / "f"), message, **options)


@pytest.fixture
def no_packing(monkeypatch):
    def stop(*_):
        raise AssertionError("packed although there is a cache")

    return lambda: monkeypatch.setattr("pyvae.data.images._pack", stop)


class TestCache:
    def test_packed_once(self, tmp_path, cache_dir, no_packing, caplog):
        folder = write_folder(tmp_path / "f")
        first = open_images(folder)
        no_packing()
        again = open_images(folder)
        assert torch.equal(first.pixels, again.pixels)
        assert first.fingerprint == again.fingerprint
        assert not caplog.records
        (file,) = cache_dir.iterdir()
        with h5py.File(file) as hdf5:  # for others to read
            assert hdf5["images"].dtype == np.uint8
            assert np.array_equal(hdf5["images"], COLOUR.transpose(0, 3, 1, 2))

    def test_the_cache_is_data_too(self, tmp_path, cache_dir):
        first = open_images(write_folder(tmp_path / "f"))
        (file,) = cache_dir.iterdir()
        assert open_images(file).fingerprint == first.fingerprint

    def test_writing_to_the_pixels_leaves_the_file_alone(self, tmp_path, no_packing):
        folder = write_folder(tmp_path / "f")
        open_images(folder).pixels.zero_()
        no_packing()
        assert open_images(folder).pixels.float().mean() > 100

    def test_the_fingerprint_is_that_of_the_pixels(self, tmp_path):
        folder = write_folder(tmp_path / "f")
        first = open_images(folder)
        assert first.fingerprint.startswith("images-7x3x64x64-crc32:")
        others = [
            open_images(write_folder(tmp_path / "g", suffix=".bmp")),
            open_images(save_npz(tmp_path / "a.npz", x=COLOUR)),
            open_images(save_h5(tmp_path / "a.h5", x=COLOUR.transpose(0, 3, 1, 2))),
        ]
        assert {data.fingerprint for data in others} == {first.fingerprint}
        changed = [
            open_images(folder, channels=1),
            open_images(folder, size=32),
            open_images(folder, crop=60),
            open_images(write_folder(tmp_path / "h", COLOUR[::-1])),
            open_images(write_folder(tmp_path / "i", COLOUR[:6])),
        ]
        assert len({first.fingerprint, *(data.fingerprint for data in changed)}) == 6
        assert open_images(folder).fingerprint == first.fingerprint

    def test_changed_files_are_packed_again(self, tmp_path, cache_dir, caplog):
        folder = write_folder(tmp_path / "f")
        first = open_images(folder)
        Image.fromarray(255 - COLOUR[3]).save(folder / "3.png")
        changed = open_images(folder)
        assert (changed.pixels[3] == 255 - first.pixels[3]).all()
        assert "from files that have changed since" in caplog.text
        (folder / "3.png").unlink()
        assert len(open_images(folder)) == 6
        assert len(caplog.records) == 2
        assert len(list(cache_dir.iterdir())) == 1
        path = save_npz(tmp_path / "a.npz", x=COLOUR)
        assert len(open_images(path)) == 7
        save_npz(path, x=COLOUR[:4])
        assert len(open_images(path)) == 4

    @pytest.mark.parametrize("damage", ["empty", "half", "cut", "pixel", "header", "foreign", "text"])
    def test_damaged_cache_is_packed_again(self, tmp_path, cache_dir, caplog, damage):
        folder = write_folder(tmp_path / "f")
        open_images(folder)
        (file,) = cache_dir.iterdir()
        data = bytearray(file.read_bytes())
        with h5py.File(file) as hdf5:
            offset = hdf5["images"].id.get_offset()
        if damage == "pixel":
            data[offset + 70_000] ^= 1
        elif damage == "header":
            data[8:offset] = bytes(offset - 8)
        cuts = {"empty": data[:0], "half": data[: len(data) // 2], "cut": data[:-1], "text": b"hello"}
        file.write_bytes(cuts.get(damage, data))
        if damage == "foreign":
            save_h5(file, images=COLOUR)
        assert np.array_equal(open_images(folder).pixels, COLOUR.transpose(0, 3, 1, 2))
        (record,) = caplog.records
        assert record.getMessage().startswith(f"rebuilding the cache file {file}: it ")
        assert "\n" not in record.getMessage()

    @pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
    def test_interrupted_packing_leaves_nothing(self, tmp_path, cache_dir, monkeypatch, error):
        folder = write_folder(tmp_path / "f")
        whole = Folder.read

        def interrupted(self, how):
            for number, image in enumerate(whole(self, how)):
                if number == 4:
                    raise error
                yield image

        with monkeypatch.context() as patch:
            patch.setattr(Folder, "read", interrupted)
            with pytest.raises(error):
                open_images(folder)
        assert not list(cache_dir.iterdir())
        assert len(open_images(folder)) == 7

    def test_a_packing_that_is_killed_leaves_nothing(self, tmp_path, cache_dir):
        folder = write_folder(tmp_path / "f", COLOUR.repeat(30, 0))
        script = """
            import sys, time
            from pyvae.data import folder
            from pyvae.data.images import Images
            fit = folder.fit
            def slow(*arguments):
                time.sleep(0.02)
                return fit(*arguments)
            folder.fit = slow
            print("packing", flush=True)
            Images(sys.argv[1])
        """
        command = [sys.executable, "-c", textwrap.dedent(script), str(folder)]
        root = Path(__file__).resolve().parents[1]
        with subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            process.stdout.readline()
            deadline = time.monotonic() + 60
            while not cache_dir.exists() and time.monotonic() < deadline:
                time.sleep(0.01)
            time.sleep(0.2)
            process.send_signal(signal.SIGKILL)
            assert b"packing" in process.stderr.read()
        assert not list(cache_dir.iterdir())
        assert len(open_images(folder)) == 210

    @pytest.mark.parametrize("call", ["fsync", "replace"])
    def test_disk_full(self, tmp_path, monkeypatch, call):
        def full(*_):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(os, call, full)
        refused(write_folder(tmp_path / "f"), "cannot write the cache file", "No space left", "PYVAE_CACHE")

    @pytest.mark.parametrize("room", [1, 5, 7.05])
    def test_file_size_limit(self, tmp_path, room):
        folder = write_folder(tmp_path / "f")
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(room * COLOUR[0].nbytes), limits[1]))
        try:
            refused(folder, "cannot write the cache file", "File too large", "PYVAE_CACHE")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    def test_progress_goes_to_stderr(self, tmp_path, capsys):
        folder = write_folder(tmp_path / "f")
        Images(folder)
        out, err = capsys.readouterr()
        assert out == ""
        assert "packing f" in err
        assert "7/7" in err
        Images(folder)
        assert capsys.readouterr().err == ""

    def test_pickled(self, tmp_path):
        data = open_images(write_folder(tmp_path / "f"))
        copy = pickle.loads(pickle.dumps(data))
        assert torch.equal(copy.images([5, 1]), data.images([5, 1]))


RECIPE = Recipe(architecture="kim", batch_size=4, steps=3, latents=3)


def trained(path, images, **changes):
    run = RunDirectory.create_or_resume(path, replace(RECIPE, **changes))
    train(run, images, torch.device("cpu"), log_every=1)
    return run


class TestRuns:
    @pytest.mark.parametrize("channels", [1, 3])
    def test_training_report_and_traversals(self, tmp_path, channels):
        data = open_images(write_folder(tmp_path / "f"), channels=channels)
        run = trained(tmp_path / "run", data, data="photographs")
        assert run.load_net()[0].encoder.trunk[0].in_channels == channels
        page = report(run, data).read_text()
        metrics = json.loads((run.path / "metrics.json").read_text())
        assert (metrics["factors"], metrics["eta_squared"]) == ([], None)
        assert metrics["images"] == 7
        assert f"3 steps on {data.fingerprint}" in page
        assert "The factors of these images are not known" in page
        assert "&eta;" not in page
        seeds = [p.name for p in traverse(run, data)]
        assert seeds == [f"traversal-{i}.{form}" for i in (1, 3, 5) for form in ("png", "gif")]
        with Image.open(run.figures / "traversal-3.gif") as picture:
            colours = np.asarray(picture.convert("RGB")).astype(int)
        assert (np.ptp(colours, axis=2) > 0).any() == (channels == 3)

    def test_scores_that_need_factors_say_so(self, tmp_path):
        data = open_images(write_folder(tmp_path / "f"))
        run = trained(tmp_path / "run", data, data="photographs")
        with pytest.raises(PyvaeError, match="mig, irs: the factors of photographs are not known"):
            score(run, data, ["mig", "irs"], device=torch.device("cpu"))
        scores = score(run, data, ["unsupervised"], device=torch.device("cpu"))
        with pytest.raises(PyvaeError, match="irs: the factors of photographs are not known"):
            score(run, data, ["irs", "unsupervised"], device=torch.device("cpu"))
        assert read_scores(run, 3, data) == scores
        table = encode(run.load_net()[0], data, device="cpu", progress=False)
        assert scores["unsupervised"] == pytest.approx(unsupervised(table, points=None)._asdict())
        assert (table.factor_names, table.factor_sizes, table.factors) == ((), (), None)
        assert len(encode(run.load_net()[0], data, device="cpu", index=[2, 5], progress=False)) == 2

    def test_other_pixels_are_not_gone_on_with(self, tmp_path):
        folder = write_folder(tmp_path / "f")
        trained(tmp_path / "run", open_images(folder))
        trained(tmp_path / "run", open_images(write_folder(tmp_path / "copy")), steps=4)
        Image.fromarray(255 - COLOUR[3]).save(folder / "3.png")
        with pytest.raises(
            RunError, match=r"was trained on images-7x3x64x64-crc32:\w+, but the data now is images-7x3"
        ):
            trained(tmp_path / "run", open_images(folder), steps=5)


def test_a_zip_of_something_else(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("0.png", b"x")
    refused(tmp_path / "a.zip", "no array of images in it, but nothing;")


def test_log_level(tmp_path, caplog):
    (write_folder(tmp_path / "f") / "z.png").write_bytes(b"")
    open_images(tmp_path / "f", corrupt="skip")
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
