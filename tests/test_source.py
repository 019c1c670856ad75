"""Code of a user's own: by file, by package, by object; what it was is known by its text."""

import hashlib
import linecache
import math
import os
import pickle
import subprocess
import sys
from dataclasses import is_dataclass, replace
from typing import get_type_hints

import pytest

from pyvae.base.source import is_spec, keep, loading, recorded, short, source_of
from pyvae.errors import SourceError

CODE = """
from __future__ import annotations

from dataclasses import dataclass

from neighbour import WORD

@dataclass(frozen=True)
class Mine:
    width: int = 3

def build():
    return WORD, __name__

number = 7
"""


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    # another test's neighbour is not this one's
    monkeypatch.delitem(sys.modules, "neighbour", raising=False)
    (tmp_path / "neighbour.py").write_text("WORD = 'beside'\n")
    path = tmp_path / "mine.py"
    path.write_text(CODE)
    return path


def test_a_file_is_loaded_once_for_each_text(file):
    build = source_of("mine.py:build")
    assert (build.file, build.name, str(build)) == ("mine.py", "build", "mine.py:build")
    assert build.spec == f"{file}:build"
    assert build.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
    assert build.object()[0] == "beside"
    assert str(file.parent) not in sys.path
    mine = source_of(f"{file}:Mine").object
    assert mine is source_of("mine.py:Mine").object
    assert is_dataclass(mine)
    assert get_type_hints(mine) == {"width": int}  # which looks the module up
    file.write_text(CODE.replace("= 3", "= 4"))
    changed = source_of("mine.py:Mine")
    assert changed != build
    assert changed.object().width == 4
    assert mine().width == 3
    file.write_text(CODE)
    assert source_of("mine.py:Mine").object is mine
    # wherever it lies
    other = file.parent / "other" / "mine.py"
    other.parent.mkdir()
    other.write_text(CODE)
    assert source_of(str(other) + ":build") == build
    assert source_of("mine.py:build", other.parent).path == str(other)


def test_what_was_recorded_is_found_by_its_text(file, tmp_path):
    source = source_of("mine.py:Mine")
    kept = tmp_path / "run" / "source"
    kept.mkdir(parents=True)
    ((copy, content),) = keep([source, source], kept)
    assert (copy, content) == (kept / "mine.py", file.read_bytes())
    copy.write_bytes(content)
    assert list(keep([source], kept)) == []
    assert recorded(source.spec, source.sha256, kept).path == str(file)
    file.write_text(CODE + "# edited\n")
    again = recorded(source.spec, source.sha256, kept)
    assert (again, again.path) == (source, str(copy))
    # another file of that name stands beside it
    ((beside, _),) = keep([source_of("mine.py:Mine")], kept)
    assert beside.name == f"mine-{source_of('mine.py:Mine').sha256[:8]}.py"
    copy.unlink()
    with pytest.raises(SourceError, match=rf"mine.py:Mine is not what it was any more .*{kept}: put it back"):
        recorded(source.spec, source.sha256, kept)


def test_a_copy_loads_where_its_neighbours_are(file, tmp_path):
    source = source_of("mine.py:build")
    copy = tmp_path / "elsewhere" / "mine.py"
    copy.parent.mkdir()
    text = CODE + "# as it was\n"
    copy.write_text(text)
    was = recorded(source.spec, hashlib.sha256(text.encode()).hexdigest(), copy.parent)
    assert was.path == str(copy)
    assert was.object()[0] == "beside"


def test_a_module_of_a_package(tmp_path, monkeypatch):
    package = tmp_path / "own_package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "words.py").write_text("WORD = 'inside'\n")
    nets = package / "nets.py"
    nets.write_text("from .words import WORD\n\ndef build():\n    return WORD\n")
    monkeypatch.syspath_prepend(tmp_path)
    source = source_of("own_package.nets:build")
    assert (source.file, source.spec) == ("nets.py", "own_package.nets:build")
    assert source.object is sys.modules["own_package.nets"].build
    assert source_of(source.object) == source
    # what it was once still imports what is beside it
    was = nets.read_bytes()
    kept = tmp_path / "kept"
    kept.mkdir()
    old = was.replace(b"return WORD", b"return WORD.upper()")
    (kept / "nets.py").write_bytes(old)
    assert recorded(source.spec, hashlib.sha256(old).hexdigest(), kept).object() == "INSIDE"


