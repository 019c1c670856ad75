"""What code of a user's own draws from torch's generators: dropout, noise in a loss."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from pyvae.random import word

_STREAM = 0x9E3779B97F4A7C15
"""Its draws are not those of the initial weights, which the seed itself gives."""


class OwnRandom:
    """States of torch's generators that are a run's own, the CPU's and that of its GPU. They stand in the place of the
    process's own while the run makes steps; a captured graph moves the state as the steps in it would have.

    Args:
        seed: of the run.
        device: that trains.
    """

    def __init__(self, seed: int, device: torch.device) -> None:
        self._device = device
        own = word((seed ^ _STREAM) % 2**64)
        self._cpu = torch.Generator().manual_seed(own).get_state()
        # as CUDA's generators are kept: the seed, and how far they are
        self._cuda = torch.tensor([own, 0]).view(torch.uint8)

    def tensors(self) -> dict[str, Tensor]:
        """``random.cpu`` and ``random.cuda``, uint8 on the CPU; both, wherever the run is trained."""
        return {"random.cpu": self._cpu.clone(), "random.cuda": self._cuda.clone()}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Go back to what :meth:`tensors` gave."""
        self._cpu, self._cuda = (tensors[f"random.{name}"].clone() for name in ("cpu", "cuda"))

    @contextmanager
    def running(self) -> Iterator[None]:
        """Within, torch draws what is the run's own; then, what it would have drawn."""
        theirs = torch.get_rng_state()
        torch.set_rng_state(self._cpu)
        on_gpu = self._device.type == "cuda"
        if on_gpu:
            on_device = torch.cuda.get_rng_state(self._device)
            torch.cuda.set_rng_state(self._cuda, self._device)
        try:
            yield
        finally:
            self._cpu = torch.get_rng_state()
            torch.set_rng_state(theirs)
            if on_gpu:
                self._cuda = torch.cuda.get_rng_state(self._device)
                torch.cuda.set_rng_state(on_device, self._device)
