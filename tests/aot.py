"""Compile every Triton kernel for NVIDIA GPUs without having one, as the ops would launch it.

``python tests/aot.py`` prints registers, shared memory, spills, 128-bit loads and stores of each; test_aot.py reads it
with ``--json``. The launches are those of pyvae/ops, recorded on meta tensors, so tiles, flags and the specialisation
of integers are the real ones.
"""

import argparse
import ast
import json
import os
import re
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch

from pyvae.base.checks import importance_layout, pixel_layout
from pyvae.engine import adam, binarise, controller, draw, ledger
from pyvae.nets import bias_activation, build, build_discriminator
from pyvae.nets.bias_activation import Activation
from pyvae.objectives import ControlVAE, InfoGAN
from pyvae.ops import (
    aggregate_log_density,
    bernoulli_nll,
    gather_bits,
    importance_log_weight,
    reparameterize_kl,
)
from pyvae.random import Stream

sys.path.append(str(Path(__file__).resolve().parents[1] / "benchmarks"))
from machine_code import Launch, code_of, compiled, function, specialised

ROOT = Path(__file__).resolve().parents[1]
KERNELS = ROOT / "kernels"
ARCHITECTURES = (80, 90, 100, 120)
HAND_OVER = re.compile(
    r"st\.global(?:(?!\bst\.global).)*?bar\.sync(?:(?!\bst\.global).)*?"
    r"atom\.global\.gpu\.acq_rel\.add\.u32.*?bar\.sync.*?ld\.global\.cg",
    re.DOTALL,
)
"""What was stored, past a barrier and an acquire-release of all of the GPU, then read past another and past the L1."""


class Figures(NamedTuple):
    kernel: str
    label: str
    arch: int
    registers: int
    shared: int
    stack: int
    spilled: int
    wide_loads: int
    wide_stores: int
    hands_over: bool | None
    """Whether HAND_OVER is there; ``None`` without an atomic operation."""


def kernels(fused: bool = False) -> list[tuple[str, str]]:
    """(module, name) of every kernel in kernels/: of ops and of the engine, or those of fused networks."""
    return [
        (path.stem, node.name)
        for path in sorted(KERNELS.glob("*.py"))
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.FunctionDef) and node.name.endswith("_kernel")
        # what only those have
        if ("from .operands import" in path.read_text()) == fused
    ]


class Recorder:
    """Stands in for a kernel and keeps what it is launched with."""

    def __init__(self, kernel: tuple[str, str], launches: dict[Launch, None]) -> None:
        self._kernel = kernel
        # before it stands in for it
        self._names = function(kernel).arg_names
        self._launches = launches
        self.label = ""

    def __getitem__(self, grid: tuple[int, ...]) -> "Recorder":
        return self

    def __call__(self, *args: Any, **named: Any) -> None:
        launch = specialised(self._kernel, self.label, self._names, args, named)
        if all(launch._replace(label=known.label) != known for known in self._launches):
            self._launches[launch] = None


def launches() -> list[Launch]:
    """What the ops launch over a covering set of sizes, dtypes and flags."""
    found: dict[Launch, None] = {}
    recorders = [Recorder(kernel, found) for kernel in kernels()]
    with ExitStack() as stack:
        for recorder, (module, name) in zip(recorders, kernels(), strict=True):
            stack.enter_context(mock.patch(f"pyvae.kernels.{module}.{name}", recorder))

        def label(text: str) -> None:
            for recorder in recorders:
                recorder.label = text

        for case in REPARAMETERIZE_KL:
            label(" ".join(str(x).removeprefix("torch.") for x in case))
            _launch_reparameterize_kl(*case)
        for case in BERNOULLI_NLL:
            label(" ".join(str(x).removeprefix("torch.") for x in case))
            _launch_bernoulli_nll(*case)
        for case in AGGREGATE_LOG_DENSITY:
            label(" ".join(str(x).removeprefix("torch.") for x in case))
            _launch_aggregate_log_density(*case)
        for case in IMPORTANCE_LOG_WEIGHT:
            label(" ".join(str(x).removeprefix("torch.") for x in case))
            _launch_importance_log_weight(*case)
        for case in GATHER_BITS:
            label(" ".join(str(x).removeprefix("torch.") for x in case))
            _launch_gather_bits(*case)
        for case in BINARISE:
            label(" ".join(map(str, (*case, "float32"))))
            _launch_binarise(*case)
        for case in BIAS_ACTIVATION:
            label(" ".join(str(x).removeprefix("torch.") for x in case))
            _launch_bias_activation(*case)
        for case in DRAW:
            label(" ".join(map(str, case)))
            _launch_draw(*case)
        for case in CONTROLLER:
            label(" ".join(map(str, case.values())) or "defaults")
            _launch_controller(**case)
        for case in LEDGER:
            label(" ".join(map(str, case)))
            _launch_ledger(*case)
        for case in ADAM:
            label(" ".join(map(str, case)))
            _launch_adam(*case)
    return list(found)


