"""How many steps are handed to a GPU at once."""

import time
from collections import deque

import torch

from pyvae.engine.stepper import BURST, Stepper

# how long a GPU's work handed over at once should take: Ctrl-C waits for two such portions
_PORTION_SECONDS = (0.05, 0.2)


class Pace:
    """Hands a GPU portions of steps, and runs at most two of them ahead of it; a CPU makes one step at a time."""

    def __init__(self, trainer: Stepper) -> None:
        self._trainer = trainer
        self._portion = BURST
        self._ends: deque[tuple[torch.cuda.Event, int]] = deque()
        self._last_end = time.monotonic()

    def advance(self, most: int) -> None:
        """Make some steps, at most ``most``."""
        if self._trainer.device.type != "cuda":
            self._trainer.advance()
            return
        # to where a burst may begin: steps before that are made one by one
        steps = min(most, self._portion - self._trainer.step % BURST)
        self._trainer.advance(steps)
        end = torch.cuda.Event(blocking=True)
        # not the current stream, which is that of the first GPU
        end.record(torch.cuda.current_stream(self._trainer.device))
        self._ends.append((end, steps))
        if len(self._ends) > 2:
            end, steps = self._ends.popleft()
            end.synchronize()
            self._adapt(steps)

    def _adapt(self, steps: int) -> None:
        """Learn from how long ``steps`` took, which may be fewer than a whole portion."""
        now = time.monotonic()
        seconds, self._last_end = (now - self._last_end) * self._portion / steps, now
        shortest, longest = _PORTION_SECONDS
        if seconds < shortest:
            self._portion *= 2
        elif seconds > longest and self._portion > BURST:
            self._portion //= 2
