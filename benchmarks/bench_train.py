"""Steps per second of whole training steps on this machine, variant by variant, and what each change pays.

``python benchmarks/bench_train.py --out benchmarks/results/train-cpu.json``. Every variant runs in a process of its
own, since the allocator is a setting of the process; rounds go through all variants in turn, so that a noisy
neighbour hits them alike. Medians are reported.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F

from machine import ROOT, describe
from pyvae.data import load
from pyvae.engine.allocator import keep_large_buffers
from pyvae.engine.recipe import Recipe
from pyvae.engine.trainer import Trainer
from pyvae.nets import build
from pyvae.objectives import BetaVAE
from pyvae.reference import unpack_bits

RECIPE = Recipe(objective=BetaVAE(), architecture="burgess", init="kaiming", lr=5e-4)
Step = Callable[[], object]


@dataclass(frozen=True)
class Variant:
    """A way of making a step, and whether the allocator is tuned for it."""

    make: Callable[[], Step]
    tuned: bool = True


def popular(*, fused: bool = False, channels_last: bool = False, compiled: bool = False) -> Step:
    """A step as the popular repositories write it, images already in memory (no DataLoader)."""
    layout = torch.channels_last if channels_last else torch.contiguous_format
    net = build(RECIPE.architecture, 1, RECIPE.latents, init=RECIPE.init).to(memory_format=layout)
    encoder, decoder = (torch.compile(m) if compiled else m for m in (net.encoder, net.decoder))
    optimizer = torch.optim.Adam(net.parameters(), lr=RECIPE.lr, fused=fused)
    images = unpack_bits(load("dsprites").bits[::700], 4096).view(-1, 1, 64, 64)

    def step() -> None:
        x = images[torch.randint(len(images), (RECIPE.batch_size,))].float().contiguous(memory_format=layout)
        mu, logvar = encoder(x)
        z = mu + torch.exp(logvar / 2) * torch.randn_like(mu)
        recon = F.binary_cross_entropy_with_logits(decoder(z), x, reduction="sum") / len(x)
        kl = -0.5 * (1 + logvar - mu.pow(2) - logvar.exp()).sum(1).mean()
        optimizer.zero_grad()
        (recon + 4.0 * kl).backward()
        optimizer.step()

    return step


def ours(**changes: str) -> Step:
    """pyvae's step: data from the whole set's bits, trace row and divergence check included."""
    return Trainer(replace(RECIPE, **changes), load("dsprites"), torch.device("cpu")).advance


VARIANTS = {
    "popular code": Variant(popular, tuned=False),
    "popular code, torch.compile": Variant(lambda: popular(compiled=True), tuned=False),
    "+ fused Adam": Variant(lambda: popular(fused=True), tuned=False),
    "+ channels_last": Variant(lambda: popular(fused=True, channels_last=True), tuned=False),
    "+ allocator": Variant(lambda: popular(fused=True, channels_last=True)),
    "+ torch.compile": Variant(lambda: popular(fused=True, channels_last=True, compiled=True)),
    "pyvae": Variant(ours),
    "pyvae --precision bf16": Variant(lambda: ours(precision="bf16")),
}


def measure(name: str, seconds: float) -> float:
    """Steps per second of a variant, in this process."""
    torch.manual_seed(0)
    variant = VARIANTS[name]
    if variant.tuned:
        keep_large_buffers()
    step = variant.make()
    for _ in range(5):
        step()
    times = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        step()
        times.append(time.perf_counter() - start)
    return 1 / statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3, help="times that every variant is measured")
    parser.add_argument("--seconds", type=float, default=5.0, help="length of one measurement")
    parser.add_argument("--out", type=Path, help="write the results there as JSON")
    parser.add_argument("--variant", choices=VARIANTS, help="measure this one only and print it")
    options = parser.parse_args()
    if options.variant:
        print(measure(options.variant, options.seconds))
        return
    rates: dict[str, list[float]] = {name: [] for name in VARIANTS}
    for _ in range(options.rounds):
        for name in VARIANTS:
            command = [sys.executable, __file__, "--variant", name, "--seconds", str(options.seconds)]
            done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
            rates[name].append(float(done.stdout))
    results = {name: round(statistics.median(values), 1) for name, values in rates.items()}
    for name, rate in results.items():
        print(f"{name:32s} {rate:6.1f} steps/s  {rate / results['popular code']:.2f}x")
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        setting = f"{RECIPE.architecture}, batch {RECIPE.batch_size}"
        content = {"machine": describe(), "setting": setting, "steps_per_second": results, "rounds": rates}
        options.out.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
