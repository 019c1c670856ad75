"""Code of a user's own: a function or a class that a file, a package or a notebook holds, by name and by text."""

import contextlib
import hashlib
import importlib
import importlib.util
import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn

from pyvae.base.source_text import code_of, read_source, seen_by, text_at_top, text_of
from pyvae.errors import PyvaeError, SourceError, reason

_MAIN = "__main__"
_loading = ContextVar[str | None]("_loading", default=None)
# one object for each text in a process, so that a class that is loaded twice is one class
_modules: dict[tuple[str, str], ModuleType] = {}
_objects: dict[tuple[str, str, str], Any] = {}
_given: WeakKeyDictionary[Any, "Source"] = WeakKeyDictionary()
# modules that files of users have imported from their own folders, and those
_neighbours: dict[str, str] = {}


@dataclass(frozen=True)
class Source:
    """What ``"my_nets.py:build"`` or ``"package.module:build"`` names, or a function or class that is given in Python.

    Two are equal if their file's name, the name in it and its text are, wherever the file lies.
    """

    file: str
    """Name of the file, without its folder."""
    name: str
    """Of the function or class in it."""
    sha256: str
    """Of the file's bytes; of the text of the object alone where a notebook or the script that runs has it."""
    spec: str = field(compare=False, repr=False)
    """As a recipe keeps it: with the whole path of the file."""
    content: bytes = field(compare=False, repr=False)
    path: str = field(compare=False, repr=False)
    """Where the content was read."""

    def __str__(self) -> str:
        return f"{self.file}:{self.name}"

    @property
    def alone(self) -> bool:
        """Whether it is known by the text of the object alone: in a script or a notebook, other lines may change. The
        content is the script, or where there is none that text, which does not load by itself."""
        return self.spec.startswith(f"{_MAIN}:")

    @property
    def object(self) -> Any:
        """The function or class; its file is loaded once in a process.

        Raises:
            SourceError: the file cannot be loaded, or has no such name; one line says why.
        """
        key = (self.file, self.name, self.sha256)
        if key not in _objects:
            if self.alone and self.sha256 == _hash(self.content):
                raise SourceError(
                    f"{self.name} was given in Python, and its own text, which does not load by itself, is in "
                    f"{self.path}: give it again, as pyvae.open(..., objective={self.name}), or architecture="
                )
            _objects[key] = _named(_module_of(self), self)
        return _objects[key]


def source_of(value: object, base: Path | None = None) -> Source:
    """The source of ``"FILE.py:NAME"`` or ``"package.module:NAME"``, or of a function or class.

    Args:
        value: one of those.
        base: folder that a file's path is relative to; default: where the process is.

    Raises:
        SourceError: there is none; one line says why, and what to give.
    """
    if isinstance(value, Source):
        return value
    if isinstance(value, str):
        return _of_spec(value, base)
    return _of_object(value)


def is_spec(text: str) -> bool:
    """Whether a text could name code, and no table's entry."""
    where, colon, name = text.rpartition(":")
    return bool(where and colon and name)


def short(spec: str) -> str:
    """A spec without the folder of its file, as a :class:`Source` is written."""
    where, _, name = spec.rpartition(":")
    return f"{_file_of(where, name)}:{name}"


def recorded(spec: str, sha256: str, kept: Path | None) -> Source:
    """The source that a recipe was trained with: from its file if that is still what it was, else from a copy of it.

    Args:
        spec: as :attr:`Source.spec`.
        sha256: of the content.
        kept: folder of copies, that of a run; None where there is none.

    Raises:
        SourceError: neither is there.
    """
    where, _, name = spec.rpartition(":")
    file = _file_of(where, name)
    for path in _places(where, kept):
        with contextlib.suppress(OSError, ValueError):
            content = read_source(path)
            text = text_at_top(content, name) if where == _MAIN else None
            if sha256 in (_hash(content), text is not None and _hash(text.encode())):
                return Source(file, name, sha256, spec, content, str(path))
    if where == _MAIN and (file, name, sha256) in _objects:
        return Source(file, name, sha256, spec, b"", "")
    held = "" if kept is None else f", nor is a copy of it in {kept}"
    raise SourceError(
        f"{spec} is not what it was any more (its SHA-256 was {sha256[:12]}...){held}: put it back"
    )


def loading() -> str | None:
    """The file of a user's that is being loaded; None while there is none."""
    return _loading.get()


