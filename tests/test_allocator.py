import ctypes
import sys

import pytest

from pyvae.base.allocator import keep_large_buffers

MMAP_THRESHOLD = -3


@pytest.fixture
def glibc(monkeypatch):
    """Stands in for the C library: ``most`` is the largest threshold that it takes, ``took`` what it was given."""

    class Library:
        most = 0

        def __init__(self):
            self.took = {}

        def mallopt(self, parameter, value):
            if parameter == MMAP_THRESHOLD and value > self.most:
                return 0
            self.took[parameter] = value
            return 1

    library = Library()
    monkeypatch.setattr(ctypes, "CDLL", lambda _: library)
    monkeypatch.setattr(sys, "platform", "linux")
    return library


@pytest.mark.parametrize(
    ("most", "kept"), [(1 << 40, 1 << 30), (32 << 20, 32 << 20)], ids=["new glibc", "old"]
)
def test_the_largest_threshold_that_glibc_takes(glibc, most, kept):
    glibc.most = most
    assert keep_large_buffers()
    assert glibc.took[MMAP_THRESHOLD] == kept
    assert len(glibc.took) == 3


def test_where_no_threshold_is_taken_nothing_else_is_set(glibc):
    assert not keep_large_buffers()
    assert not glibc.took
