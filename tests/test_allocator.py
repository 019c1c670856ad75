import ctypes
import sys

import pytest

from pyvae.allocator import keep_large_buffers

MMAP_THRESHOLD = -3


@pytest.mark.parametrize(
    ("most", "kept"), [(1 << 40, 1 << 30), (32 << 20, 32 << 20)], ids=["new glibc", "old"]
)
def test_the_largest_threshold_that_glibc_takes(monkeypatch, most, kept):
    took = {}

    class Library:
        def __init__(self, _):
            pass

        def mallopt(self, parameter, value):
            if parameter == MMAP_THRESHOLD and value > most:
                return 0
            took[parameter] = value
            return 1

    monkeypatch.setattr(ctypes, "CDLL", Library)
    monkeypatch.setattr(sys, "platform", "linux")
    assert keep_large_buffers()
    assert took[MMAP_THRESHOLD] == kept
    assert len(took) == 3


def test_where_no_threshold_is_taken_nothing_else_is_set(monkeypatch):
    asked = []

    class Library:
        def __init__(self, _):
            pass

        def mallopt(self, parameter, value):
            asked.append(parameter)
            return 0

    monkeypatch.setattr(ctypes, "CDLL", Library)
    monkeypatch.setattr(sys, "platform", "linux")
    assert not keep_large_buffers()
    assert set(asked) == {MMAP_THRESHOLD}
