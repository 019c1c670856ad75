"""What the fields of recipes and objectives can be: limits stand beside their types, and a constructor checks both."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, fields
from functools import cache
from math import inf, isfinite
from numbers import Integral, Real
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

from pyvae.base.source import Source, is_spec, source_of
from pyvae.errors import PyvaeError, RecipeError

_SHOWN = 80
_parsing = ContextVar("_parsing", default=False)


@contextmanager
def parsing() -> Iterator[None]:
    """What is refused within is no ValueError: a parser of options would take that for its own."""
    token = _parsing.set(True)
    try:
        yield
    finally:
        _parsing.reset(token)


def refusal(message: str) -> PyvaeError:
    """The error of a value that cannot be: RecipeError, a ValueError; within :func:`parsing` PyvaeError itself."""
    return (PyvaeError if _parsing.get() else RecipeError)(message)


@dataclass(frozen=True)
class Within:
    """Limits of a number, as ``Annotated[float, Within(least=0, below=1)]``; of a tuple, of each of its numbers."""

    least: float | None = None
    most: float | None = None
    above: float | None = None
    below: float | None = None

    def broken_by(self, value: float) -> str | None:
        """The limit that a number does not keep, in words."""
        for limit, words, kept in (
            (self.least, "at least", lambda limit: value >= limit),
            (self.above, "above", lambda limit: value > limit),
            (self.most, "at most", lambda limit: value <= limit),
            (self.below, "below", lambda limit: value < limit),
        ):
            if limit is not None and not kept(limit):
                return f"{words} {limit:,}" if isinstance(limit, int) else f"{words} {limit:g}"
        return None


Weight = Annotated[float, Within(0, 1e9)]
"""Of a term of the loss. Past the upper limit the squares of gradients come near the end of float32."""
Signed = Annotated[float, Within(-1e9, 1e9)]
"""A weight that may be of either sign."""
Nats = Annotated[float, Within(0, 1e9)]
Rate = Annotated[float, Within(1e-12, 1)]
"""Learning rate of Adam or Adagrad, whose steps are about as long in every weight."""
Share = Annotated[float, Within(0, 1)]
Steps = Annotated[int, Within(1, 10**12)]
"""A length; products of it stay exact in int64 and float64."""
Count = Annotated[int, Within(1, 10**6)]
"""Of what is held in memory or done in a step."""
Seed = Annotated[int, Within(0, 2**64 - 1)]


class Checked:
    """A frozen dataclass whose constructor refuses what its fields cannot be, by their names.

    Numbers become Python's own: a float where an integer stands for one, and out of numpy's types.
    """

    def __post_init__(self) -> None:
        for field in fields(self):  # type: ignore[arg-type]
            value = admitted(type(self), field.name, getattr(self, field.name))
            object.__setattr__(self, field.name, value)


def admitted(cls: type, name: str, value: Any) -> Any:
    """A value as the field ``name`` of a :class:`Checked` class keeps it.

    Raises:
        RecipeError: the field cannot be this; see :func:`refusal`.
    """
    kept = _admitted(value, kinds(cls)[name])
    if isinstance(kept, _Refused):
        raise refusal(f"{name} must be {kept.expected}, got {show(value)}")
    return kept


def show(value: object) -> str:
    """A value on one line, shortened if long."""
    try:
        words = " ".join(repr(value).split())
    except ValueError:
        # Python does not write out integers of thousands of digits
        words = "an integer of thousands of digits"
    return words if len(words) <= _SHOWN else f"{words[:_SHOWN]}..."


class _Refused(NamedTuple):
    """What a value should have been."""

    expected: str
    near: bool = False
    """Whether it is of the right type."""


class Kind(NamedTuple):
    """What a field can be: the types of its union, and the limits of its numbers."""

    types: tuple[Any, ...]
    limits: Within


@cache
def kinds(cls: type) -> dict[str, Kind]:
    """What each field of a dataclass can be."""
    hints = get_type_hints(cls, include_extras=True)
    return {f.name: _kind(hints[f.name]) for f in fields(cls)}


def _kind(hint: Any) -> Kind:
    types, limits = [], Within()
    for part in get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,):
        plain, *extras = get_args(part) if get_origin(part) is Annotated else (part,)
        limits = next((extra for extra in extras if isinstance(extra, Within)), limits)
        types.append(plain)
    return Kind(tuple(types), limits)


def _admitted(value: Any, kind: Kind) -> Any:
    """The value as the field keeps it, or what it should have been."""
    refused = []
    for each in kind.types:
        found = _as(value, each, kind.limits)
        if not isinstance(found, _Refused):
            return found
        refused.append(found)
    near = [r for r in refused if r.near]
    return _Refused(" or ".join(r.expected for r in near or refused))


def _as(value: Any, kind: Any, limits: Within) -> Any:
    if get_origin(kind) is Literal:
        # True equals 1
        same = [a for a in get_args(kind) if type(a) is type(value) and a == value]
        return same[0] if same else _Refused(" or ".join(map(repr, get_args(kind))))
    if get_origin(kind) is tuple:
        if not isinstance(value, tuple | list):
            return _Refused("a tuple of integers")
        found = [_as(item, get_args(kind)[0], limits) for item in value]
        return next((item for item in found if isinstance(item, _Refused)), tuple(found))
    if kind is int and isinstance(value, Integral) and not isinstance(value, bool):
        return _limited(int(value), limits)
    if kind is float and isinstance(value, Real) and not isinstance(value, bool):
        try:
            number = float(value)
        except OverflowError:
            number = inf
        return _limited(number, limits) if isfinite(number) else _Refused("finite", near=True)
    if kind is Source:
        return _code(value)
    if kind in _NUMBERS or not isinstance(value, kind):
        return _Refused(_WORDS.get(kind, f"{kind.__name__}()"))
    return value


def _code(value: Any) -> Any:
    if (
        not callable(value)
        and not isinstance(value, Source)
        and not (isinstance(value, str) and is_spec(value))
    ):
        return _Refused("code of your own, as my_code.py:name")
    try:
        return source_of(value)
    except RecipeError as error:
        raise refusal(str(error)) from error


_NUMBERS = (int, float)
_WORDS = {int: "an integer", float: "a number", bool: "True or False", str: "a text", NoneType: "None"}


def _limited(value: float, limits: Within) -> Any:
    broken = limits.broken_by(value)
    return value if broken is None else _Refused(broken, near=True)