def test_files_of_two_folders_have_their_own_neighbours(tmp_path):
    for word in ("one", "two"):
        (tmp_path / word / "around").mkdir(parents=True)
        (tmp_path / word / "around" / "__init__.py").write_text("")
        (tmp_path / word / "around" / "words.py").write_text(f"WORD = {word!r}\n")
        (tmp_path / word / "code.py").write_text(
            f"# {word}\nfrom around.words import WORD\ndef build(): return WORD"
        )
    found = [source_of(f"{tmp_path}/{word}/code.py:build").object() for word in ("one", "two")]
    assert found == ["one", "two"]


def test_a_file_that_goes_elsewhere_leaves_the_process_where_it_was(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "code.py").write_text("import os\nos.chdir('/')\ndef build(): pass\n")
    source_of("code.py:build")
    assert os.getcwd() == str(tmp_path)


def test_what_a_text_does_not_say_is_kept_or_refused():
    def made(width):
        def build():
            return width

        class Mine:
            def terms(self):
                return width

        def other():
            return math.pi, is_dataclass

        return build, Mine, other

    for three, four, again, other in zip(made(3), made(4), made(3), made(object()), strict=True):
        kept = source_of(three)
        assert kept.object is three
        if three.__name__ == "other":
            assert source_of(other) == kept
            continue
        assert kept == source_of(again) != source_of(four)
        with pytest.raises(SourceError, match=r"takes width from the function around it, .* of type object"):
            source_of(other)


def test_an_object_of_a_notebook_is_known_by_its_own_text(monkeypatch):
    cell = (
        "import os\n\ndef other(): pass\n\ndef build(a,\n          b=1):\n    return a + b\n\nx = build(1)\n"
    )
    monkeypatch.setitem(linecache.cache, "<cell 1>", (len(cell), None, cell.splitlines(True), "<cell 1>"))
    space = {"__name__": "__main__"}
    exec(compile(cell, "<cell 1>", "exec"), space)
    source = source_of(space["build"])
    assert source.content == b"def build(a,\n          b=1):\n    return a + b\n"
    assert (source.alone, source.spec, str(source)) == (True, "__main__:build", "build.py:build")
    assert recorded(source.spec, source.sha256, None).object is space["build"]
    # in another process it has to be given again
    elsewhere = replace(
        source, sha256=hashlib.sha256(b"").hexdigest(), content=b"", path="runs/x/source/build.py"
    )
    with pytest.raises(SourceError, match=r"runs/x/source/build.py: give it again, as pyvae.open\("):
        _ = elsewhere.object


