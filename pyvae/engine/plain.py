"""Plain values, of JSON, checked against the types that they are to have: every file of a run is read through this."""

import json
import types
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from functools import lru_cache
from pathlib import Path
from reprlib import Repr
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints, is_typeddict

from pyvae.base.files import open_regular

MOST_BYTES = 16 << 20
"""Of a JSON file of a run; those written here are a thousandth of it."""
# more than checked() takes, and few enough for Python
_MOST_DIGITS = 1000
# seeds are unsigned, everything else signed
_INTEGERS = range(-(2**63), 2**64)

_SHORT = Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 40
_SHORT.maxlist = _SHORT.maxdict = 3
_SHORT.maxlevel = 2


def read_json(path: Path) -> Any:
    """The value in a JSON file.

    Raises:
        OSError: as ``open``; also for what is no regular file.
        ValueError: it is too large, no UTF-8, no JSON, or names something twice; one line says so.
    """
    with open_regular(path) as file:
        content = file.read(MOST_BYTES + 1)
    if len(content) > MOST_BYTES:
        raise ValueError(f"it is larger than {MOST_BYTES >> 20} MiB")
    return parse_json(content)


def parse_json(content: bytes) -> Any:
    """The value of a JSON text in UTF-8, with a byte order mark or without.

    Raises:
        ValueError: it is none, or names something twice; one line says so.
    """
    try:
        return json.loads(content.decode("utf-8-sig"), object_pairs_hook=_once, parse_int=_integer)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"byte {error.start} is not of UTF-8 text") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"no JSON: {error}") from None


def _integer(digits: str) -> int:
    if len(digits) > _MOST_DIGITS:
        raise ValueError(f"a number has {len(digits):,} digits")
    return int(digits)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{_SHORT.repr(twice)} stands there twice")
    return values


def checked(value: Any, kind: Any, name: str = "it") -> Any:
    """A plain value as one of the type ``kind``: lists become tuples and dicts dataclasses where it says so.

    A bool is no int; an int is a float, but no float an int.

    Args:
        value: what JSON can hold.
        kind: ``Any``, None, bool, int, float, str, Literal, unions of those, ``list[X]``, ``tuple[X, ...]``,
            ``tuple[X, Y]``, ``dict[str, X]``, a TypedDict, which may hold more than it names, or a dataclass, which
            may not.
        name: of the value, for the message.

    Raises:
        ValueError: it is not; one line names the part, the type and the value.
    """
    if kind is Any:
        return value
    origin = get_origin(kind)
    if origin in (Union, types.UnionType):
        return _one_of(value, get_args(kind), name)
    if is_typeddict(kind):
        return _typed_dict(value, kind, name)
    if is_dataclass(kind) and isinstance(kind, type):
        return kind(**checked_fields(value, kind, name))
    check = _CHECKS.get(origin or kind)
    if check is None:
        raise TypeError(f"{name}: no plain value is a {kind}")
    return check(value, get_args(kind), name)


def _wrong(value: Any, expected: str, name: str) -> ValueError:
    return ValueError(f"{name} must be {expected}, got {_SHORT.repr(value)}")


def _none(value: Any, _: tuple[Any, ...], name: str) -> None:
    if value is not None:
        raise _wrong(value, "null", name)


def _bool(value: Any, _: tuple[Any, ...], name: str) -> bool:
    if not isinstance(value, bool):
        raise _wrong(value, "true or false", name)
    return value


def _int(value: Any, _: tuple[Any, ...], name: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value not in _INTEGERS:
        raise _wrong(value, "an integer of 64 bits", name)
    return value


def _float(value: Any, _: tuple[Any, ...], name: str) -> float:
    if isinstance(value, float):
        return value
    if isinstance(value, bool) or not isinstance(value, int) or value not in _INTEGERS:
        raise _wrong(value, "a number", name)
    return float(value)


def _str(value: Any, _: tuple[Any, ...], name: str) -> str:
    if not isinstance(value, str) or "\0" in value:
        raise _wrong(value, "text", name)
    try:
        # a file's name that is no UTF-8 is held as surrogates, those alone
        value.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raise _wrong(value, "text", name) from None
    return value


def _literal(value: Any, members: tuple[Any, ...], name: str) -> Any:
    # True equals 1, and 1.0 does
    if not any(type(value) is type(member) and value == member for member in members):
        raise _wrong(value, "one of " + ", ".join(map(str, members)), name)
    return value


def _one_of(value: Any, kinds: tuple[Any, ...], name: str) -> Any:
    if value is None and type(None) in kinds:
        return None
    first, *others = (kind for kind in kinds if kind is not type(None))
    try:
        return checked(value, first, name)
    except ValueError:
        if not others:
            raise
    return _one_of(value, tuple(others), name)


def _list(value: Any, kinds: tuple[Any, ...], name: str) -> list[Any]:
    if not isinstance(value, list | tuple):
        raise _wrong(value, "a list", name)
    return [checked(part, kinds[0], f"{name}[{i}]") for i, part in enumerate(value)]


def _tuple(value: Any, kinds: tuple[Any, ...], name: str) -> tuple[Any, ...]:
    if kinds[1:] == (...,):
        return tuple(_list(value, kinds, name))
    if not isinstance(value, list | tuple) or len(value) != len(kinds):
        raise _wrong(value, f"a list of {len(kinds)}", name)
    return tuple(
        checked(part, kind, f"{name}[{i}]") for i, (part, kind) in enumerate(zip(value, kinds, strict=True))
    )


def _dict(value: Any, kinds: tuple[Any, ...], name: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _wrong(value, "an object", name)
    return {
        _str(key, (), f"a name in {name}"): checked(part, kinds[1], _part(name, key))
        for key, part in value.items()
    }


def _typed_dict(value: Any, kind: Any, name: str) -> dict[str, Any]:
    known, values = _types(kind), _dict(value, (str, Any), name)
    if missing := sorted(kind.__required_keys__ - set(values)):
        raise ValueError(f"{_part(name, missing[0])} is missing")
    return {key: checked(part, known.get(key, Any), _part(name, key)) for key, part in values.items()}


def checked_fields(value: Any, kind: Any, name: str = "it") -> dict[str, Any]:
    """Arguments for a dataclass, each as one of the type of its field; a field may be missing, but none is unknown.

    Raises:
        ValueError: as :func:`checked`.
    """
    known, values = _types(kind), _dict(value, (str, Any), name)
    if unknown := sorted(set(values) - {field.name for field in fields(kind)}):
        raise ValueError(f"unknown field {_SHORT.repr(unknown[0])}" + ("" if name == "it" else f" of {name}"))
    return {key: checked(part, known[key], _part(name, key)) for key, part in values.items()}


def _part(name: str, key: str) -> str:
    shown = key if key.isidentifier() else _SHORT.repr(key)
    return shown if name == "it" else f"{name}.{shown}"


@lru_cache(maxsize=64)
def _types(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)


_CHECKS: dict[Any, Callable[[Any, tuple[Any, ...], str], Any]] = {
    None: _none,
    type(None): _none,
    bool: _bool,
    int: _int,
    float: _float,
    str: _str,
    Literal: _literal,
    list: _list,
    tuple: _tuple,
    dict: _dict,
}
