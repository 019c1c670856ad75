"""Steps a second, and the CPU time of a step."""

import argparse
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch

from interleaved import Spread, synchronise


@dataclass(frozen=True)
class Rate:
    """Of steps, by the clock on the wall and by those of the CPU.

    A thread that waits for another at a barrier mostly spins, which is CPU time too; other processes, such as those of
    a DataLoader, are not counted.
    """

    steps_per_second: Spread
    cpu_ms: Spread
    """CPU time of a step, of all threads of the process."""
    main_thread_cpu_ms: Spread
    """Of the thread that makes the steps."""

    @classmethod
    def of_rounds(cls, rounds: "list[Rate]") -> "Rate":
        return cls(*(Spread.of_rounds([getattr(rate, f.name) for rate in rounds]) for f in fields(cls)))

    def packed(self) -> dict[str, dict[str, float]]:
        """For JSON; :meth:`unpacked` reads it."""
        return asdict(self)

    @classmethod
    def unpacked(cls, packed: dict[str, dict[str, float]]) -> "Rate":
        return cls(**{name: Spread(**spread) for name, spread in packed.items()})

    def row(self) -> dict[str, list[float]]:
        """Quartiles of each, as result files hold them."""
        return {f.name: getattr(self, f.name).rounded() for f in fields(self)}


def rate_of(step: Callable[[], object], steps: int, seconds: float, device: torch.device) -> Rate:
    """Over portions of the time, for a call that makes so many steps; it is called before, to settle."""
    start = time.perf_counter()
    for done in range(5):
        # an importance-weighted step takes seconds on a CPU
        if done and time.perf_counter() - start > seconds:
            break
        step()
        synchronise(device)  # else the clock would be that of the queue
    # a GPU is timed over portions of a tenth of the time, a CPU step by step
    portion = 1
    if device.type == "cuda":
        start = time.perf_counter()
        step()
        synchronise(device)
        portion = max(1, int(seconds / 10 / (time.perf_counter() - start)))
    made = portion * steps
    rates, of_all, of_main = [], [], []
    end = time.perf_counter() + seconds
    while not rates or time.perf_counter() < end:
        start, process, thread = time.perf_counter(), time.process_time(), time.thread_time()
        for _ in range(portion):
            step()
        synchronise(device)
        rates.append(made / (time.perf_counter() - start))
        of_all.append((time.process_time() - process) / made * 1e3)
        of_main.append((time.thread_time() - thread) / made * 1e3)
    return Rate(*map(Spread.of, (rates, of_all, of_main)))


def rates_by_threads(measure: Callable[[], Rate], threads: list[int]) -> dict[str, dict[str, Any]]:
    """Packed rates of the same steps by as many threads as each says, one after another."""
    found = {}
    for count in threads:
        torch.set_num_threads(count)
        found[str(count)] = measure().packed()
    return found


def add_threads(parser: argparse.ArgumentParser) -> None:
    """``--threads``: a list of whole numbers, each once; one and two on a CPU that has two cores, unless said."""
    parser.add_argument(
        "--threads",
        nargs="+",
        type=_count,
        action=_Once,
        default=[1, 2] if (os.cpu_count() or 1) > 1 and not torch.cuda.is_available() else [1],
        metavar="N",
        help="of the CPU: each number in turn; without it, one and two",
    )


class _Once(argparse.Action):
    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: Any = None) -> None:
        setattr(namespace, self.dest, list(dict.fromkeys(values)))


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1, got {text!r}")
    return int(text)
