"""Steps per second of whole training steps on this machine, variant by variant, and what each change pays.

``python benchmarks/bench_train.py --out benchmarks/results/train-cpu.json``. Every variant runs in a process of its
own, since the allocator and the arithmetic are settings of the process; its steps are timed by one thread, then by two.
Rounds go through all variants in turn, so that a noisy neighbour hits them alike. Medians are reported, of wall time
and, beside it, of CPU time: of all threads of the process, and of the one that makes the steps. What a processor has no
instructions for is left out, and said so. On a GPU, `make gpu` measures these variants.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from checkout import ROOT
from machine import save
from pyvae import bernoulli_nll, reparameterize_kl
from pyvae.base import processor
from pyvae.base.allocator import keep_large_buffers
from pyvae.data import load
from pyvae.engine.arithmetic import settle_arithmetic
from pyvae.engine.recipe import Recipe
from pyvae.engine.stepper import BURST
from pyvae.engine.training import training
from pyvae.nets import build
from pyvae.nets.layers import set_own_convolutions
from pyvae.objectives import OBJECTIVES, BetaVAE, InfoGAN
from pyvae.recipes import RECIPES
from pyvae.reference import unpack_bits
from rate_rows import words
from step_rate import Rate, add_threads, rate_of, rates_by_threads

RECIPE = Recipe(objective=BetaVAE(), architecture="burgess", init="kaiming", lr=5e-4, engine="torch")
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
STRIDE = 700
TORCHS = "torch's convolutions"
NO_BFLOAT16 = "this processor is not known to have instructions for products of bfloat16"
Step = Callable[..., object]
Losses = Callable[[Tensor, Tensor, Callable[[Tensor], Tensor], Tensor], Tensor]


@dataclass(frozen=True)
class Variant:
    """A way of making a step, for which devices, and whether the allocator is tuned for it."""

    make: Callable[[], Step]
    """Of a call that makes ``steps`` steps, or as many as it is told to if it makes several."""
    tuned: bool = True
    devices: tuple[str, ...] = ("cpu", "cuda")
    steps: int = 1
    bfloat16: bool = False
    """Whether it is for processors with instructions for products of bfloat16 alone; others take eight times as long
    as in fp32, which says nothing of pyvae."""

    @property
    def left_out(self) -> str | None:
        """Why it is not measured on this machine, if it is not."""
        return NO_BFLOAT16 if self.bfloat16 and processor.bfloat16() is not True else None


def popular_losses(mu: Tensor, logvar: Tensor, decoder: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    z = mu + torch.exp(logvar / 2) * torch.randn_like(mu)
    recon = F.binary_cross_entropy_with_logits(decoder(z), x, reduction="sum") / len(x)
    return recon + 4.0 * -0.5 * (1 + logvar - mu.pow(2) - logvar.exp()).sum(1).mean()


def our_losses(mu: Tensor, logvar: Tensor, decoder: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    z, kl = reparameterize_kl(mu, logvar)
    return bernoulli_nll(decoder(z), x) + 4.0 * kl.sum()


def _in_memory(images: Tensor) -> Iterator[Tensor]:
    images = images.to(DEVICE)
    while True:
        yield images[torch.randint(len(images), (RECIPE.batch_size,), device=DEVICE)].float()


def _from_loader(images: Tensor) -> Iterator[Tensor]:
    """As the popular code reads: items one by one in two worker processes, collated, pinned."""
    loader = DataLoader(
        TensorDataset(images),
        RECIPE.batch_size,
        shuffle=True,
        num_workers=2,
        pin_memory=DEVICE.type == "cuda",
        drop_last=True,
        persistent_workers=True,
    )
    while True:
        for (x,) in loader:
            yield x.to(DEVICE, non_blocking=True).float()


def popular(
    *,
    fused: bool = False,
    channels_last: bool = False,
    compiled: bool = False,
    own: bool = False,
    batches: Callable[[Tensor], Iterator[Tensor]] = _in_memory,
    losses: Losses = popular_losses,
) -> Step:
    """A step as the popular repositories write it: with torch's convolutions, unless ``own``."""
    layout = torch.channels_last if channels_last else torch.contiguous_format
    net = build(RECIPE.architecture, 1, RECIPE.latents, init=RECIPE.init).to(DEVICE, memory_format=layout)
    set_own_convolutions(net, own)
    encoder, decoder = (torch.compile(m) if compiled else m for m in (net.encoder, net.decoder))
    losses = torch.compile(losses) if compiled else losses
    optimizer = torch.optim.Adam(net.parameters(), lr=RECIPE.lr, fused=fused)
    source = batches(unpack_bits(load("dsprites").bits[::STRIDE], 4096).view(-1, 1, 64, 64))

    def step() -> None:
        x = next(source).contiguous(memory_format=layout)
        loss = losses(*encoder(x), decoder, x)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def recipe_of(**changes: Any) -> Recipe:
    """Of a variant: RECIPE with changes; of the GANs, which have networks and codes of their own, their recipe's."""
    objective = changes.get("objective")
    if not isinstance(objective, InfoGAN):
        return replace(RECIPE, **changes)
    own = next(recipe for _, recipe in RECIPES.values() if type(recipe.objective) is type(objective))
    return replace(own, batch_size=RECIPE.batch_size, **changes)


