"""Torch as it is when nobody has changed anything."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch


@contextmanager
def usual_torch() -> Iterator[None]:
    """Gradients are recorded, new tensors are float32 on the CPU, and nothing is cast: whatever surrounds the call in
    somebody's program. All is put back."""
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))  # which ends no_grad too
        if (before := torch.get_default_dtype()) != torch.float32:
            torch.set_default_dtype(torch.float32)
            stack.callback(torch.set_default_dtype, before)
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        for kind in ("cpu", "cuda"):
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        yield
