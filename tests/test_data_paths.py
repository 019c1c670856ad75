"""Names of data as they may be typed, and what lies at them: refused by one line, and at once."""

import os
import socket
import threading
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image

from pyvae.data import load
from pyvae.data.dsprites import DSprites
from pyvae.data.images import Images
from pyvae.data.mnist import test_file as file_of_test_images
from pyvae.data.shapes3d import Shapes3D
from pyvae.errors import DataError

IMAGES = np.random.default_rng(0).integers(0, 256, (9, 64, 64), dtype=np.uint8)
OTHERS = np.random.default_rng(1).integers(0, 256, (3, 64, 64), dtype=np.uint8)


@pytest.fixture(autouse=True)
def cache_dir(tmp_path, monkeypatch):
    monkeypatch.setenv("PYVAE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def refused(path, open_=load, **options):
    """What is said, within seconds."""
    said = []

    def run():
        try:
            open_(path, **options)
        except DataError as error:
            said.append(str(error))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(20)
    assert not thread.is_alive(), "hangs"
    assert said, "not refused"
    assert said[0].isprintable()
    return said[0]


def pipe(path):
    os.mkfifo(path)


def server(path):
    socket.socket(socket.AF_UNIX).bind(str(path))


SPECIAL = {
    "a named pipe": pipe,
    "a character device": lambda path: path.symlink_to("/dev/zero"),
    "a socket": server,
}


class TestSpecialFiles:
    @pytest.mark.parametrize("kind", SPECIAL)
    @pytest.mark.parametrize("open_", [load, Images, DSprites.genuine, Shapes3D])
    def test_as_data(self, tmp_path, monkeypatch, kind, open_):
        monkeypatch.chdir(tmp_path)
        SPECIAL[kind](Path("a.npz"))
        said = refused("a.npz", open_)
        assert f"cannot be opened ({kind}, not a regular file)" in said or kind == "a socket"

    @pytest.mark.parametrize("kind", SPECIAL)
    @pytest.mark.parametrize("corrupt", ["refuse", "skip"])
    def test_in_a_folder_they_are_no_image_files(self, tmp_path, monkeypatch, kind, corrupt):
        monkeypatch.chdir(tmp_path)
        os.mkdir("f")
        Image.fromarray(IMAGES[0]).save("f/b.png")
        SPECIAL[kind](Path("f/a.png"))
        SPECIAL[kind](Path("f/train-images-idx3-ubyte"))
        assert len(load("f", corrupt=corrupt, progress=False)) == 1

    def test_in_place_of_the_cache_file(self, tmp_path, cache_dir):
        np.save(tmp_path / "a.npy", IMAGES)
        load(tmp_path / "a.npy", progress=False)
        (file,) = cache_dir.iterdir()
        file.unlink()
        pipe(file)
        assert "a named pipe, not a regular file" in refused(tmp_path / "a.npy", progress=False)

    def test_that_come_after_the_folder_was_read(self, tmp_path, monkeypatch):
        from pyvae.data.folder import Folder

        (tmp_path / "f").mkdir()
        Image.fromarray(IMAGES[0]).save(tmp_path / "f/a.png")
        read = Folder.read

        def replaced(self, how):
            (tmp_path / "f/a.png").unlink()
            pipe(tmp_path / "f/a.png")
            return read(self, how)

        monkeypatch.setattr(Folder, "read", replaced)
        assert "a.png: cannot be read (a named pipe" in refused(tmp_path / "f", channels=1, progress=False)

    @pytest.mark.parametrize("how", ["external", "virtual", "link"])
    @pytest.mark.parametrize("names", [("images",), ("imgs", "latents/classes"), ("images", "labels")])
    def test_that_an_hdf5_file_names(self, tmp_path, how, names):
        """Other files are not looked into: a pipe would be waited for, and a change of theirs would not be seen."""
        pipe(tmp_path / "pipe")
        shapes = {"labels": (9, 6), "latents/classes": (9, 6)}
        with h5py.File(tmp_path / "a.h5", "w") as file:
            for name in names:
                shape = (9, 64, 64, 3) if "labels" in names else (9, 64, 64)
                shape = shapes.get(name, shape)
                if how == "external":
                    file.create_dataset(name, shape, "u1", external=[(str(tmp_path / "pipe"), 0, 10**6)])
                elif how == "link":
                    file[name] = h5py.ExternalLink(str(tmp_path / "pipe"), "/x")
                else:
                    layout = h5py.VirtualLayout(shape, "u1")
                    layout[:] = h5py.VirtualSource(str(tmp_path / "pipe"), "x", shape)
                    file.create_virtual_dataset(name, layout)
        said = refused(tmp_path / "a.h5", progress=False)
        assert ("values in other files" in said) if how != "link" else ("no array of images" in said)


LONG = "n" * 256
NAMES = {
    "of nobody": ("~nobody-at-all/x", "there is no such user here; write the path out"),
    "too long": (LONG, "cannot be opened (File name too long); check the path"),
    "too long, with an array": (f"{LONG}:x", "cannot be opened (File name too long); check the path"),
    "with a NUL": ("a\0b", "no file can have this name (it has a NUL"),
    "that is no text": (os.fsdecode(b"a\xff.npz"), r"a\udcff.npz: neither a known name nor a file"),
    "that has no bytes": ("a\ud800", "no file can have this name"),
    "of two lines": ("a\nb", r"a\nb: neither a known name nor a file"),
    "in a file": ("file/x", "file/x: neither a known name nor a file"),
    "in a loop of links": ("loop", "loop: cannot be opened (Too many levels of symbolic links)"),
    "of nothing": ("nothing:x", "nothing:x: neither a known name nor a file"),
    "of a folder with an array": ("folder:x", "folder:x: neither a known name nor a file"),
    "of a link to nothing": ("dangling", "dangling: neither a known name nor a file"),
}


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    Path("folder").mkdir()
    Path("loop").symlink_to("loop")
    Path("dangling").symlink_to("nowhere")


@pytest.mark.parametrize("name", NAMES)
def test_names(here, name):
    path, words = NAMES[name]
    assert words in refused(path)
    assert file_of_test_images(Path(path)) is None
    for open_ in (Images, Shapes3D, DSprites.genuine):
        refused(path, open_)


@pytest.mark.parametrize("name", ["of nobody", "too long", "with a NUL", "of two lines", "in a file"])
def test_names_of_the_cache(here, name, monkeypatch):
    path = NAMES[name][0]
    np.save("a.npy", IMAGES)
    if name == "of two lines":
        assert len(load("a.npy", cache_dir=path, progress=False)) == 9
        return
    refused("a.npy", cache_dir=path, progress=False)
    if name != "with a NUL":  # which no variable can have
        monkeypatch.setenv("PYVAE_CACHE", path)
        refused("a.npy", progress=False)


@pytest.mark.parametrize("name", ["a\nb", os.fsdecode(b"a\xff"), "a:b", "~a", "a\x1b[31m"])
@pytest.mark.parametrize("form", ["file", "folder", "file in folder"])
def test_strange_names_of_what_is_there(here, name, form, capsys, caplog):
    if form == "file":
        with open(name, "wb") as file:
            np.save(file, IMAGES)
        assert len(load(f"./{name}")) == 9
        with open(name, "wb") as file:
            file.write(b"other")
    else:
        folder = Path(name if form == "folder" else "f")
        folder.mkdir()
        picture = folder / (f"{name}.png" if form == "file in folder" else "a.png")
        with open(picture, "wb") as file:
            Image.fromarray(IMAGES[0]).save(file, "PNG")
        assert len(load(f"./{folder}")) == 1
        with open(folder / "b.png", "wb") as file:
            Image.fromarray(IMAGES[1]).save(file, "PNG")
        picture.write_bytes(b"other")
        assert len(load(f"./{folder}", corrupt="skip")) == 1
    refused(f"./{name}" if form != "file in folder" else "f")
    assert all(message.isprintable() for message in caplog.messages)
    assert all(line.isprintable() for line in capsys.readouterr().err.replace("\r", "\n").splitlines())


@pytest.fixture
def somebody_else():
    """Root may read everything."""
    if os.geteuid() == 0:
        os.seteuid(65534)
    yield
    os.seteuid(os.getuid())


def test_what_one_may_not_read(tmp_path, request, monkeypatch):
    for parent in tmp_path.parents:  # as many as pytest, or a worker of it, has made
        if "pytest" in parent.name or "popen" in parent.name:
            os.chmod(parent, 0o755)
    (tmp_path / "f/closed").mkdir(parents=True)
    (tmp_path / "cache").mkdir()
    np.save(tmp_path / "f/a.npy", IMAGES)
    for name in ("a", "b"):
        Image.fromarray(IMAGES[0]).save(tmp_path / f"f/{name}.png")
    Image.fromarray(IMAGES[0]).save(tmp_path / "f/closed/c.png")
    for path in (tmp_path, tmp_path / "cache"):
        path.chmod(0o777)
    for name in ("a.npy", "a.png"):
        (tmp_path / "f" / name).chmod(0)
    request.getfixturevalue("somebody_else")
    assert "a.npy: cannot be opened (Permission denied)" in refused(tmp_path / "f/a.npy")
    assert "a.png: cannot be read (Permission denied); remove" in refused(tmp_path / "f", progress=False)
    data = load(tmp_path / "f", corrupt="skip", progress=False)
    assert data.skipped == {"a.png": "cannot be read (Permission denied)"}
    os.seteuid(os.getuid())
    (tmp_path / "f/closed").chmod(0)
    os.seteuid(65534 if os.getuid() == 0 else os.getuid())
    for corrupt in ("refuse", "skip"):
        said = refused(tmp_path / "f", corrupt=corrupt, progress=False)
        assert "f/closed: cannot be read (Permission denied); check it" in said
    assert "Permission denied" in refused(tmp_path / "f/closed/c.npy")
    os.seteuid(os.getuid())
    (tmp_path / "f/closed").chmod(0o700)


class TestBrokenLinks:
    @pytest.mark.parametrize("link", ["nowhere", "/nowhere/a.png", "broken.png", "b.png/x.png"])
    def test_a_link_that_leads_nowhere(self, tmp_path, link, caplog):
        folder = tmp_path / "f"
        folder.mkdir()
        for name in ("b", "c"):
            Image.fromarray(IMAGES[0]).save(folder / f"{name}.png")
        (folder / "broken.png").symlink_to(link)
        assert "broken.png: cannot be read (" in refused(folder, progress=False)
        for _ in range(2):  # packed, and from the cache
            caplog.clear()
            data = load(folder, corrupt="skip", progress=False)
            assert len(data) == 2
            assert list(data.skipped) == ["broken.png"]
            assert data.skipped["broken.png"].startswith("cannot be read (")
            (message,) = caplog.messages
            assert message == f"{folder}/broken.png: {data.skipped['broken.png']}, left out"
        assert "--corrupt skip" in refused(folder, progress=False)
        (folder / "broken.png").unlink()
        Image.fromarray(IMAGES[0]).save(folder / "broken.png")
        assert len(load(folder, progress=False)) == 3

    def test_a_disk_that_fails_is_not_skipped(self, tmp_path, monkeypatch):
        (tmp_path / "f").mkdir()
        Image.fromarray(IMAGES[0]).save(tmp_path / "f/a.png")

        def fail(path):
            raise OSError(5, os.strerror(5), path)

        monkeypatch.setattr("pyvae.data.folder.open_regular", fail)
        said = refused(tmp_path / "f", corrupt="skip", progress=False)
        assert "a.png: cannot be read (Input/output error); check the file" in said


class TestNamedArrays:
    @pytest.fixture(autouse=True)
    def files(self, here):
        np.savez("a.npz", x_train=IMAGES, y_train=np.arange(9), x_test=OTHERS)
        with h5py.File("a.h5", "w") as file:
            file["train/images"], file["test/images"], file["train:more"] = IMAGES, OTHERS, IMAGES[:2]
        np.save("a.npy", IMAGES)

    @pytest.mark.parametrize(
        ("name", "expected"),
        [
            ("a.npz:x_train", IMAGES),
            ("a.npz:x_test", OTHERS),
            ("a.h5:train/images", IMAGES),
            ("a.h5:/test/images", OTHERS),
            ("a.h5:train:more", IMAGES[:2]),
            ("a.npy:a.npy", IMAGES),
        ],
    )
    def test_each_is_found_and_kept_apart(self, name, expected):
        for _ in range(2):
            assert np.array_equal(load(name, progress=False).pixels[:, 0], expected)
            assert np.array_equal(load(Path(name).absolute(), progress=False).pixels[:, 0], expected)

    def test_a_file_of_that_name_comes_first(self):
        np.savez("b.npz", images=IMAGES[:4])
        os.rename("b.npz", "a.npz:x_train")
        assert len(load("a.npz:x_train", progress=False)) == 4
        assert len(load("a.npz:x_train:images", progress=False)) == 4

    @pytest.mark.parametrize(
        ("name", "words"),
        [
            ("a.npz", "a.npz: more than one array of images in it, x_train uint8 [9, 64, 64], y_train"),
            ("a.npz", "name the one that is meant, such as {here}/a.npz:x_train"),
            ("a.h5", "name the one that is meant, such as {here}/a.h5:train/images"),
            (
                "a.npz:nothing",
                "no array 'nothing' in it, but x_train uint8 [9, 64, 64], y_train int64 [9], x_test",
            ),
            ("a.npz:nothing", "write {here}/a.npz:NAME with one of their names"),
            ("a.npz:", "no array '' in it, but x_train"),
            ("a.npz:y_train", "y_train is int64 [9], not images"),
            ("a.npy:images", "no array 'images' in it, but a.npy uint8"),
        ],
    )
    def test_the_others_are_listed(self, tmp_path, name, words):
        assert words.format(here=tmp_path) in refused(name, progress=False)