def ours(
    steps: int = 1, *, own: bool = True, capture: bool = False, compiled: bool = False, **changes: Any
) -> Step:
    """pyvae's step: data from the whole set's bits, trace row and divergence check included; with convolutions of its
    own, where it has them, or with torch's."""
    recipe = recipe_of(**changes)
    settle_arithmetic(recipe.precision)
    trainer = training(recipe, load("dsprites"), DEVICE, log_every=100, capture=capture, compile=compiled)
    if not own:
        set_own_convolutions(trainer.net, False)
    return lambda count=steps: trainer.advance(count)


def captured(**changes: Any) -> Variant:
    return Variant(
        lambda: ours(8 * BURST, capture=True, **changes),
        devices=("cuda",),
        steps=8 * BURST,
    )


def on_a_cpu(bfloat16: bool = False, **changes: Any) -> Variant:
    if bfloat16:
        changes["precision"] = "bf16"
    return Variant(lambda: ours(**changes), devices=("cpu",), bfloat16=bfloat16)


OTHERS = {name: make for name, make in OBJECTIVES.items() if make is not type(RECIPE.objective)}
VARIANTS = {
    "popular code": Variant(popular, tuned=False),
    "popular code, DataLoader": Variant(lambda: popular(batches=_from_loader), tuned=False),
    "popular code, torch.compile": Variant(lambda: popular(compiled=True), tuned=False),
    "popular code, our two losses": Variant(lambda: popular(losses=our_losses), tuned=False),
    "popular code, our convolutions": Variant(lambda: popular(own=True), tuned=False, devices=("cpu",)),
    "+ fused Adam": Variant(lambda: popular(fused=True), tuned=False),
    "+ channels_last": Variant(lambda: popular(fused=True, channels_last=True), tuned=False),
    "+ allocator": Variant(lambda: popular(fused=True, channels_last=True), devices=("cpu",)),
    "+ torch.compile": Variant(lambda: popular(fused=True, channels_last=True, compiled=True)),
    "pyvae": on_a_cpu(),
    f"pyvae, {TORCHS}": on_a_cpu(own=False),
    "pyvae --precision bf16": on_a_cpu(bfloat16=True),
    f"pyvae --precision bf16, {TORCHS}": on_a_cpu(bfloat16=True, own=False),
    **{
        f"pyvae --architecture {name}{'' if own else f', {TORCHS}'}": on_a_cpu(own=own, architecture=name)
        for name in ("beta-vae-h", "kim", "locatello")
        for own in (True, False)
    },
    **{f"pyvae {name}": on_a_cpu(objective=make()) for name, make in OTHERS.items()},
    "pyvae --no-capture": Variant(ours, devices=("cuda",)),
    "pyvae --precision fp32": captured(),
    "pyvae --precision tf32": captured(precision="tf32"),
    "pyvae --precision bf16, captured": captured(precision="bf16"),
    **{
        f"pyvae {name} --precision tf32": captured(precision="tf32", objective=make())
        for name, make in OTHERS.items()
    },
    "pyvae --precision tf32 --compile": captured(precision="tf32", compiled=True),
    "pyvae --precision bf16 --compile": captured(precision="bf16", compiled=True),
    "pyvae --precision fp32 --compile": captured(precision="fp32", compiled=True),
}
HERE = [name for name, variant in VARIANTS.items() if DEVICE.type in variant.devices]


