"""Benchmark cases of the ops, and how they are timed: checked first, then interleaved, on inputs beyond the cache.

A case is an op at one size: random inputs, the functions that compute it, and what the results must be. The functions
run in turn, block by block and in another order every round, so that a noisy neighbour hits them alike; medians and
quartiles are over the rounds. Inputs that matter to a cache are rotated through more copies than it holds.
"""

import itertools
import statistics
import time
from collections.abc import Callable
from dataclasses import astuple, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyvae.engine.profile import ran_on_gpu

Inputs = tuple[Any, ...]
Outputs = tuple[Any, ...]
COPY = "copy"
GRAPH_CALLS = 16
_SETS = 16
_FEW = 8


@dataclass(frozen=True)
class Case:
    """An op at one size."""

    op: str
    what: str
    """That is timed, such as "loss + gradient"."""
    size: tuple[int, ...]
    make: Callable[[torch.device, torch.Generator], Inputs]
    functions: dict[str, Callable[..., Any]]
    """Of the inputs; the first is the one that the others are compared with."""
    expect: Callable[..., list[Tensor]]
    """What ``derive`` must give, of the inputs."""
    moved: int | dict[str, int]
    """Bytes that must cross memory, of all functions or of each; its count stands beside it. 0 where what is computed
    matters, and not what is moved."""
    evaluate: Callable[[Callable[..., Any], Inputs], Outputs] = lambda function, inputs: function(*inputs)
    """One timed call of a function."""
    derive: Callable[[Inputs, Outputs], list[Tensor]] = lambda _, outputs: [x.detach() for x in outputs]
    """What of a call's outputs is compared."""
    compiled: str | None = None
    """The function that torch.compile is tried on."""
    autotuned: bool = False
    """Whether it is tried on a GPU with max-autotune too, which takes half a minute to compile: at one size an op."""
    tolerance: float = 1e-4
    """Largest error, as a share of the largest value of the result."""
    tolerances: dict[str, float] = field(default_factory=dict)
    devices: tuple[str, ...] = ("cpu", "cuda")
    uncaptured: tuple[str, ...] = ()
    """Functions that no CUDA graph can hold, since they wait for the device."""
    sets: int | None = None
    """Copies of the inputs that are rotated; by their bytes unless given."""
    flop: int = 0
    """Multiplications and additions of a call, as the plain formula makes them; 0: not counted."""

    @property
    def label(self) -> str:
        return " x ".join(map(str, self.size))

    def names(self, device: torch.device) -> list[str]:
        """Of the functions that are timed on a device."""
        tried = ["compile"] if self.compiled else []
        if self.compiled and self.autotuned and device.type == "cuda":
            tried.append("compile, max-autotune")
        return [*self.functions, *tried]

    def function(self, name: str) -> Callable[..., Any]:
        """One of :meth:`names`."""
        if name in self.functions:
            return self.functions[name]
        # graphs are captured here, around every function alike
        mode = "max-autotune-no-cudagraphs" if name.endswith("max-autotune") else None
        return torch.compile(self.functions[self.compiled or ""], mode=mode, dynamic=False)

    def bytes_of(self, name: str) -> int:
        """Counted for a function; for a compiled one those of what was compiled."""
        if isinstance(self.moved, int):
            return self.moved
        return self.moved[name if name in self.functions else self.compiled or ""]

    def inputs(self, device: torch.device) -> list[Inputs]:
        """Copies of the inputs, each drawn on its own."""
        generator = torch.Generator(device).manual_seed(0)
        least = self.moved if isinstance(self.moved, int) else min(self.moved.values())
        count = self.sets or rotation(least, cache_bytes(device))
        return [self.make(device, generator) for _ in range(count)]

    def gate(self, name: str, inputs: Inputs, outputs: Outputs) -> None:
        """Raises:
        AssertionError: the outputs are not what the op gives.
        """
        tolerance = self.tolerances.get(name, self.tolerance)
        actual, expected = self.derive(inputs, outputs), self.expect(*inputs)
        assert len(actual) == len(expected), f"{len(actual)} results where {len(expected)} are due"
        for result, right in zip(actual, expected, strict=True):
            # where the result lies: the largest would take seconds on a CPU
            x, y = result.double(), right.to(result.device).double()
            torch.testing.assert_close(x, y, rtol=0, atol=tolerance * float(y.abs().max()))


@dataclass(frozen=True)
class Runner:
    """``calls`` calls of a function per call of ``run``, which is given the number of the call."""

    run: Callable[[int], object]
    calls: int = 1