@contextlib.contextmanager
def told(*sources: Source, doing: str = "", anywhere: bool = True) -> Iterator[None]:
    """What goes wrong in a user's code is one line, which names the file, the line and the cause.

    Args:
        sources: whose code runs within.
        doing: what is done, behind the place.
        anywhere: take what goes wrong elsewhere for theirs, too.

    Raises:
        SourceError: anything but pyvae's own errors was raised within, or a lack of memory.
    """
    try:
        yield
    except (PyvaeError, MemoryError):
        raise
    except (Exception, SystemExit) as error:
        place = place_of(sources, error)
        if _is_of_memory(error) or (place is None and not anywhere):
            raise
        raise SourceError(f"{place or sources[0]}{doing and f' {doing}'}: {_words(error)}") from error


def _is_of_memory(error: BaseException) -> bool:
    return type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in str(error)


def keep(sources: list[Source], folder: Path) -> Iterator[tuple[Path, bytes]]:
    """Where in a folder the text of each source is to be written, for those of which there is no copy yet."""
    for source in dict.fromkeys(source for source in sources if source.content):
        stem = source.file.removesuffix(".py")
        for name in (source.file, f"{stem}-{source.sha256[:8]}.py"):
            path = folder / name
            try:
                held = read_source(path)
            except (OSError, ValueError):
                yield path, source.content
                break
            if held == source.content:
                break


def place_of(sources: Sequence[Source], error: BaseException) -> str | None:
    """The deepest line in a user's file that an error went through, or another that it was raised after."""
    files = {source.path: source.file for source in sources}
    if isinstance(error, SyntaxError) and error.filename in files:
        return f"{files[error.filename]}, line {error.lineno}"
    through = [f for f in traceback.extract_tb(error.__traceback__) if f.filename in files]
    if through:
        return f"{files[through[-1].filename]}, line {through[-1].lineno}"
    return None if error.__context__ is None else place_of(sources, error.__context__)


def _words(error: BaseException) -> str:
    name = type(error).__name__
    said = error.msg if isinstance(error, SyntaxError) else reason(error)
    return name if said == name else f"{name}: {said}"


def _of_spec(spec: str, base: Path | None) -> Source:
    where, _, name = spec.rpartition(":")
    if not where or not all(part.isidentifier() for part in name.split(".")):
        raise SourceError(f"{spec}: give a file and a name in it, as my_code.py:name, or package.module:name")
    if not _is_path(where):
        return _of_module(where, name)
    given = os.path.expanduser(where)
    path = os.path.abspath(given if base is None else base / given)
    try:
        content = read_source(path)
    except OSError as error:
        raise SourceError(
            f"{where} cannot be read ({error.strerror or error}); give the path of a Python file"
        ) from None
    except ValueError as error:
        raise SourceError(f"{where}: {error}") from None
    return _checked(Source(_file_name(where), name, _hash(content), f"{path}:{name}", content, path))


def _of_module(where: str, name: str) -> Source:
    try:
        with _while_loading(where):
            module = importlib.import_module(where)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{where}.".startswith(f"{error.name}."):
            raise SourceError(f"{where} cannot be imported: {_words(error)}") from error
        raise SourceError(
            f"{where}:{name}: there is no module {error.name} here; of a file give the path, {where}.py:{name}"
        ) from None
    except PyvaeError:
        raise
    except (Exception, SystemExit) as error:
        raise SourceError(f"{where} cannot be imported: {_words(error)}") from error
    path = getattr(module, "__file__", None)
    if path is None or not path.endswith(".py"):
        raise SourceError(f"{where}:{name}: this module has no Python file that could be kept beside a run")
    content = read_source(path)
    source = Source(_file_name(path), name, _hash(content), f"{where}:{name}", content, path)
    _modules.setdefault((source.file, source.sha256), module)
    return _checked(source)


def _of_object(value: Any) -> Source:
    name = getattr(value, "__qualname__", None)
    if isinstance(value, nn.Module):
        made = type(value).__name__
        raise SourceError(
            f"a {made} that is made already cannot be seeded, nor made again: give the class or function that makes "
            f"it, called as {made}(channels, latents, side)"
        )
    if not isinstance(value, type | FunctionType) or name is None:
        raise SourceError(
            f"{_shown(value)} is no function or class of which the source could be kept: write it with def or class"
        )
    if "<lambda>" in name:
        raise SourceError(
            "a lambda has no name by which a run could find it again: write a function with def"
        )
    if value in _given:
        return _given[value]
    module = sys.modules.get(value.__module__)
    path = getattr(module, "__file__", None)
    if value.__module__ != _MAIN and path is not None and path.endswith(".py") and "<locals>" not in name:
        content = read_source(path)
        spec = f"{os.path.abspath(path)}:{name}"
        source = Source(_file_name(path), name, _hash(content), spec, content, path)
    else:
        name = value.__name__
        text, script = text_of(value)
        if script is None:
            text += seen_by(value, text)
        content = text.encode() if script is None else script
        file = code_of(value).co_filename
        source = Source(f"{name}.py", name, _hash(text.encode()), f"{_MAIN}:{name}", content, file)
    # the object itself, however often its text is met again; and the text as it was, whatever becomes of its file
    _objects.setdefault((source.file, source.name, source.sha256), value)
    _given[value] = source
    return source


