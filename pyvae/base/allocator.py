"""glibc's allocator, tuned for a process that frees and asks for the same large buffers in every step."""

import ctypes
import sys

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3


def keep_large_buffers() -> bool:
    """Keep freed buffers in the heap instead of giving them back to the kernel; false where there is no glibc.

    By default every activation above 32 MB, and at first every one above 128 kB, is mapped and unmapped in each step,
    and the page faults cost about as much as the arithmetic (benchmarks/bench_train.py shows how much). It holds for
    the whole process, to its end.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    # an older glibc refuses more than 32 MB; any of the others alone would freeze the threshold at 128 kB
    if not (mallopt(_MMAP_THRESHOLD, 1 << 30) or mallopt(_MMAP_THRESHOLD, 32 << 20)):
        return False
    return bool(mallopt(_TRIM_THRESHOLD, 2**31 - 1) and mallopt(_TOP_PAD, 64 << 20))
