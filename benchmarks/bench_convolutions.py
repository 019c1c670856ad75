"""Convolutions of our own on a CPU against torch's, which are oneDNN's: ``python benchmarks/bench_convolutions.py``.

Every layer of the published networks that they take, pass by pass, then whole networks: on the same tensors, call by
call in turn, by one thread, in milliseconds of its CPU time, which on a quiet machine are those on the wall. A forward
pass has its ReLU, a data gradient the mask of the ReLU below, as the networks need them. GFLOP/s count what a direct
convolution computes: one in fewer products can pass the peak, which is measured beside it. Results are compared with
float64 first, and wrong ones refused. Products of bfloat16 are left out where the processor has no instructions for
them.
"""

import argparse
import copy
import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from bench_train import NO_BFLOAT16, TORCHS
from interleaved import Case, each, measure
from machine import save
from peak import peak
from pyvae import bernoulli_nll
from pyvae.base import processor
from pyvae.base.allocator import keep_large_buffers
from pyvae.nets import Autoencoder, build
from pyvae.nets.convolutions import arithmetic, takes
from pyvae.nets.layers import set_own_convolutions

NETS = ("burgess", "beta-vae-h", "kim", "locatello")
BATCH, EVALUATED = 64, 256
"""Images of a training step, and of a batch of an evaluation."""
LATENTS = 10
TOLERANCE = {"fp32": 1e-4, "bf16": 5e-2}
"""Largest error, as a share of the largest value."""
OF_STEPS = {"fp32": 5e-3, "bf16": 0.2}
"""Of gradients through all of a network: a ReLU whose input is all but zero may let through what float64's does not."""
CPU = torch.device("cpu")


