"""Steps per second of whole training steps on this machine, variant by variant, and what each change pays.

``python benchmarks/bench_train.py --out benchmarks/results/train-cpu.json``. Every variant runs in a process of its
own, since the allocator and the arithmetic are settings of the process. Rounds go through all variants in turn, so that
a noisy neighbour hits them alike. Medians are reported. On a GPU, `make gpu` measures these variants.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from checkout import ROOT
from interleaved import Spread
from machine import save
from pyvae import bernoulli_nll, reparameterize_kl
from pyvae.allocator import keep_large_buffers
from pyvae.data import load
from pyvae.engine.arithmetic import settle_arithmetic
from pyvae.engine.recipe import Recipe
from pyvae.engine.stepper import BURST
from pyvae.engine.training import training
from pyvae.nets import build
from pyvae.objectives import OBJECTIVES, BetaVAE, InfoGAN
from pyvae.recipes import RECIPES
from pyvae.reference import unpack_bits

RECIPE = Recipe(objective=BetaVAE(), architecture="burgess", init="kaiming", lr=5e-4, engine="torch")
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
STRIDE = 700
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
    batches: Callable[[Tensor], Iterator[Tensor]] = _in_memory,
    losses: Losses = popular_losses,
) -> Step:
    """A step as the popular repositories write it."""
    layout = torch.channels_last if channels_last else torch.contiguous_format
    net = build(RECIPE.architecture, 1, RECIPE.latents, init=RECIPE.init).to(DEVICE, memory_format=layout)
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


def ours(steps: int = 1, *, capture: bool = False, compiled: bool = False, **changes: Any) -> Step:
    """pyvae's step: data from the whole set's bits, trace row and divergence check included."""
    recipe = recipe_of(**changes)
    settle_arithmetic(recipe.precision)
    trainer = training(recipe, load("dsprites"), DEVICE, log_every=100, capture=capture, compile=compiled)
    return lambda count=steps: trainer.advance(count)


def captured(**changes: Any) -> Variant:
    return Variant(
        lambda: ours(8 * BURST, capture=True, **changes),
        devices=("cuda",),
        steps=8 * BURST,
    )


OTHERS = {name: make for name, make in OBJECTIVES.items() if make is not type(RECIPE.objective)}
VARIANTS = {
    "popular code": Variant(popular, tuned=False),
    "popular code, DataLoader": Variant(lambda: popular(batches=_from_loader), tuned=False),
    "popular code, torch.compile": Variant(lambda: popular(compiled=True), tuned=False),
    "popular code, our two losses": Variant(lambda: popular(losses=our_losses), tuned=False),
    "+ fused Adam": Variant(lambda: popular(fused=True), tuned=False),
    "+ channels_last": Variant(lambda: popular(fused=True, channels_last=True), tuned=False),
    "+ allocator": Variant(lambda: popular(fused=True, channels_last=True), devices=("cpu",)),
    "+ torch.compile": Variant(lambda: popular(fused=True, channels_last=True, compiled=True)),
    "pyvae": Variant(ours, devices=("cpu",)),
    "pyvae --precision bf16": Variant(lambda: ours(precision="bf16"), devices=("cpu",)),
    **{
        f"pyvae {name}": Variant(lambda make=make: ours(objective=make()), devices=("cpu",))
        for name, make in OTHERS.items()
    },
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


def synchronise() -> None:
    """Wait for the GPU, if there is one."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def measure(name: str, seconds: float) -> Spread:
    """Steps per second of one variant, in this process."""
    torch.manual_seed(0)
    variant = VARIANTS[name]
    if variant.tuned:
        keep_large_buffers()
    return steps_per_second(variant.make(), variant.steps, seconds)


def steps_per_second(step: Step, steps: int, seconds: float) -> Spread:
    """Over portions of the time, for a call that makes so many steps."""
    start = time.perf_counter()
    for done in range(5):
        # an importance-weighted step takes seconds on a CPU
        if done and time.perf_counter() - start > seconds:
            break
        step()
        synchronise()  # else the clock would be that of the queue
    # a GPU is timed over portions of a tenth of the time, a CPU step by step
    portion = 1
    if DEVICE.type == "cuda":
        start = time.perf_counter()
        step()
        synchronise()
        portion = max(1, int(seconds / 10 / (time.perf_counter() - start)))
    rates = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        for _ in range(portion):
            step()
        synchronise()
        rates.append(portion * steps / (time.perf_counter() - start))
    return Spread.of(rates)


def run_process(name: str, seconds: float, threads: int, left: float | None) -> Spread | None:
    """Measure a variant in a process of its own; None when it failed, or was not done after ``left`` seconds."""
    command = [sys.executable, __file__, "--threads", str(threads), "--seconds", str(seconds)]
    try:
        done = subprocess.run(
            [*command, "--variant", name], capture_output=True, text=True, cwd=ROOT, timeout=left
        )
    except subprocess.TimeoutExpired:
        return None
    if done.returncode:
        print(done.stderr, file=sys.stderr)
        return None
    return Spread(**json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3, help="times that every variant is measured")
    parser.add_argument("--seconds", type=float, default=5.0, help="length of one measurement")
    parser.add_argument("--threads", type=int, default=1, help="of the CPU")
    parser.add_argument("--minutes", type=float, help="stop there, with what has been measured")
    parser.add_argument("--out", type=Path, help="write the results there as JSON")
    parser.add_argument("--only", nargs="+", choices=HERE, metavar="VARIANT", help="these variants")
    parser.add_argument("--variant", choices=HERE, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.variant:
        print(json.dumps(asdict(measure(options.variant, options.seconds))))
        return
    names = options.only or HERE
    rounds: dict[str, list[Spread]] = {name: [] for name in names}

    def write() -> dict[str, float]:
        rates = {name: Spread.of_rounds(values) for name, values in rounds.items() if values}
        results = {name: float(f"{rate.median:.4g}") for name, rate in rates.items()}
        if results:
            save(
                options.out,
                setting=f"{RECIPE.architecture}, batch {RECIPE.batch_size}",
                steps_per_second=results,
                quartiles={name: rate.rounded() for name, rate in rates.items()},
            )
        return results

    end = time.monotonic() + 60 * options.minutes if options.minutes else None
    for _ in range(options.rounds):
        for name in names:
            left = end - time.monotonic() if end else None
            if left is not None and left < 1:
                break
            if rate := run_process(name, options.seconds, options.threads, left):
                rounds[name].append(rate)
                write()
    results = write()
    missed = [name for name in names if name not in results]
    base = next(iter(results.values()), 1.0)
    for name, rate in results.items():
        print(f"{name:40s} {rate:8.4g} steps/s  {rate / base:.2f}x")
    if missed:
        print(f"not measured: {', '.join(missed)}")
    if missed and not options.minutes:
        sys.exit(1)


if __name__ == "__main__":
    main()
