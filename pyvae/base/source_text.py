"""The text of functions and classes that are given in Python, as a run keeps it."""

import ast
import contextlib
import inspect
import linecache
import os
import re
import textwrap
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from types import CodeType, FunctionType, ModuleType
from typing import Any

from pyvae.base.files import open_regular
from pyvae.errors import SourceError

_MOST_BYTES = 16 << 20
"""Of a source file."""


def read_source(path: str | os.PathLike[str]) -> bytes:
    """What a source file holds.

    Raises:
        OSError: it cannot be read.
        ValueError: it is far larger than any.
    """
    with open_regular(path) as file:
        content = file.read(_MOST_BYTES + 1)
    if len(content) > _MOST_BYTES:
        raise ValueError(f"it is larger than {_MOST_BYTES >> 20} MiB, which no source file is")
    return content


def code_of(value: Any) -> CodeType:
    """The code of a function, or of a method of a class.

    Raises:
        SourceError: the class has none of its own.
    """
    if isinstance(value, FunctionType):
        return value.__code__
    # what @dataclass writes has no file
    for part in vars(value).values():
        for function in (part, getattr(part, "__func__", None), getattr(part, "fget", None)):
            if isinstance(function, FunctionType) and not function.__code__.co_filename.startswith("<string"):
                return function.__code__
    raise SourceError(f"{value.__name__} has no method of its own, by which its source could be found")


def seen_by(value: Any, text: str) -> str:
    """Comments that say what a function or class took from around it when it was made, which its text does not: so two
    of one text, as a function that makes them gives, are two."""
    seen: dict[str, str] = {}
    for part in [value] if isinstance(value, FunctionType) else vars(value).values():
        function = inspect.unwrap(getattr(part, "__func__", None) or getattr(part, "fget", None) or part)
        if not isinstance(function, FunctionType) or function.__code__.co_filename.startswith("<string"):
            continue
        names = function.__code__.co_varnames[: function.__code__.co_argcount]
        defaults = function.__defaults__ or ()
        given = dict(zip(names[len(names) - len(defaults) :], defaults, strict=True))
        given |= function.__kwdefaults__ or {}
        seen |= {name: shown for name, default in given.items() if (shown := _plain(default))}
        for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
            try:
                found = cell.cell_contents
            except ValueError:  # which has no value yet
                continue
            if name != "__class__":
                seen[name] = _taken(value, name, found)
    if is_dataclass(value):
        seen |= {f.name: shown for f in fields(value) if (shown := _plain(f.default))}
    return "".join(
        f"# {name} = {shown}\n"
        for name, shown in sorted(seen.items())
        if not re.search(rf"\b{name}\b(\s*:[^=\n]*)?\s*=\s*{re.escape(shown)}(?!\w)", text)
    )


def _taken(value: Any, name: str, found: Any) -> str:
    if shown := _plain(found):
        return shown
    raise SourceError(
        f"{value.__name__} takes {name} from the function around it, which a run cannot keep, as it is of type "
        f"{type(found).__name__}: make {name} in {value.__name__}, or write both at the top of a file"
    )


def _plain(value: Any) -> str:
    if isinstance(value, type | FunctionType | ModuleType):
        return value.__name__
    if value is None or isinstance(value, bool | int | float | str):
        return repr(value)
    with contextlib.suppress(ValueError, SyntaxError, RecursionError):
        if ast.literal_eval(repr(value)) == value:
            return repr(value)
    return ""


def text_of(value: Any) -> tuple[str, bytes | None]:
    """The text of a function or class, from the file or the cell that it was written in; and that file, where it stands
    at the top of one.

    Raises:
        SourceError: it was typed at a prompt, which keeps none.
    """
    code = code_of(value)
    lines = linecache.getlines(code.co_filename)
    kind = (ast.ClassDef,) if isinstance(value, type) else (ast.FunctionDef, ast.AsyncFunctionDef)
    for text in _texts("".join(lines), value.__name__, kind, code.co_firstlineno):
        script = None
        with contextlib.suppress(OSError, ValueError):
            content = read_source(code.co_filename)
            script = content if text_at_top(content, value.__name__) == text else None
        return text, script
    raise SourceError(
        f"the source of {value.__name__} cannot be found, as of what is typed at a prompt: write it into a file, and "
        f"give it as FILE.py:{value.__name__}"
    )


def text_at_top(content: bytes, name: str) -> str | None:
    """The text of what has this name at the top of a file; None where nothing has."""
    kinds = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    return next(_texts(content.decode(errors="replace"), name, kinds), None)


def _texts(text: str, name: str, kinds: tuple[type[Any], ...], line: int | None = None) -> Iterator[str]:
    """Texts of what has a name, the innermost of those around a line first; without a line, what stands at the top."""
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError):
        return
    found = [
        (_first_line(node), node.end_lineno or 0)
        for node in (tree.body if line is None else ast.walk(tree))
        if isinstance(node, kinds) and node.name == name
    ]
    lines = text.splitlines(keepends=True)
    for first, last in sorted(found, reverse=True):
        if line is None or first <= line <= last:
            yield textwrap.dedent("".join(lines[first - 1 : last]))


def _first_line(node: Any) -> int:
    return int(min([node.lineno, *(each.lineno for each in node.decorator_list)]))
