"""Time two ways of making a step, in turns, so that both meet the same noise of the machine."""

import statistics
import time
from collections.abc import Callable

import torch
from torch import nn


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


def spread(module: nn.Module, factor: float = 4.0) -> None:
    """Scale the weights, as if trained: at initialisation KL and total correlation are next to nothing, and a wrong
    weight of theirs would not show."""
    with torch.no_grad():
        for p in module.parameters():
            if p.ndim > 1:
                p.mul_(factor)


def largest_difference(before: list[torch.Tensor], after: list[torch.Tensor]) -> float:
    """The largest difference of two lists of gradients, relative to the largest entry of each."""
    pairs = zip(before, after, strict=True)
    return max(float((a - b).abs().max() / a.abs().max().clamp(min=1e-12)) for a, b in pairs)
