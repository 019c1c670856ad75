import pytest
import torch

from pyvae.engine.allocator import keep_large_buffers


@pytest.fixture(scope="session", autouse=True)
def settled_machine():
    """One thread, and buffers that stay in the heap: page faults otherwise change a time by a factor of four."""
    keep_large_buffers()
    torch.set_num_threads(1)


@pytest.fixture
def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture
def timed(benchmark, device):
    """Time ``call`` after ``derive`` of its result agreed with ``expected``: a wrong result is not timed."""

    def run(call, derive, expected, *, group: str, moved_bytes: int):
        torch.testing.assert_close(derive(*call()), expected, rtol=1e-4, atol=1e-4)

        def synchronised():
            call()
            if device.type == "cuda":
                torch.cuda.synchronize()

        benchmark.group = group
        benchmark.extra_info["bytes"] = moved_bytes
        benchmark.pedantic(synchronised, rounds=30, warmup_rounds=5, iterations=3)
        benchmark.extra_info["GB/s"] = round(moved_bytes / benchmark.stats.stats.median / 1e9, 2)

    return run
