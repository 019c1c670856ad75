import itertools

import pytest
import torch

from interleaved import prepare, synchronise
from pyvae.base.allocator import keep_large_buffers


@pytest.fixture(scope="session", autouse=True)
def settled_machine():
    """One thread, and buffers that stay in the heap: page faults otherwise change a time by a factor of four."""
    keep_large_buffers()
    torch.set_num_threads(1)


@pytest.fixture
def timed(benchmark):
    """Time a function of a case, once its results have been checked."""

    def run(case, name):
        torch._dynamo.reset()
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        runner = prepare(case, name, case.inputs(device))
        place = itertools.count()

        def call():
            runner.run(next(place))
            synchronise(device)

        benchmark.group = f"{case.op}, {case.what}, {case.label}"
        benchmark.pedantic(call, rounds=10, warmup_rounds=2)
        median = benchmark.stats.stats.median
        if moved := case.bytes_of(name):
            benchmark.extra_info |= {"bytes": moved, "GB/s": round(moved / median / 1e9, 2)}
        if case.flop:
            benchmark.extra_info["GFLOP/s"] = round(case.flop / median / 1e9, 1)

    return run
