"""Constants that decide the design of the step, measured before anything is tuned for a new GPU.

``python benchmarks/first_measurements.py --out benchmarks/results/first-h200.json``: what a launch costs inside a CUDA
graph, early or not, a graph's launch itself, a barrier among all blocks of a kernel, cuDNN's time for every convolution
of the Burgess network, forward and both backward parts, by layout and precision, and the fused Adam. Convolutions and
Adam run on a CPU as well; graphs need a GPU.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from machine import save
from pyvae.engine.arithmetic import settle_arithmetic

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
BATCH = 64
# input channels, output channels, side of the input, transposed: those with 64 x 64 pixels at one end come twice
LAYERS = {
    "conv 1-32 at 64": (1, 32, 64, False),
    "conv 32-32 at 32": (32, 32, 32, False),
    "conv 32-32 at 16": (32, 32, 16, False),
    "conv 32-32 at 8": (32, 32, 8, False),
    "deconv 32-32 at 4": (32, 32, 4, True),
    "deconv 32-32 at 8": (32, 32, 8, True),
    "deconv 32-32 at 16": (32, 32, 16, True),
    "deconv 32-1 at 32": (32, 1, 32, True),
}
PASSES = {
    "forward": (False, False, False),
    "data gradient": (True, False, False),
    "weight gradient": (False, True, False),
}


def _synchronise() -> None:
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def microseconds(call: Callable[[], object], *, rounds: int = 15, least_seconds: float = 0.01) -> float:
    """Median time of a call, many in a row between two synchronisations."""
    for _ in range(3):
        call()
    _synchronise()
    start = time.perf_counter()
    call()
    _synchronise()
    count = max(1, int(least_seconds / (time.perf_counter() - start)))
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        for _ in range(count):
            call()
        _synchronise()
        times.append((time.perf_counter() - start) / count * 1e6)
    return statistics.median(times)


def graph_of(call: Callable[[], object]) -> torch.cuda.CUDAGraph:
    """A graph of the call, warmed up."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph


def launches() -> dict[str, float]:
    """Microseconds of dependent and of parallel tiny kernels in a graph, and of the CPU to launch one."""
    x = torch.zeros(32, device=DEVICE)

    def chain(nodes: int) -> Callable[[], None]:
        def run() -> None:
            for _ in range(nodes):
                x.add_(1.0)

        return run

    def branches(count: int, nodes: int) -> Callable[[], None]:
        streams = [torch.cuda.Stream() for _ in range(count)]
        own = [torch.zeros(32, device=DEVICE) for _ in range(count)]

        def run() -> None:
            main = torch.cuda.current_stream()
            for stream, y in zip(streams, own, strict=True):
                stream.wait_stream(main)
                with torch.cuda.stream(stream):
                    for _ in range(nodes):
                        y.add_(1.0)
                main.wait_stream(stream)

        return run

    results = {}
    for nodes in (80, 800):
        graph = graph_of(chain(nodes))
        results[f"kernel in a graph of {nodes}"] = microseconds(graph.replay) / nodes
        _synchronise()
        start = time.perf_counter()
        graph.replay()
        results[f"CPU launch of a graph of {nodes}"] = (time.perf_counter() - start) * 1e6
    results["kernel outside of a graph"] = microseconds(chain(80)) / 80
    for count in (4, 8):
        graph = graph_of(branches(count, 80))
        results[f"kernel in a graph of {count} branches"] = microseconds(graph.replay) / (80 * count)
    return results


def early_launches() -> dict[str, float]:
    """Microseconds of dependent Triton kernels in a graph of 80, launched one after another or early."""
    from barriers import link

    x = torch.zeros(32, device=DEVICE)
    ways = {"one after another": False}
    if torch.cuda.get_device_capability() >= (9, 0):
        ways["early (PDL)"] = True

    def chain(early: bool) -> Callable[[], None]:
        def run() -> None:
            for _ in range(80):
                link(x, early=early)

        return run

    results = {}
    for name, early in ways.items():
        graph = graph_of(chain(early))
        x.zero_()
        graph.replay()
        if (x != 80).any():
            raise SystemExit(f"80 dependent kernels, {name}, did not all see the one before")
        results[f"Triton kernel in a graph, {name}"] = microseconds(graph.replay) / 80
    return results


