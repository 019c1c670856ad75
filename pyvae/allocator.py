"""glibc's allocator, tuned for a process that frees and asks for the same large buffers in every step."""

import ctypes
import sys

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3


def keep_large_buffers() -> bool:
    """Keep freed buffers in the heap instead of giving them back to the kernel; false where there is no glibc.

    By default every activation above 32 MB, and at first every one above 128 kB, is mapped and unmapped in each step,
    and the page faults cost more than the arithmetic: 1.3 times the step on two cores (Burgess network, batch 64), and
    twice the pass of the encoder in batches of 256.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    accepted = [
        mallopt(_MMAP_THRESHOLD, 1 << 30),
        mallopt(_TRIM_THRESHOLD, 2**31 - 1),
        mallopt(_TOP_PAD, 64 << 20),
    ]
    return all(accepted)
