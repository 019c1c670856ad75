"""Paths of data, as they are typed."""

from __future__ import annotations

import os
from pathlib import Path

from pyvae.errors import DataError

StrPath = str | os.PathLike[str]

NAMES = ("dsprites", "shapes3d")
"""Of data that are no paths, whatever lies there."""


def expanded(name: StrPath) -> Path:
    """With ``~`` and ``~user`` written out; `DataError` where there is no such user, and for what is no name at all."""
    text = os.path.expanduser(os.fspath(name))
    if not text:
        raise DataError("the name of the data is empty: give a path, or 'dsprites'")
    if text.startswith("~") and not os.path.lexists(text):
        raise DataError(f"{name}: there is no such user here; write the path out")
    try:
        if "\0" in text:
            raise ValueError("it has a NUL in it")
        os.fsencode(text)
    except ValueError as error:
        raise DataError(f"{name}: no file can have this name ({error}); check it") from error
    return Path(text)


def existing(name: StrPath, missing: str | None = None) -> Path:
    """The absolute path of what is there, links followed.

    Raises `DataError` saying why it cannot be found; ``missing``, where there is nothing of this name.
    """
    path = expanded(name)
    try:
        path.stat()
        return Path(os.path.realpath(path))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise DataError(
            f"{path}: {missing or f'cannot be opened ({error.strerror}); check the path'}"
        ) from error
    except OSError as error:
        raise DataError(f"{path}: cannot be opened ({error.strerror}); check the path") from error


def split(name: StrPath) -> tuple[str, str | None]:
    """A path, and the array that is named after it: of ``file.npz:x_train``, ``("file.npz", "x_train")``.

    What is there under the whole name is a path.
    """
    text = os.fspath(name)
    if not os.path.lexists(os.path.expanduser(text)):
        at = text.rfind(":")
        while at > 0:
            if os.path.isfile(os.path.expanduser(text[:at])):
                return text[:at], text[at + 1 :]
            at = text.rfind(":", 0, at)
    return text, None


def absolute(name: str) -> str:
    """The name of data as it is understood from any folder: the whole path of what lies there, other names as they are.

    >>> absolute("dsprites")
    'dsprites'
    """
    if not lies_there(name):
        return name
    path, array = split(name)
    whole = os.path.realpath(os.path.expanduser(path))
    return whole if array is None else f"{whole}:{array}"


def lies_there(name: str) -> bool:
    """Whether there is something at the path that a name of data is."""
    try:
        return name not in NAMES and os.path.exists(os.path.expanduser(split(name)[0]))
    except ValueError:  # no name of a file: told when it is opened
        return False