# batch, latents, dtype, layout of the inputs, which upstream gradients there are
REPARAMETERIZE_KL = [
    (64, 10, torch.float32, "dense", "z kl"),
    (64, 10, torch.float32, "chunked", "z kl"),
    (64, 10, torch.bfloat16, "dense", "z"),
    (64, 128, torch.float32, "dense", "z kl"),
    (64, 128, torch.float32, "transposed", "kl"),
    (64, 128, torch.bfloat16, "dense", "z kl"),
    (64, 128, torch.float16, "dense", "z kl"),
    (64, 1, torch.float32, "dense", "z kl"),
    (1, 1, torch.float32, "dense", "z kl"),
    (1, 1, torch.float16, "dense", "kl"),
    (1, 130, torch.float32, "dense", "z"),
    (3, 4, torch.bfloat16, "members", "z kl"),
]

# batch, pixels, dtype of the logits, target, reduction
BERNOULLI_NLL = [
    (64, 4096, torch.float32, "bits", "batchmean"),
    (64, 4096, torch.float32, torch.float32, "batchmean"),
    (64, 4096, torch.float32, torch.uint8, "batchmean"),
    (64, 4096, torch.bfloat16, "bits", "batchmean"),
    (64, 4096, torch.bfloat16, torch.bfloat16, "none"),
    (64, 4096, torch.float16, torch.float32, "sum"),
    (63, 784, torch.float32, torch.float32, "none"),
    (63, 784, torch.float32, "bits", "none"),
    (63, 65, torch.float32, "bits", "batchmean"),
    (1, 1, torch.float32, torch.float32, "batchmean"),
    (1, 1, torch.float32, "bits", "none"),
    (1, 8, torch.float16, torch.uint8, "batchmean"),
]


# batch, latents, dtype, layout of the posteriors
AGGREGATE_LOG_DENSITY = [
    (64, 10, torch.float32, "dense"),
    (64, 10, torch.float32, "chunked"),
    (2048, 10, torch.bfloat16, "chunked"),
    (20_000, 128, torch.float32, "dense"),
    (63, 3, torch.float32, "transposed"),
    (2, 1, torch.float32, "dense"),
    (1, 3, torch.float16, "dense"),
]

# batch, pixels, dtype of the images
GATHER_BITS = [
    (64, 4096, torch.float32),
    (64, 4096, torch.bfloat16),
    (64, 4096, torch.float16),
    (64, 4096, torch.uint8),
    (63, 785, torch.float32),
    (1, 8, torch.uint8),
]