def prepared(name: str) -> Callable[[float], Rate]:
    """Make a variant in this process, which is its own.

    Returns:
        what measures its steps for so many seconds.
    """
    torch.manual_seed(0)
    variant = VARIANTS[name]
    if variant.tuned:
        keep_large_buffers()
    step = variant.make()
    return lambda seconds: rate_of(step, variant.steps, seconds, DEVICE)


def run_process(name: str, seconds: float, threads: list[int], left: float | None) -> dict[int, Rate] | None:
    """Rates of a variant by number of threads, from a process of its own; None when it failed, or was not done after
    ``left`` seconds."""
    command = [sys.executable, __file__, "--threads", *map(str, threads), "--seconds", str(seconds)]
    try:
        done = subprocess.run(
            [*command, "--variant", name], capture_output=True, text=True, cwd=ROOT, timeout=left
        )
    except subprocess.TimeoutExpired:
        return None
    if done.returncode:
        print(done.stderr, file=sys.stderr)
        return None
    found = json.loads(done.stdout.splitlines()[-1])
    return {int(count): Rate.unpacked(packed) for count, packed in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3, help="times that every variant is measured")
    parser.add_argument("--seconds", type=float, default=5.0, help="length of one measurement")
    add_threads(parser)
    parser.add_argument("--minutes", type=float, help="stop there, with what has been measured")
    parser.add_argument("--out", type=Path, help="write the results there as JSON")
    parser.add_argument("--only", nargs="+", choices=HERE, metavar="VARIANT", help="these variants")
    parser.add_argument("--variant", choices=HERE, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.variant:
        torch.set_num_threads(options.threads[0])
        measure = prepared(options.variant)
        print(json.dumps(rates_by_threads(lambda: measure(options.seconds), options.threads)))
        return
    asked = options.only or HERE
    left_out = {name: reason for name in asked if (reason := VARIANTS[name].left_out)}
    names = [name for name in asked if name not in left_out]
    rounds: dict[tuple[str, int], list[Rate]] = {(n, count): [] for n in names for count in options.threads}

    def write() -> dict[tuple[str, int], Rate]:
        rates = {key: Rate.of_rounds(found) for key, found in rounds.items() if found}
        if rates:
            save(
                options.out,
                options.threads,
                setting=f"{RECIPE.architecture}, batch {RECIPE.batch_size}",
                rates=[{"variant": n, "threads": count, **rate.row()} for (n, count), rate in rates.items()],
                left_out=left_out,
            )
        return rates

    end = time.monotonic() + 60 * options.minutes if options.minutes else None
    for _ in range(options.rounds):
        for name in names:
            left = end - time.monotonic() if end else None
            if left is not None and left < 1:
                break
            for count, rate in (run_process(name, options.seconds, options.threads, left) or {}).items():
                rounds[name, count].append(rate)
            write()
    rates = write()
    for (name, count), rate in rates.items():
        base = next(first for (_, other), first in rates.items() if other == count)
        median = rate.steps_per_second.median
        print(
            f"{name:56s} {words(count):>9s} {median:8.4g} steps/s  {median / base.steps_per_second.median:.2f}x"
            f"  {rate.cpu_ms.median:8.4g} ms of the CPU, {rate.main_thread_cpu_ms.median:.4g} of the main thread"
        )
    for name, reason in left_out.items():
        print(f"{name}: left out, {reason}")
    missed = [name for name in names if (name, options.threads[0]) not in rates]
    if missed:
        print(f"not measured: {', '.join(missed)}")
    if missed and not options.minutes:
        sys.exit(1)


if __name__ == "__main__":
    main()
