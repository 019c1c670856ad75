"""Constants that decide the design of the step: launches in a graph, early ones, barriers, convolutions, optimisers."""

import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import bench_train
from gpu_stages.cases import Cases
from gpu_stages.clock import Clock
from pyvae.backend import takes_triton
from pyvae.engine.adam import Adam
from pyvae.engine.arithmetic import settle_arithmetic
from pyvae.nets import build

BATCH = 64
# input channels, output channels, side of the input, transposed
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
FIRST = LAYERS["conv 1-32 at 64"]
PASSES = {
    "forward": (False, False, False),
    "data gradient": (True, False, False),
    "weight gradient": (False, True, False),
}


def launches(case: Cases) -> None:
    """A launch in a graph, early (PDL), in parallel branches, and a barrier among all blocks of a kernel."""
    clock = Clock(case)
    for nodes in (80, 800):
        case(f"kernel in a graph of {nodes}", lambda n=nodes: _chain(clock, n))
    case("kernel outside of a graph", lambda: {"us": clock.microseconds(_adds(clock.device, 80)) / 80})
    if case.dry:
        return  # streams, early launches and barriers are a GPU's
    for count in (4, 8):
        case(f"kernel in a graph of {count} branches", lambda n=count: _branches(clock, n, 80))
    ways = {"one after another": False}
    if torch.cuda.get_device_capability() >= (9, 0):
        ways["early (PDL)"] = True
    for name, early in ways.items():
        case(f"Triton kernel in a graph, {name}", lambda early=early: _links(clock, early))
    case("barrier of all blocks", lambda: _barrier(clock))


def _adds(device: torch.device, nodes: int) -> Callable[[], None]:
    x = torch.zeros(32, device=device)

    def run() -> None:
        for _ in range(nodes):
            x.add_(1.0)

    return run


def _chain(clock: Clock, nodes: int) -> dict[str, Any]:
    replay = clock.graph(_adds(clock.device, nodes))
    us = clock.microseconds(replay) / nodes
    clock.synchronise()
    start = time.perf_counter()
    replay()
    on_host = (time.perf_counter() - start) * 1e6
    clock.synchronise()
    return {"us": round(us, 3), "host_us_of_the_graph": round(on_host, 1)}


def _branches(clock: Clock, count: int, nodes: int) -> dict[str, Any]:
    streams = [torch.cuda.Stream() for _ in range(count)]
    work = [_adds(clock.device, nodes) for _ in streams]

    def run() -> None:
        main = torch.cuda.current_stream()
        for stream, call in zip(streams, work, strict=True):
            stream.wait_stream(main)
            with torch.cuda.stream(stream):
                call()
        # joined after all have forked: else one branch would wait for the other
        for stream in streams:
            main.wait_stream(stream)

    return {"us": round(clock.in_a_graph(run) / (count * nodes), 3)}


def _links(clock: Clock, early: bool) -> dict[str, Any]:
    from gpu_stages.barriers import link

    x = torch.zeros(32, device=clock.device)

    def run() -> None:
        for _ in range(80):
            link(x, early=early)

    replay = clock.graph(run)
    x.zero_()
    replay()
    seen = bool((x == 80).all())
    return {"us": round(clock.microseconds(replay) / 80, 3), "ok": seen}


def _barrier(clock: Clock) -> dict[str, Any]:
    from gpu_stages.barriers import grid_barriers

    blocks = torch.cuda.get_device_properties(clock.device).multi_processor_count
    arrived, rounds = torch.zeros(1, dtype=torch.int32, device=clock.device), 1000

    def run(count: int) -> Callable[[], None]:
        def call() -> None:
            arrived.zero_()
            grid_barriers(arrived, count, blocks)

        return call

    between = clock.microseconds(run(rounds)) - clock.microseconds(run(0))
    return {"us": round(between / rounds, 3), "blocks": blocks}


def optimizers(case: Cases) -> None:
    """Adam and the gradient's norm on the network's own parameters: a launch ends with its longest block, and the
    largest parameter has 131,072 elements."""
    clock = Clock(case)
    case("torch, fused Adam", lambda: {"us": clock.in_a_graph(_torch_adam(clock.device).step)})
    case("torch, norm", lambda: {"us": clock.in_a_graph(_norm(clock.device))})
    if takes_triton(clock.device):
        case("pyvae, norm", lambda: {"us": clock.in_a_graph(_adam(clock.device).norm)})
        case("pyvae, norm and Adam", lambda: {"us": clock.in_a_graph(_adam(clock.device).step)})


def _torch_adam(device: torch.device) -> torch.optim.Adam:
    cuda = device.type == "cuda"
    lr = torch.tensor(1e-4, device=device)
    optimizer = torch.optim.Adam(_parameters(device), lr=lr, fused=True, capturable=cuda)
    optimizer.found_inf = torch.zeros((), device=device)  # type: ignore[attr-defined]
    optimizer.step()
    return optimizer


def _adam(device: torch.device) -> Adam:
    optimizer = Adam(_parameters(device), 1e-4)
    optimizer.step()
    return optimizer


def _norm(device: torch.device) -> Callable[[], Tensor]:
    gradients = [p.grad for p in _parameters(device) if p.grad is not None]
    return lambda: torch.nn.utils.get_total_norm(gradients)


def _parameters(device: torch.device) -> list[torch.nn.Parameter]:
    """Of the Burgess network, as a trainer lays them out, with gradients."""
    net = build(bench_train.RECIPE.architecture, 1, 10).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    parameters = [*net.parameters()]
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    return parameters


def convolutions(case: Cases) -> None:
    """Every layer of the Burgess network, each pass, layout and precision; a case a layer, layout and precision."""
    clock = Clock(case)
    layouts = {"NHWC": torch.channels_last, "NCHW": torch.contiguous_format}
    layers = dict(list(LAYERS.items())[2:3]) if case.dry else LAYERS
    for precision in ("fp32", "bf16") if case.dry else ("tf32", "bf16", "fp32"):
        for name, layout in layouts.items():
            for layer, shape in layers.items():
                case(
                    f"{layer}, {name}, {precision}",
                    lambda s=shape, lay=layout, p=precision: {
                        "us": {
                            what: _convolution(clock, s, mask, lay, p)
                            for what, mask in PASSES.items()
                            if s != FIRST or not mask[0]  # whose data gradient no step asks for
                        }
                    },
                )


def _convolution(
    clock: Clock,
    layer: tuple[int, int, int, bool],
    mask: tuple[bool, bool, bool],
    layout: torch.memory_format,
    precision: str,
) -> float:
    """Microseconds of a convolution, kernel 4, stride 2, padding 1: forward, or what the mask asks of its backward."""
    settle_arithmetic(precision)
    inputs, outputs, side, transposed = layer
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    new = {"device": clock.device, "dtype": dtype}
    x = torch.randn(BATCH, inputs, side, side, **new).contiguous(memory_format=layout)
    shape = (inputs, outputs, 4, 4) if transposed else (outputs, inputs, 4, 4)
    w = torch.randn(shape, **new).contiguous(memory_format=layout)
    forward = F.conv_transpose2d if transposed else F.conv2d
    grad = torch.randn_like(forward(x, w, stride=2, padding=1))
    settings = ([2, 2], [1, 1], [1, 1], transposed, [0, 0], 1, mask)

    def call() -> Tensor | tuple[Tensor, ...]:
        if not any(mask):
            return forward(x, w, stride=2, padding=1)
        return torch.ops.aten.convolution_backward(grad, x, w, None, *settings)

    with torch.no_grad():
        call()
        return clock.in_a_graph(call)