def _module_of(source: Source) -> ModuleType:
    key = (source.file, source.sha256)
    if key not in _modules:
        where = source.spec.rpartition(":")[0]
        if not _is_path(where):
            module = _imported(where, source)
            if module is not None:
                return _modules.setdefault(key, module)
        _modules[key] = _executed(source, where)
    return _modules[key]


def _imported(where: str, source: Source) -> ModuleType | None:
    """A module of a package, if it is what the source was."""
    with contextlib.suppress(ImportError, OSError, ValueError), told(source), _while_loading(where):
        module = importlib.import_module(where)
        if module.__file__ is not None and _hash(read_source(module.__file__)) == source.sha256:
            return module
    return None


def _executed(source: Source, where: str) -> ModuleType:
    """The content as a module under a name of its own."""
    parent = "" if _is_path(where) else where.rpartition(".")[0]
    stem = source.file.removesuffix(".py")
    name = f"{parent}{parent and '.'}pyvae_{stem}_{source.sha256[:16]}"
    module = ModuleType(name)
    module.__file__ = source.path
    module.__package__ = parent
    # dataclasses and type hints look their module up
    sys.modules[name] = module
    folders = [os.path.dirname(source.path), os.path.dirname(where)] if _is_path(where) else []
    try:
        here = os.getcwd()
    except OSError:  # it was removed
        here = None
    try:
        with told(source), _beside(folders), _while_loading(source.file):
            exec(compile(source.content, source.path, "exec"), vars(module))
    except BaseException:
        del sys.modules[name]
        raise
    finally:
        if here is not None:  # what a user has named is looked for from there
            os.chdir(here)
    return module


@contextlib.contextmanager
def _beside(folders: list[str]) -> Iterator[None]:
    """Neighbours of a file can be imported: its own, where another file has had some of the same names."""
    added = [folder for folder in folders if folder not in sys.path]
    for name in [name for name, folder in _neighbours.items() if folder not in folders]:
        if any(os.path.exists(os.path.join(each, name + end)) for each in folders for end in (".py", "")):
            for each in [each for each in sys.modules if f"{each}.".startswith(f"{name}.")]:
                del sys.modules[each]
            del _neighbours[name]
    before = set(sys.modules)
    sys.path[:0] = added
    try:
        yield
    finally:
        for name in set(sys.modules) - before:
            file = getattr(sys.modules[name], "__file__", None) or ""
            folder = os.path.dirname(file.removesuffix(f"{os.sep}__init__.py"))
            if "." not in name and folder in added:
                _neighbours[name] = folder
        for folder in added:
            with contextlib.suppress(ValueError):
                sys.path.remove(folder)


@contextlib.contextmanager
def _while_loading(what: str) -> Iterator[None]:
    token = _loading.set(what)
    try:
        yield
    finally:
        _loading.reset(token)


def _named(module: ModuleType, source: Source) -> Any:
    found: Any = module
    for part in source.name.split("."):
        if not hasattr(found, part):
            names = ", ".join(_own_names(module)) or "nothing that can be called"
            raise SourceError(f"{source.file} has no {source.name}: it has {names}")
        found = getattr(found, part)
    if not callable(found):
        raise SourceError(f"{source} is {_shown(found)}, which is no function or class")
    return found


def _own_names(module: ModuleType) -> list[str]:
    return [
        name
        for name, each in vars(module).items()
        if isinstance(each, type | FunctionType) and each.__module__ == module.__name__ and name[:1] != "_"
    ]


def _checked(source: Source) -> Source:
    """The source, once its object is known to be there."""
    _ = source.object
    return source


def _places(where: str, kept: Path | None) -> Iterator[Path]:
    if where != _MAIN:
        if _is_path(where):
            yield Path(where)
        else:
            with contextlib.suppress(ImportError, ValueError, AttributeError):
                found = importlib.util.find_spec(where)
                if found is not None and found.origin is not None:
                    yield Path(found.origin)
    if kept is not None:
        with contextlib.suppress(OSError):
            yield from sorted(kept.glob("*.py"))


def _is_path(where: str) -> bool:
    return where.endswith(".py") or os.sep in where


def _file_of(where: str, name: str) -> str:
    return f"{name}.py" if where == _MAIN else _file_name(where)


def _file_name(where: str) -> str:
    return os.path.basename(where) if _is_path(where) else f"{where.rpartition('.')[2]}.py"


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _shown(value: object) -> str:
    return f"{type(value).__name__} {value!r}"[:80]
