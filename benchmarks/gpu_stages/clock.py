"""Times calls on a device, in graphs where it is a GPU."""

import statistics
import time
from collections.abc import Callable

import torch

from gpu_stages.cases import Cases


class Clock:
    """Medians over rounds; a dry run has a single one.

    Args:
        calls: of what is timed in a graph.
    """

    def __init__(self, case: Cases, calls: int = 16) -> None:
        self.device = case.device
        self._gpu = case.device.type == "cuda"
        self._rounds, self._least_seconds, self._calls = (1, 0.0, 1) if case.dry else (5, 0.003, calls)
        self._warm_up = 1 if case.dry else 3

    def synchronise(self) -> None:
        if self._gpu:
            torch.cuda.synchronize()

    def bytes(self) -> int:
        """Held on the device; zero on a CPU."""
        return torch.cuda.memory_reserved() if self._gpu else 0

    def microseconds(self, call: Callable[[], object]) -> float:
        """Median time of a call, many in a row between two synchronisations."""
        for _ in range(self._warm_up):
            call()
        self.synchronise()
        start = time.perf_counter()
        call()
        self.synchronise()
        count = max(1, int(self._least_seconds / (time.perf_counter() - start)))
        times = []
        for _ in range(self._rounds):
            start = time.perf_counter()
            for _ in range(count):
                call()
            self.synchronise()
            times.append((time.perf_counter() - start) / count * 1e6)
        return round(statistics.median(times), 3)

    def graph(self, call: Callable[[], object]) -> Callable[[], object]:
        """The call as a graph, warmed up; on a CPU as it is."""
        if not self._gpu:
            return call
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            call()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            call()
        return graph.replay

    def in_a_graph(self, call: Callable[[], object]) -> float:
        """Microseconds of a call among many of a graph, whose launch takes the host as long as a few kernels."""

        def calls() -> None:
            for _ in range(self._calls):
                call()

        return round(self.microseconds(self.graph(calls)) / self._calls, 3)