def each(cases: list[Case]) -> Any:
    """Marks a pytest function of ``case`` and ``function``, the name of one of the case's functions."""
    import pytest  # the rest of this file serves without

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    pairs = [(c, name) for c in cases if device.type in c.devices for name in c.names(device)]
    return pytest.mark.parametrize(
        ("case", "function"), pairs, ids=[f"{c.label.replace(' ', '')}-{name}" for c, name in pairs]
    )


def rotation(moved: int, cache: int) -> int:
    """Copies of inputs of ``moved`` bytes: 1 where they are at home in a cache, else twice as many as fill it."""
    return 1 if moved < cache / 8 else min(_SETS, max(2, -(-2 * cache // moved)))


def cache_bytes(device: torch.device) -> int:
    """The last level before memory."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).L2_cache_size)
    try:
        text = Path("/sys/devices/system/cpu/cpu0/cache/index3/size").read_text().strip()
        return int(text.removesuffix("K")) * 1024
    except (OSError, ValueError):
        return 32 << 20


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def prepare(case: Case, name: str, sets: list[Inputs]) -> Runner:
    """A function on rotated inputs, when its results are right.

    Raises:
        AssertionError: they are wrong, and so will not be timed.
    """
    function = case.function(name)
    for inputs in {0: sets[0], len(sets) - 1: sets[-1]}.values():
        case.gate(name, inputs, case.evaluate(function, inputs))
    count = len(sets)
    return Runner(lambda i: case.evaluate(function, sets[i % count]))


def capture(case: Case, name: str, sets: list[Inputs]) -> Runner:
    """As :func:`prepare`, as one CUDA graph of calls in a row."""
    function = case.function(name)
    calls = _in_a_graph(len(sets))
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            case.evaluate(function, sets[0])
    stream = torch.cuda.current_stream()
    stream.wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    outputs: Outputs = ()
    try:
        with torch.cuda.graph(graph):
            for i in range(calls):
                outputs = ()  # the memory of the last call is free for the next
                outputs = case.evaluate(function, sets[i % len(sets)])
    except Exception:
        torch.cuda.set_stream(stream)  # a capture that breaks off leaves its own
        raise
    graph.replay()
    torch.cuda.synchronize()
    case.gate(name, sets[-1], outputs)
    return Runner(lambda _: graph.replay(), calls)


def _in_a_graph(sets: int) -> int:
    """Calls: every set as often as the others, so that a replay never begins with what the last one left cached."""
    return sets * -(-GRAPH_CALLS // sets)


def copy_runner(moved: int, device: torch.device) -> Callable[[], Runner]:
    """A copy that reads and writes ``moved`` bytes together: from sources that rotate as the inputs do to one target,
    since the outputs of a function lie where those of its last call lay.
    """
    floats = max(1, moved // 8)
    count = rotation(moved, cache_bytes(device))
    # all written once: the first touch of a page is no part of a copy
    sources = [torch.ones(floats, device=device) for _ in range(count)]
    target = torch.zeros(floats, device=device)

    def run(i: int) -> Tensor:
        return target.copy_(sources[i % count])

    def captured() -> Runner:
        calls = _in_a_graph(count)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for i in range(calls):
                run(i)
        return Runner(lambda _: graph.replay(), calls)

    return captured if device.type == "cuda" else lambda: Runner(run)


@dataclass(frozen=True)
class Spread:
    """Median and quartiles; of a few values, the least and the greatest."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: list[float]) -> "Spread":
        if len(values) < 2:
            return cls(values[0], values[0], values[0])
        low, median, high = statistics.quantiles(values, n=4, method="inclusive")
        if len(values) < _FEW:
            low, high = min(values), max(values)
        return cls(median, low, high)

    @classmethod
    def of_rounds(cls, rounds: "list[Spread]") -> "Spread":
        """Of the medians of the rounds; of fewer than three rounds, what they had within them."""
        if len(rounds) >= 3:
            return cls.of([spread.median for spread in rounds])
        return cls(*(statistics.median(values) for values in zip(*map(astuple, rounds), strict=True)))

    def rounded(self) -> list[float]:
        """Low quartile, median and high quartile to five digits."""
        return [float(f"{x:.5g}") for x in (self.low, self.median, self.high)]


def interleave(
    runners: dict[str, Runner],
    device: torch.device,
    *,
    rounds: int,
    block_seconds: float,
    limit_seconds: float,
    clock: Callable[[], float] | None = None,
) -> dict[str, list[float]]:
    """Microseconds per call, host included, of every runner in every round.

    Args:
        runners: by name.
        device: that they run on.
        rounds: of all runners; three are always made, the others within the limit.
        block_seconds: that a runner repeats its call for, at least one call.
        limit_seconds: after which no round begins.
        clock: of the calls, in seconds; that on the wall unless given.
    """
    clock = clock or time.perf_counter
    counts = {}
    for name, runner in runners.items():
        for i in range(2):
            runner.run(i)
        synchronise(device)
        once = _block(runner, device, itertools.count(), 1, clock)
        counts[name] = max(1, int(block_seconds / max(once, 1e-9)))
    times: dict[str, list[float]] = {name: [] for name in runners}
    places = {name: itertools.count() for name in runners}
    names = list(runners)
    end = time.perf_counter() + limit_seconds
    for done in range(rounds):
        if done >= 3 and time.perf_counter() > end:
            break
        shift = done % len(names)
        for name in names[shift:] + names[:shift]:
            runner = runners[name]
            seconds = _block(runner, device, places[name], counts[name], clock)
            times[name].append(seconds / (counts[name] * runner.calls) * 1e6)
    return times


def _block(
    runner: Runner,
    device: torch.device,
    place: "itertools.count[int]",
    count: int,
    clock: Callable[[], float],
) -> float:
    start = clock()
    for _ in range(count):
        runner.run(next(place))
    synchronise(device)
    return clock() - start


def device_microseconds(runner: Runner, calls: int = 3) -> float:
    """Time of a call's kernels, copies and fills alone, on a GPU."""
    runner.run(0)
    torch.cuda.synchronize()
    activity = torch.profiler.ProfilerActivity
    with torch.profiler.profile(activities=[activity.CPU, activity.CUDA]) as profiler:
        for i in range(calls):
            runner.run(i)
        torch.cuda.synchronize()
    spent = sum(event.time_range.elapsed_us() for event in profiler.events() or () if ran_on_gpu(event))
    return spent / (calls * runner.calls)


def measure(
    case: Case, device: torch.device, *, profiled: bool = True, **timing: Any
) -> tuple[list[dict[str, Any]], list[str]]:
    """A row for every function, outside and on a GPU also inside a graph, and what was refused or failed.

    Args:
        case: what is measured.
        device: where.
        profiled: whether a GPU also tells the time of the kernels alone, which takes a profile of every function.
        **timing: of :func:`interleave`.

    Returns:
        rows, and one line for every function whose result is wrong: it is not timed.
    """
    torch._dynamo.reset()
    sets = case.inputs(device)
    runners: dict[str, Runner] = {}
    rows: dict[str, dict[str, Any]] = {}
    wrong: list[str] = []
    ways = [(False, prepare), *([(True, capture)] if device.type == "cuda" else [])]
    for name in case.names(device):
        for graph, make in ways:
            if graph and name in case.uncaptured:
                continue
            key = f"{name}, graph" if graph else name
            rows[key] = {"provider": name, "graph": graph, "bytes": case.bytes_of(name)}
            try:
                runners[key] = make(case, name, sets)
            except AssertionError as error:
                rows[key]["refused"] = f"wrong result: {' '.join(str(error).split())[:200]}"
                wrong.append(f"{case.op} {case.label}, {key}: {rows[key]['refused']}")
                break
            except Exception as error:  # a compiler of Triton's raises what derives from no other
                rows[key]["refused"] = f"failed: {' '.join(str(error).split())[:200]}"
    copies = {name: f"{COPY} {moved}" for name in case.names(device) if (moved := case.bytes_of(name))}
    for moved in {case.bytes_of(name) for name in copies}:
        runners[f"{COPY} {moved}"] = copy_runner(moved, device)()
    times = interleave(runners, device, **timing) if runners else {}
    for key, row in rows.items():
        if key in runners:
            _fill(case, row, times[key], times.get(copies.get(row["provider"], "")))
            if profiled and device.type == "cuda":
                row["device_us"] = float(f"{device_microseconds(runners[key]):.5g}")
    for row in rows.values():
        base = rows.get(
            f"{next(iter(case.functions))}, graph" if row["graph"] else next(iter(case.functions))
        )
        if base and "us" in row and "us" in base:
            row["speedup"] = float(f"{base['us'][1] / row['us'][1]:.4g}")
    identity = {"op": case.op, "what": case.what, "size": case.label, "sets": len(sets)}
    return [identity | row for row in rows.values()], wrong


def _fill(case: Case, row: dict[str, Any], times: list[float], copy: list[float] | None) -> None:
    spread = Spread.of(times)
    row["us"], row["rounds"] = spread.rounded(), len(times)
    if copy:
        row["gb_per_s"] = float(f"{row['bytes'] / spread.median / 1e3:.4g}")
        row["of_copy"] = float(f"{statistics.median(copy) / spread.median:.4g}")
    if case.flop:
        row["gflop_per_s"] = float(f"{case.flop / spread.median / 1e3:.4g}")
