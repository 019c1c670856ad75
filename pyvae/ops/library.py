"""The operator library ``torch.ops.pyvae`` that torch.compile sees; eager calls do not go through it."""

import torch

LIBRARY = torch.library.Library("pyvae", "DEF")


def next_power_of_two(n: int) -> int:
    """The smallest power of two that is at least n."""
    return 1 << max(n - 1, 0).bit_length()