def _launch_gather_bits(batch: int, pixels: int, dtype: torch.dtype) -> None:
    store = torch.empty((1000, -(-pixels // 8)), dtype=torch.uint8, device="meta")
    gather_bits._launch(store, torch.empty(batch, dtype=torch.int64, device="meta"), pixels, dtype)


# batch, pixels
BINARISE = [(20, 784), (64, 4096), (3, 25), (1, 1)]


def _launch_binarise(batch: int, pixels: int) -> None:
    seed = torch.empty((), dtype=torch.int64, device="meta")
    binarise._launch(torch.empty((batch, pixels), device="meta"), seed, seed, Stream.BINARISATION)


# shape of a product, dtype, activation, memory order of the product, and of what is behind it
BIAS_ACTIVATION = [
    ((64, 32, 32, 32), torch.float32, "relu", "channels last", "channels last"),
    ((64, 32, 32, 32), torch.bfloat16, "relu", "channels last", "channels last"),
    ((64, 64, 8, 8), torch.float16, "leaky_relu", "channels last", "channels last"),
    ((64, 32, 32, 32), torch.float32, "relu", "dense", "dense"),
    ((64, 32, 4, 4), torch.float32, "relu", "channels last", "dense"),
    ((64, 64, 4, 4), torch.bfloat16, "relu", "channels last", "dense"),
    ((64, 512), torch.float32, "relu", "dense", "maps"),
    ((64, 1024), torch.bfloat16, "relu", "dense", "maps"),
    ((64, 1, 64, 64), torch.float32, "identity", "channels last", "channels last"),
    ((64, 3, 64, 64), torch.float32, "identity", "channels last", "dense"),
    ((64, 1, 64, 64), torch.bfloat16, "identity", "channels last", "channels last"),
    ((64, 256), torch.float32, "relu", "dense", "dense"),
    ((128, 1000), torch.float32, "leaky_relu", "dense", "dense"),
    ((128, 1000), torch.bfloat16, "leaky_relu", "dense", "dense"),
    ((64, 1200), torch.float32, "tanh", "dense", "dense"),
    ((128, 2), torch.float32, "identity", "dense", "dense"),
    ((2048, 256), torch.float32, "relu", "dense", "dense"),
    ((1, 1), torch.float32, "relu", "dense", "dense"),
]


def _launch_bias_activation(
    shape: tuple[int, ...], dtype: torch.dtype, kind: str, layout: str, behind: str
) -> None:
    x = torch.empty(shape, dtype=dtype, device="meta")
    y = x
    if behind == "maps":
        maps = (shape[0], shape[1] // 16, 4, 4)
        x, y = x.view(maps), torch.empty(maps, dtype=dtype, device="meta", memory_format=torch.channels_last)
    if layout == "channels last":
        x = x.contiguous(memory_format=torch.channels_last)
        y = x if behind == "channels last" else torch.empty_like(x, memory_format=torch.contiguous_format)
    bias = torch.empty(shape[1], device="meta")
    activation = Activation(kind, 0.2)
    if kind != "tanh":
        bias_activation.forward(x, bias, activation, y)
    tickets = torch.empty(bias_activation.ticket_count(len(bias)), dtype=torch.int32, device="meta")
    output = None if kind == "identity" else y
    bias_activation.backward(
        y, output, activation, x if output is not None or y is not x else None, bias, tickets
    )
    if output is not None:
        bias_activation.backward(y, output, activation, x, None, None)


# rows, points, noise, continuous codes, categories
DRAW = [(192, 0, 5, 4, 3), (384, 320, 5, 5, 0), (64, 64, 128, 0, 10), (7, 3, 0, 1, 0), (33, 1, 3000, 17, 0)]


def _launch_draw(rows: int, points: int, noise: int, continuous: int, categories: int) -> None:
    objective = InfoGAN(noise=noise, continuous=continuous, categories=categories)
    draw._launch(objective, torch.empty(2, dtype=torch.int64, device="meta"), rows, points)


# of the objective
CONTROLLER: list[dict[str, Any]] = [
    {},
    {"schedule": "linear", "proportional": "linear", "beta_max": 10.0, "anti_windup": "paper"},
    {"schedule": "constant", "anti_windup": "published"},
    {"schedule": "adaptive", "adaptive_compared": "unlimited", "adaptive_tie": "hold"},
    {"schedule": "adaptive", "adaptive_window": 9, "adaptive_smoothing": 0.5},
]

# values, latents, whether there is a controller, whether the step ends
LEDGER = [(6, 10, False, True), (6, 10, True, True), (8, 1, False, False), (8, 128, False, True)]


def _launch_controller(**changes: Any) -> None:
    with mock.patch.object(controller, "takes_triton", return_value=True):
        control = controller.controller(ControlVAE(**changes), torch.device("meta"))
    state = ControlVAE().initial_control("meta")
    control(state, torch.empty((), device="meta"), torch.empty((), dtype=torch.int64, device="meta"))


def _launch_ledger(values: int, latents: int, controlled: bool, ends: bool) -> None:
    control = ControlVAE().initial_control("meta") if controlled else None
    names = [str(i) for i in range(values + latents)]
    with mock.patch.object(ledger, "takes_triton", return_value=True):
        mine = ledger.Ledger(names, 0, rows=4096, log_every=100, device=torch.device("meta"), control=control)
    scalars = [torch.empty((), device="meta", dtype=d) for d in (torch.float32, torch.float64)]
    row, kl = [scalars[controlled and i % 2] for i in range(values)], torch.empty(latents, device="meta")
    if ends:
        mine.settle(row, kl, control)
    else:
        mine.judge(row, kl)


# whose parameters, dtype of their gradients
ADAM = [
    ("burgess", "float32"),
    ("burgess", "bfloat16"),
    ("discriminator", "float32"),
    ("one", "float32"),
    ("more than 2^31", "float32"),
]


def _launch_adam(net: str, gradients: str) -> None:
    makers = {
        "burgess": lambda: build("burgess", 1, 10).to(memory_format=torch.channels_last),
        "discriminator": lambda: build_discriminator(10, 6, 1000),
        "one": lambda: torch.nn.Linear(1, 1, bias=False),
        "more than 2^31": lambda: torch.nn.Linear(2**16, 2**15 + 1, device="meta"),
    }
    parameters = list(makers[net]().to("meta").parameters())
    for parameter in parameters:
        parameter.grad = torch.empty_like(parameter)
    optimizer = adam.Adam(parameters, 1e-4)
    for parameter in parameters:
        if gradients == "bfloat16" and parameter.dim() > 1:
            leaf = optimizer.rounded(parameter)
            leaf.grad, parameter.grad = torch.empty_like(leaf), None
    optimizer.norm()
    optimizer.step()


# batch, pixels, dtype of the logits, target, samples, latents, layout of the posteriors
IMPORTANCE_LOG_WEIGHT = [
    (64, 4096, torch.float32, "bits", 64, 16, "dense"),
    (64, 4096, torch.float32, torch.float32, 64, 128, "chunked"),
    (20, 784, torch.float32, "bits", 64, 50, "chunked"),
    (20, 784, torch.float32, torch.bool, 64, 50, "dense"),
    (20, 784, torch.bfloat16, torch.float32, 1, 50, "dense"),
    (63, 65, torch.float16, torch.uint8, 7, 10, "chunked"),
    (1, 1, torch.float32, "bits", 1, 1, "dense"),
]


def _launch_importance_log_weight(
    batch: int,
    pixels: int,
    dtype: torch.dtype,
    target: torch.dtype | str,
    samples: int,
    latents: int,
    layout: str,
) -> None:
    logits = torch.empty((batch, 1, samples, pixels), dtype=dtype, device="meta")
    z = torch.empty((batch, 1, samples, latents), device="meta")
    mu, logvar = torch.empty((batch, 2 * latents), device="meta").chunk(2, -1)
    if layout == "dense":
        mu, logvar = mu.contiguous(), logvar.contiguous()
    columns, kind = (-(-pixels // 8), torch.uint8) if target == "bits" else (pixels, target)
    x = torch.empty((batch, columns), dtype=kind, device="meta")
    pixels_of = importance_layout(logits, x, z, mu, logvar, 255 if target == torch.uint8 else None)
    inputs = (logits, x, z, mu, logvar, pixels_of)
    parts = importance_log_weight._launch_forward(*inputs)
    importance_log_weight._launch_backward(*parts, *inputs)


def _launch_aggregate_log_density(batch: int, latents: int, dtype: torch.dtype, layout: str) -> None:
    z, mu, logvar = (torch.empty((batch, latents), dtype=dtype, device="meta") for _ in range(3))
    if layout == "chunked":
        mu, logvar = torch.empty((batch, 2 * latents), dtype=dtype, device="meta").chunk(2, -1)
    if layout == "transposed":
        mu, logvar = (torch.empty((latents, batch), dtype=dtype, device="meta").mT for _ in range(2))
    weights = (-1.0, -2.0, -3.0)
    log_q = aggregate_log_density._launch_forward(z, mu, logvar, weights)
    aggregate_log_density._launch_backward(torch.empty_like(log_q), z, mu, logvar, log_q, weights)


def _launch_reparameterize_kl(
    batch: int, latents: int, dtype: torch.dtype, layout: str, upstream: str
) -> None:
    members = 2 if layout == "members" else 1
    shape = (members, batch, latents)
    mu = torch.empty(shape, dtype=dtype, device="meta")
    logvar = torch.empty(shape, dtype=dtype, device="meta")
    if layout == "chunked":
        mu, logvar = torch.empty((members, batch, 2 * latents), dtype=dtype, device="meta").chunk(2, -1)
    if layout == "transposed":
        mu, logvar = (torch.empty((members, latents, batch), dtype=dtype, device="meta").mT for _ in range(2))
    key = torch.empty(2 if layout == "dense" else (members, 2), dtype=torch.int64, device="meta")
    grad_z = torch.empty(shape, dtype=dtype, device="meta") if "z" in upstream.split() else None
    # the gradient of kl.sum(): one element, expanded
    grad_kl = torch.empty((), device="meta").expand(members, latents) if "kl" in upstream else None
    reparameterize_kl._launch_forward(mu, logvar, key, 0)
    reparameterize_kl._launch_backward(grad_z, grad_kl, mu, logvar, key, 0)


def _launch_bernoulli_nll(
    batch: int, pixels: int, dtype: torch.dtype, target: torch.dtype | str, reduction: str
) -> None:
    logits = torch.empty((batch, pixels), dtype=dtype, device="meta")
    if target == "bits":
        x, target_max = torch.empty((batch, -(-pixels // 8)), dtype=torch.uint8, device="meta"), None
    else:
        x = torch.empty((batch, pixels), dtype=target, device="meta")
        target_max = 255 if target == torch.uint8 else None
    layout = pixel_layout(logits, x, reduction, 1, target_max)
    grad_loss = torch.empty(batch if reduction == "none" else (), device="meta")
    bernoulli_nll._launch_forward(logits, x, reduction, layout)
    bernoulli_nll._launch_backward(grad_loss, logits, x, reduction, layout)


def figures(job: tuple[Launch, int]) -> Figures:
    """Resources of a launch on an architecture, of the machine code itself."""
    launch, arch = job
    kernel = compiled(launch, arch)
    code, ptx = code_of(kernel), kernel.asm["ptx"]
    return Figures(
        kernel=launch.kernel[1],
        label=launch.label,
        arch=arch,
        registers=code.registers,
        shared=code.shared,
        stack=code.stack,
        spilled=code.spills,
        wide_loads=len(re.findall(r"ld\.global\S*\.v(?:4\.b32|2\.b64)", ptx)),
        wide_stores=len(re.findall(r"st\.global\S*\.v(?:4\.b32|2\.b64)", ptx)),
        hands_over=HAND_OVER.search(ptx) is not None if "atom." in ptx else None,
    )


def _first_of_each(launches: list[Launch], count: int) -> list[Launch]:
    """So many of each kernel."""
    by_kernel: dict[tuple[str, str], list[Launch]] = {}
    for launch in launches:
        by_kernel.setdefault(launch.kernel, []).append(launch)
    return [launch for each in by_kernel.values() for launch in each[:count]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--briefly",
        action="store_true",
        help="but for 9.0, only the first two launches of each kernel",
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--processes", type=int, default=2)
    args = parser.parse_args()
    # interpreted and compiled kernels do not mix in one process
    os.environ.pop("TRITON_INTERPRET", None)
    found = launches()
    missing = {name for _, name in kernels()} - {launch.kernel[1] for launch in found}
    if missing:
        sys.exit(f"no launch of {', '.join(sorted(missing))} in {Path(__file__).name}: add one")
    with tempfile.TemporaryDirectory() as cache:
        os.environ["TRITON_CACHE_DIR"] = cache
        jobs = [
            (launch, arch)
            for arch in ARCHITECTURES
            for launch in (_first_of_each(found, 2) if args.briefly and arch != 90 else found)
        ]
        with ProcessPoolExecutor(args.processes) as pool:
            rows = list(pool.map(figures, jobs))
    if args.json:
        print(json.dumps([row._asdict() for row in rows]))
        return
    print(f"{'kernel':32} {'launch':48}  arch  regs shared stack spill ld.v4 st.v4")
    for row in rows:
        print(
            f"{row.kernel:32} {row.label:48} sm_{row.arch:<4}{row.registers:4} {row.shared:6} {row.stack:5} "
            f"{row.spilled:5} {row.wide_loads:5} {row.wide_stores:5}"
        )


if __name__ == "__main__":
    main()
