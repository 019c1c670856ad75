"""Time two ways of making a step, in turns, so that both meet the same noise of the machine."""

import statistics
import time
from collections.abc import Callable

import torch


def compare(before: Callable[[], object], after: Callable[[], object], rounds: int) -> str:
    """Medians in milliseconds, and their ratio."""
    times: dict[Callable[[], object], list[float]] = {before: [], after: []}
    for step in times:
        step()
    for _ in range(rounds):
        for step, seconds in times.items():
            start = time.perf_counter()
            step()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - start)
    old, new = (statistics.median(seconds) * 1e3 for seconds in times.values())
    return f"{old:.2f} ms a step before, {new:.2f} ms after: {old / new:.2f}x"


def largest_difference(before: list[torch.Tensor], after: list[torch.Tensor]) -> float:
    """The largest difference of two lists of gradients, relative to the largest entry of each."""
    pairs = zip(before, after, strict=True)
    return max(float((a - b).abs().max() / a.abs().max().clamp(min=1e-12)) for a, b in pairs)