def test_an_object_of_the_script_that_runs_is_known_by_its_text_and_kept_with_the_script(
    tmp_path, monkeypatch
):
    script = tmp_path / "train.py"
    script.write_text(
        "from math import pi\n"
        "def build():\n    return pi\n"
        "if __name__ == '__main__':\n"
        "    from pyvae.base.source import source_of\n"
        "    import pickle, sys\n"
        "    sys.stdout.buffer.write(pickle.dumps(source_of(build)))\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True)
    source = pickle.loads(done.stdout)
    assert (source.spec, source.file, source.content) == ("__main__:build", "build.py", script.read_bytes())
    assert source.sha256 == hashlib.sha256(b"def build():\n    return pi\n").hexdigest()
    assert source.object() == math.pi
    # other lines of it may change, its own may not
    kept = tmp_path / "source"
    kept.mkdir()
    copy = kept / "build.py"
    copy.write_text(script.read_text() + "print(1)\n")
    assert recorded(source.spec, source.sha256, kept) == source
    assert recorded(source.spec, source.sha256, kept).content == copy.read_bytes()
    copy.write_text(script.read_text().replace("return pi", "return -pi"))
    monkeypatch.setattr("pyvae.base.source._objects", {})
    with pytest.raises(SourceError, match="__main__:build is not what it was any more"):
        recorded(source.spec, source.sha256, kept)


def test_a_local_class_is_known_by_its_own_text():
    class Inner:
        def terms(self):
            return 1

    assert source_of(Inner).content.decode() == "class Inner:\n    def terms(self):\n        return 1\n"


def test_a_source_can_be_sent_to_another_process(file):
    source = source_of("mine.py:Mine")
    file.unlink()
    sent = pickle.loads(pickle.dumps(source))
    assert (sent, sent.object) == (source, source.object)
    assert sent.content == source.content


def test_files_know_that_they_are_loaded(file):
    file.write_text("from pyvae.base.source import loading\nseen = [loading()]\ndef build(): return seen\n")
    assert source_of("mine.py:build").object() == ["mine.py"]
    assert loading() is None


def test_specs():
    assert [is_spec(text) for text in ("mine.py:build", "a.b:c", "burgess", ":x", "x:")] == [
        True,
        True,
        *[False] * 3,
    ]
    assert short("/a/b/mine.py:build") == short("package.mine:build") == "mine.py:build"
    assert short("__main__:build") == "build.py:build"


@pytest.mark.parametrize(
    ("code", "spec", "message"),
    [
        (CODE, "mine.py:missing", "mine.py has no missing: it has Mine, build"),
        (CODE, "mine.py:number", "mine.py:number is int 7, which is no function or class"),
        (
            CODE,
            "none.py:build",
            "none.py cannot be read (No such file or directory); give the path of a Python file",
        ),
        (
            CODE,
            "folder.py:build",
            "folder.py cannot be read (a directory, not a regular file); give the path",
        ),
        (CODE, "mine.py:a b", "mine.py:a b: give a file and a name in it, as my_code.py:name"),
        (CODE, "mine:build", None),
        (
            CODE,
            "no_such.thing:build",
            "no_such.thing:build: there is no module no_such here; of a file give the path",
        ),
        ("def f(:\n", "mine.py:f", "mine.py, line 1: SyntaxError: invalid syntax"),
        ("\n\n1 / 0\n", "mine.py:f", "mine.py, line 3: ZeroDivisionError: division by zero"),
        ("import sys\nsys.exit(3)\n", "mine.py:f", "mine.py, line 2: SystemExit: 3"),
        (
            "import no_such_thing\n",
            "mine.py:f",
            "mine.py, line 1: ModuleNotFoundError: No module named 'no_such_thing'",
        ),
        ("raise ValueError('one\\ntwo')\n", "mine.py:f", "mine.py, line 1: ValueError: one"),
    ],
)
def test_what_is_wrong_is_one_line(file, code, spec, message, monkeypatch):
    (file.parent / "folder.py").mkdir()
    file.write_text(code)
    if message is None:  # the folder is no place for modules, unless Python looks there
        monkeypatch.setattr(sys, "path", [p for p in sys.path if p not in ("", str(file.parent))])
        message = "mine:build: there is no module mine here; of a file give the path, mine.py:build"
    with pytest.raises(SourceError) as caught:
        source_of(spec)
    assert str(caught.value).startswith(message)
    assert str(caught.value).isprintable()


def test_what_has_no_source_is_refused():
    space = {"__name__": "__main__"}
    exec("def typed(): pass", space)
    for value, message in (
        (lambda: 1, "a lambda has no name"),
        (
            space["typed"],
            "the source of typed cannot be found, as of what is typed at a prompt: write it into a file",
        ),
        (len, "is no function or class of which the source could be kept"),
        (print, "is no function or class"),
        (3, "int 3 is no function or class"),
        (type("Empty", (), {"__module__": "__main__"}), "Empty has no method of its own"),
    ):
        with pytest.raises(SourceError, match=message.replace("(", r"\(")):
            source_of(value)
