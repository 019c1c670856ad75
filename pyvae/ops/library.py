"""The operator library ``torch.ops.pyvae`` that torch.compile sees; eager calls do not go through it."""

from typing import Any, NoReturn

import torch
from torch import Tensor

LIBRARY = torch.library.Library("pyvae", "DEF")


def next_power_of_two(n: int) -> int:
    """The smallest power of two that is at least n."""
    return 1 << max(n - 1, 0).bit_length()


def refuse_double_backward(ctx: Any, *grads: Tensor | None) -> NoReturn:
    """Backward of the backward operators: torch would warn and go on with a gradient of zero."""
    raise RuntimeError("pyvae ops differentiate once: use pyvae.reference for gradients of gradients")