def barriers() -> dict[str, float]:
    """Microseconds of a barrier among as many blocks as there are multiprocessors, within one kernel."""
    from barriers import grid_barriers

    blocks, rounds = torch.cuda.get_device_properties(DEVICE).multi_processor_count, 1000
    arrived = torch.zeros(1, dtype=torch.int32, device=DEVICE)

    def run(count: int) -> Callable[[], None]:
        def call() -> None:
            arrived.zero_()
            grid_barriers(arrived, count, blocks)

        return call

    between = microseconds(run(rounds)) - microseconds(run(0))
    return {f"barrier of {blocks} blocks": between / rounds}


def convolution(
    layer: tuple[int, int, int, bool], mask: tuple[bool, bool, bool], layout: Any, dtype: Any
) -> float:
    """Microseconds of a convolution, kernel 4, stride 2, padding 1: forward, or what the mask asks of its backward."""
    inputs, outputs, side, transposed = layer
    x = torch.randn(BATCH, inputs, side, side, device=DEVICE, dtype=dtype).contiguous(memory_format=layout)
    shape = (inputs, outputs, 4, 4) if transposed else (outputs, inputs, 4, 4)
    w = torch.randn(shape, device=DEVICE, dtype=dtype).contiguous(memory_format=layout)
    forward = F.conv_transpose2d if transposed else F.conv2d
    grad = torch.randn_like(forward(x, w, stride=2, padding=1))
    settings = ([2, 2], [1, 1], [1, 1], transposed, [0, 0], 1, mask)

    def call() -> Tensor | tuple[Tensor, ...]:
        if not any(mask):
            return forward(x, w, stride=2, padding=1)
        return torch.ops.aten.convolution_backward(grad, x, w, None, *settings)

    call()
    run = graph_of(call).replay if DEVICE.type == "cuda" else call
    return microseconds(run)


def convolutions() -> dict[str, float]:
    """Microseconds of each layer, pass, layout and precision."""
    results = {}
    for precision in ("fp32", "tf32", "bf16") if DEVICE.type == "cuda" else ("fp32", "bf16"):
        settle_arithmetic(precision)
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        for layout in (torch.contiguous_format, torch.channels_last):
            name = "NHWC" if layout == torch.channels_last else "NCHW"
            for layer, shape in LAYERS.items():
                for what, mask in PASSES.items():
                    key = f"{layer}, {what}, {name}, {precision}"
                    results[key] = convolution(shape, mask, layout, dtype)
    return results


def adam() -> dict[str, float]:
    """Microseconds of a fused Adam step over half a million and five million weights in 20 tensors."""
    results = {}
    for size in (500_000, 5_000_000):
        parameters = [torch.zeros(size // 20, device=DEVICE, requires_grad=True) for _ in range(20)]
        for parameter in parameters:
            parameter.grad = torch.ones_like(parameter)
        optimizer = torch.optim.Adam(parameters, fused=True, capturable=DEVICE.type == "cuda")
        optimizer.step()
        run = graph_of(optimizer.step).replay if DEVICE.type == "cuda" else optimizer.step
        results[f"fused Adam, {size:,} weights"] = microseconds(run)
    return results


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, help="write the results there as JSON")
    options = parser.parse_args()
    torch.set_grad_enabled(False)
    parts = {"convolutions": convolutions, "adam": adam}
    if DEVICE.type == "cuda":
        parts |= {"launches": launches, "early launches": early_launches, "barriers": barriers}
    results = {}
    for part, measure in parts.items():
        results[part] = measure()
        for name, value in results[part].items():
            print(f"{value:10.2f} us  {name}", flush=True)
        save(options.out, microseconds=results)


if __name__ == "__main__":
    main()
