"""Values of JSON as the types that they are to have, and nothing that only looks like it."""

from dataclasses import dataclass
from typing import Any, Literal, TypedDict

import pytest

from pyvae.engine.plain import MOST_BYTES, checked, parse_json, read_json


@dataclass(frozen=True)
class Point:
    x: int
    y: float = 0.5


class Named(TypedDict):
    name: str


class Sized(Named, total=False):
    size: int | None


@pytest.mark.parametrize(
    ("value", "kind", "expected"),
    [
        (None, None, None),
        (True, bool, True),
        (3, int, 3),
        (2**64 - 1, int, 2**64 - 1),
        (-(2**63), int, -(2**63)),
        (3, float, 3.0),
        (0.5, float, 0.5),
        ("a", str, "a"),
        ("\udcff", str, "\udcff"),
        (1, Literal[1, 3] | None, 1),
        (None, Literal[1, 3] | None, None),
        ("a", int | str, "a"),
        ([1, 2], list[int], [1, 2]),
        ([1, 2], tuple[int, ...], (1, 2)),
        ([1, "a"], tuple[int, str], (1, "a")),
        ({"a": [1]}, dict[str, list[int]], {"a": [1]}),
        ({"name": "a", "size": None, "more": {}}, Sized, {"name": "a", "size": None, "more": {}}),
        ({"x": 1, "y": 2}, Point, Point(1, 2.0)),
        ({"x": 1}, Point, Point(1)),
        ([{"x": 1}], list[Point], [Point(1)]),
        (object, Any, object),
    ],
)
def test_what_is_of_the_type(value, kind, expected):
    found = checked(value, kind)
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize(
    ("value", "kind", "message"),
    [
        (0, None, "it must be null, got 0"),
        (1, bool, "it must be true or false, got 1"),
        (True, int, "it must be an integer of 64 bits, got True"),
        (1.0, int, "it must be an integer of 64 bits, got 1.0"),
        (2**64, int, "it must be an integer of 64 bits, got 18446744073709551616"),
        (-(2**63) - 1, int, "it must be an integer of 64 bits, got -9223372036854775809"),
        (True, float, "it must be a number, got True"),
        ("1", float, "it must be a number, got '1'"),
        (3, str, "it must be text, got 3"),
        ("a\0", str, "it must be text, got 'a\\x00'"),
        ("\ud800", str, "it must be text, got '\\ud800'"),
        (True, Literal[1, 3], "it must be one of 1, 3, got True"),
        (1.0, Literal[1, 3], "it must be one of 1, 3, got 1.0"),
        ([1], Literal["a"], "it must be one of a, got [1]"),
        ("b", Literal["a"] | None, "it must be one of a, got 'b'"),
        (None, int | str, "it must be text, got None"),
        ({}, list[int], "it must be a list, got {}"),
        ([1, "a"], list[int], "it[1] must be an integer of 64 bits, got 'a'"),
        ([1], tuple[int, int], "it must be a list of 2, got [1]"),
        ([], dict[str, int], "it must be an object, got []"),
        ({"a b": "c"}, dict[str, int], "'a b' must be an integer of 64 bits, got 'c'"),
        ({"\ud800": 1}, dict[str, int], "a name in it must be text, got '\\ud800'"),
        ({"size": 1}, Sized, "name is missing"),
        ({"name": "a", "size": 0.5}, Sized, "size must be an integer of 64 bits, got 0.5"),
        ({"x": 1, "z": 2}, Point, "unknown field 'z'"),
        ({"x": "1"}, Point, "x must be an integer of 64 bits, got '1'"),
        ("a\nb", int, "it must be an integer of 64 bits, got 'a\\nb'"),
    ],
)
def test_what_is_not_is_named_in_a_line(value, kind, message):
    with pytest.raises(ValueError, match=r".") as caught:
        checked(value, kind)
    assert str(caught.value) == message


def test_the_path_to_a_part_is_named():
    with pytest.raises(ValueError, match=r"^rows\[1\]\.x must be an integer of 64 bits, got None$"):
        checked([{"x": 1}, {"x": None}], list[Point], "rows")


def test_a_long_value_is_cut():
    with pytest.raises(ValueError, match=r".") as caught:
        checked(["x" * 10_000] * 10_000, int)
    assert len(str(caught.value)) < 250


def test_a_type_that_no_plain_value_has_is_a_mistake_of_the_caller():
    with pytest.raises(TypeError):
        checked(1, bytes)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no JSON: Expecting value: line 1 column 1 (char 0)"),
        (bytes(8), "no JSON: Expecting value: line 1 column 1 (char 0)"),
        (b"{} {}", "no JSON: Extra data: line 1 column 4 (char 3)"),
        (b'{"a": 1, "b": {"c": 1, "c": 2}}', "'c' stands there twice"),
        (b'["\xff"]', "byte 2 is not of UTF-8 text"),
        (b"[" * 200_000, "it is nested too deeply"),
        (b'{"a":' * 200_000, "it is nested too deeply"),
        (b"1" * 5000, "a number has 5,000 digits"),
    ],
)
def test_what_is_no_json(content, message):
    with pytest.raises(ValueError, match=r".") as caught:
        parse_json(content)
    assert str(caught.value) == message


def test_a_byte_order_mark_is_no_damage(tmp_path):
    (tmp_path / "a").write_bytes(b'\xef\xbb\xbf{"a": [1, 0.5, null]}')
    assert read_json(tmp_path / "a") == {"a": [1, 0.5, None]}


def test_a_file_that_is_too_large_is_not_read(tmp_path):
    (tmp_path / "a").write_bytes(b"1")
    with open(tmp_path / "a", "ab") as file:
        file.truncate(1 << 40)
    with pytest.raises(ValueError, match=f"larger than {MOST_BYTES >> 20} MiB"):
        read_json(tmp_path / "a")
