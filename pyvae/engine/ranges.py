"""Names for the parts of a step, which Nsight Systems shows."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch


def _ranges() -> Callable[[str], AbstractContextManager[object]]:
    try:
        from nvtx import annotate
    except ImportError:
        # in a torch without CUDA its own ranges raise
        return torch.cuda.nvtx.range if torch.version.cuda else nullcontext
    return annotate


named = _ranges()
"""``with named("encoder"):`` marks what runs within, for half a microsecond; without nvtx and CUDA it does nothing."""