class Layer(NamedTuple):
    """A convolution of stride 2; it joins ``small`` channels on the side of fewer pixels and ``large`` ones."""

    transposed: bool
    kernel: int
    small: int
    large: int
    side: int
    """Pixels of the smaller map's side."""
    activated: bool
    """Whether a ReLU is behind it."""
    images: bool
    """Whether it reads images, which want no gradient."""

    @property
    def name(self) -> str:
        kind = "transposed conv" if self.transposed else "conv"
        inputs, outputs = (self.small, self.large) if self.transposed else (self.large, self.small)
        return f"{kind} {self.kernel} x {self.kernel}, {inputs} to {outputs}"

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Of its input, ``[B, H, W, C]``."""
        side = self.side if self.transposed else 2 * self.side
        return BATCH, side, side, self.small if self.transposed else self.large

    @property
    def flop(self) -> int:
        """Of a product with its weight, as a direct convolution makes it."""
        return 2 * BATCH * self.side**2 * self.small * self.large * self.kernel**2

    @property
    def passes(self) -> tuple[str, ...]:
        gradients = () if self.images else ("data gradient", "weight gradient")
        return "forward", *gradients, "backward"


class Operands(NamedTuple):
    """Of a layer, float32 or bfloat16: maps ``[B, H, W, C]``, weight ``[S, k, k, G]``, the output, and its gradient."""

    x: Tensor
    weight: Tensor
    bias: Tensor
    y: Tensor
    grad: Tensor

    def to(self, dtype: torch.dtype) -> "Operands":
        return Operands(*(tensor.to(dtype) for tensor in self))


def layers() -> dict[Layer, list[str]]:
    """Every distinct layer that our convolutions take, and the networks that have it."""
    found: dict[Layer, list[str]] = {}
    for name in NETS:
        net = build(name, 1, LATENTS)
        for before, layer, behind, maps in _walk(net):
            if takes(layer):
                transposed = isinstance(layer, nn.ConvTranspose2d)
                side = maps[-1] if transposed else maps[-1] // 2
                activated, images = isinstance(behind, nn.ReLU), before is None and not transposed
                small, large, kernel = *layer.weight.shape[:2], layer.weight.shape[-1]
                made = Layer(transposed, kernel, small, large, side, activated, images)
                found.setdefault(made, []).append(name)
    return found


Place = tuple[nn.Module | None, nn.Module, nn.Module | None, torch.Size]


def _walk(net: Autoencoder) -> Iterator[Place]:
    """Every layer of trunk and decoder, with those before and behind it and the shape of what it is given."""
    with torch.no_grad():
        for run, x in (
            (net.encoder.trunk, torch.zeros(1, 1, 64, 64)),
            (net.decoder, torch.zeros(1, LATENTS)),
        ):
            stages = [None, *run, None]
            for before, layer, behind in zip(stages, stages[1:], stages[2:], strict=False):
                if layer is not None:
                    yield before, layer, behind, x.shape
                    x = layer(x)


def operands(layer: Layer, precision: str, generator: torch.Generator) -> Operands:
    """Random ones, in float32; those of bf16 are rounded to it, so that both sides have the same."""
    x = torch.randn(layer.shape, generator=generator)
    x = (x > 1).float() if layer.images else x.relu()
    deviation = math.sqrt(2 / (layer.shape[-1] * layer.kernel**2))
    shape = (layer.small, layer.kernel, layer.kernel, layer.large)
    weight = deviation * torch.randn(shape, generator=generator)
    outputs = layer.large if layer.transposed else layer.small
    made = Operands(x, weight, 0.1 * torch.randn(outputs, generator=generator), x, x)
    made = made.to(torch.bfloat16).to(torch.float32) if precision == "bf16" else made
    (y,) = torchs(layer, "forward", made)
    return made._replace(y=y, grad=torch.randn(y.shape, generator=generator))


def torchs(layer: Layer, what: str, given: Operands) -> tuple[Tensor, ...]:
    """A pass by torch's convolution and its passes over the ReLUs."""
    x, weight, y, grad = (t.permute(0, 3, 1, 2) for t in (given.x, given.weight, given.y, given.grad))
    stride, padding = [2, 2], [layer.kernel // 2 - 1] * 2
    if what == "forward":
        call = nn.functional.conv_transpose2d if layer.transposed else nn.functional.conv2d
        y = call(x, weight, given.bias, stride, padding)
        return ((y.relu() if layer.activated else y).permute(0, 2, 3, 1),)
    wants_x, wants_weight = _wanted(layer, what)
    grad = torch.ops.aten.threshold_backward(grad, y, 0) if layer.activated else grad
    grad_x, grad_weight, _ = torch.ops.aten.convolution_backward(
        *(grad, x, weight, [len(given.bias)], stride, padding, [1, 1], layer.transposed, [0, 0], 1),
        [wants_x, wants_weight, wants_weight],
    )
    found = (*([grad_x] if wants_x else []), *([grad_weight] if wants_weight else []))
    return tuple(tensor.permute(0, 2, 3, 1) for tensor in found)


def ours(layer: Layer, what: str, given: Operands, bf16: bool) -> tuple[Tensor, ...]:
    """A pass by our convolution, ReLUs and sums for biases within."""
    x, weight, bias, y, grad = given
    kind = [weight], [layer.transposed], [0.0 if layer.activated else -1.0]
    if what == "forward":
        return tuple(torch.ops.pyvae_native.convolutions_fwd(x, kind[0], [bias], *kind[1:], bf16, True))
    wants_x, wants_weight = _wanted(layer, what)
    grad_x, (grad_weight,), _ = torch.ops.pyvae_native.convolutions_bwd(
        grad, [x], y, *kind, wants_x, [wants_weight], [wants_weight], bf16
    )
    return (*([grad_x] if wants_x else []), *([grad_weight] if wants_weight else []))


def _wanted(layer: Layer, what: str) -> tuple[bool, bool]:
    """Whether gradients of the input and of the weight are."""
    return what != "weight gradient" and not layer.images, what != "data gradient"


@dataclass(frozen=True)
class Measured:
    """A case, and what its rows say beside the times."""

    case: Case
    kind: str
    """"layer" or "network"."""
    precision: str
    nets: tuple[str, ...]

    def row(self, row: dict[str, Any]) -> dict[str, Any]:
        about = {"kind": self.kind, "precision": self.precision, "nets": list(self.nets)}
        share = {}
        if "gflop_per_s" in row:
            share["of_peak"] = float(f"{row['gflop_per_s'] / peak(self.precision).gflop_per_s:.3g}")
        return about | row | share


def layer_case(layer: Layer, what: str, precision: str) -> Case:
    def make(_: torch.device, generator: torch.Generator) -> tuple[Any, ...]:
        given = operands(layer, precision, generator)
        right = torchs(layer, what, given.to(torch.float64))
        return given, given.to(torch.bfloat16) if precision == "bf16" else given, right

    products = 2 if what == "backward" and not layer.images else 1
    return Case(
        op=layer.name,
        what=f"{what}, {precision}",
        size=layer.shape,
        make=make,
        functions={
            "torch": lambda _, given, right: torchs(layer, what, given),
            "pyvae": lambda given, _, right: ours(layer, what, given, precision == "bf16"),
        },
        expect=lambda *inputs: list(inputs[-1]),
        moved=0,
        flop=products * layer.flop,
        tolerance=TOLERANCE[precision],
        devices=("cpu",),
    )


def _encoder(net: Autoencoder, images: Tensor, _: Tensor) -> tuple[Tensor, ...]:
    with torch.no_grad():
        return net.encoder(images)


def _decoder(net: Autoencoder, _: Tensor, noise: Tensor) -> tuple[Tensor, ...]:
    with torch.no_grad():
        return (net.decoder(noise),)


def _step(net: Autoencoder, images: Tensor, noise: Tensor) -> tuple[Tensor, ...]:
    """Loss and gradients of every weight."""
    mu, logvar = (tensor.to(noise.dtype) for tensor in net.encoder(images))
    logits = net.decoder(mu + (logvar / 2).exp() * noise).to(noise.dtype)
    kl = 0.5 * (mu.square() + logvar.exp() - logvar - 1).sum() / len(images)
    loss = bernoulli_nll(logits, images) + kl
    return loss.detach(), *torch.autograd.grad(loss, list(net.parameters()))


PARTS: dict[str, tuple[Callable[[Autoencoder, Tensor, Tensor], tuple[Tensor, ...]], int]] = {
    "encoder": (_encoder, EVALUATED),
    "decoder": (_decoder, EVALUATED),
    "forward and backward": (_step, BATCH),
}
"""Of a network, and images in a batch."""


def network_case(name: str, part: str, precision: str) -> Case:
    call, batch = PARTS[part]

    def make(_: torch.device, generator: torch.Generator) -> tuple[Any, ...]:
        net = build(name, 1, LATENTS, init="kaiming")
        images = (torch.rand(batch, 1, 64, 64, generator=generator) < 0.1).float()
        images = images.contiguous(memory_format=torch.channels_last)
        noise = torch.randn(batch, LATENTS, generator=generator)
        right = call(copy.deepcopy(net).double(), images.double(), noise.double())
        net = net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        other = copy.deepcopy(net)
        set_own_convolutions(other, False)
        return net, other, images, noise, right

    def run(net: Autoencoder, images: Tensor, noise: Tensor) -> tuple[Tensor, ...]:
        around: AbstractContextManager[object] = nullcontext()
        if precision == "bf16":
            around = torch.autocast("cpu", torch.bfloat16)
        with around:
            return call(net, images, noise)

    return Case(
        op=name,
        what=f"{part}, {precision}",
        size=(batch, 1, 64, 64),
        make=make,
        functions={
            "torch": lambda _, net, images, noise, right: run(net, images, noise),
            "pyvae": lambda net, _, images, noise, right: run(net, images, noise),
        },
        expect=lambda *inputs: list(inputs[-1]),
        moved=0,
        flop=network_flop(name)[part],
        tolerance=(OF_STEPS if call is _step else TOLERANCE)[precision],
        devices=("cpu",),
    )


@cache
def network_flop(name: str) -> dict[str, int]:
    """Of the products of each of ``PARTS``, as direct convolutions make them."""
    net = build(name, 1, LATENTS)
    of_trunk, of_decoder, first = 2 * net.encoder.head.weight.numel(), 0, 0
    for before, layer, _, maps in _walk(net):
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            outputs = math.prod(layer(torch.zeros(maps)).shape[2:])
            pixels = math.prod(maps[2:]) if isinstance(layer, nn.ConvTranspose2d) else outputs
            flop = 2 * pixels * layer.weight.numel()
            if before is None and len(maps) == 4:
                first = flop
            if any(layer is other for other in net.decoder):
                of_decoder += flop
            else:
                of_trunk += flop
    return {
        "encoder": EVALUATED * of_trunk,
        "decoder": EVALUATED * of_decoder,
        # images want no gradient
        "forward and backward": BATCH * (3 * (of_trunk + of_decoder) - first),
    }


def everything(precisions: tuple[str, ...]) -> list[Measured]:
    """Cases of the layers, then those of networks."""
    made = [
        Measured(layer_case(layer, what, precision), "layer", precision, tuple(nets))
        for precision in precisions
        for layer, nets in layers().items()
        for what in layer.passes
    ]
    return made + [
        Measured(network_case(name, part, precision), "network", precision, (name,))
        for precision in precisions
        for name in NETS
        for part in PARTS
    ]


def left_out() -> dict[str, str]:
    """Precisions that say nothing on this machine, and why."""
    found = {}
    for precision, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        choice = arithmetic(CPU, dtype)
        if choice.backend != "native":
            found[precision] = choice.reason
    if processor.bfloat16() is not True:
        found["bf16"] = NO_BFLOAT16
    return found


PRECISIONS = tuple(precision for precision in TOLERANCE if precision not in left_out())
CASES = [made.case for made in everything(PRECISIONS[:1]) if "gradient" not in made.case.what]
"""For pytest, which makes each of them anew for either side: in fp32, and both gradients together."""


@each(CASES)
def test_convolutions(timed, case, function):
    timed(case, function)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--rounds", type=int, default=25, help="of every case, a call of each side in every one"
    )
    parser.add_argument("--limit", type=float, default=8, help="seconds of a case, beyond three rounds")
    parser.add_argument("--minutes", type=float, help="begin no case after so many")
    parser.add_argument("--only", choices=("layer", "network"), help="layers or networks alone")
    parser.add_argument("--out", type=Path, help="write the results there as JSON")
    options = parser.parse_args()
    if options.rounds < 1:
        parser.error("--rounds: at least 1")
    skipped = left_out()
    if "fp32" in skipped:
        sys.exit(f"there are no convolutions of our own to time: {skipped['fp32']}")
    keep_large_buffers()
    torch.set_num_threads(1)
    end = float("inf") if options.minutes is None else time.monotonic() + 60 * options.minutes
    rows: list[dict[str, Any]] = []
    wrong: list[str] = []
    late: list[str] = []
    peaks = {precision: vars(peak(precision)) for precision in PRECISIONS}

    def write() -> None:
        save(
            options.out,
            setting=f"batch {BATCH}, {TORCHS} and pyvae's",
            peak=peaks,
            cases=rows,
            left_out=skipped,
            no_time=late,
            failed=wrong,
        )

    for measured in everything(PRECISIONS):
        case = measured.case
        name = f"{case.op}, {case.what}"
        if options.only not in (None, measured.kind):
            continue
        if time.monotonic() > end:
            late.append(name)
            continue
        try:
            found, refused = measure(
                case,
                CPU,
                rounds=options.rounds,
                block_seconds=0,  # a call
                limit_seconds=options.limit,
                clock=time.thread_time,
            )
        except Exception as error:
            # the other cases have their times all the same
            wrong.append(f"{name}: failed: {' '.join(str(error).split())[:200]}")
            continue
        wrong += refused
        for row in map(measured.row, found):
            rows.append(row)
            print(line(row), flush=True)
        write()
    write()
    for precision, reason in skipped.items():
        print(f"{precision}: left out, {reason}")
    if late:
        print(f"no time left for {'; '.join(late)}")
    if wrong:
        sys.exit("\n".join(["refused:", *wrong]))


def line(row: dict[str, Any]) -> str:
    """A row as it is printed."""
    head = f"{row['op']:36s} {row['what']:28s} {row['size']:>18s}  {row['provider']:6s}"
    if "us" not in row:
        return f"{head} {row['refused']}"
    low, median, high = (us / 1e3 for us in row["us"])
    return (
        f"{head} {median:8.3f} ms [{low:.3f}, {high:.3f}]  {row['gflop_per_s']:6.1f} GFLOP/s  "
        f"{row['of_peak']:.2f} of the peak  {row.get('speedup', float('nan')):.2f}x"
    )


if __name__ == "__main__":
    main()
