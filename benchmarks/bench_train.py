"""Steps per second of whole training steps on this machine, variant by variant, and what each change pays.

``python benchmarks/bench_train.py --out benchmarks/results/train-cpu.json`` (on a GPU ``train-h200.json``, say). Every
variant runs in a process of its own, since the allocator is a setting of the process; rounds go through all variants
in turn, so that a noisy neighbour hits them alike. Medians are reported. On a GPU also the kernels of a step.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from machine import ROOT, describe
from pyvae import bernoulli_nll, reparameterize_kl
from pyvae.data import load
from pyvae.engine.allocator import keep_large_buffers
from pyvae.engine.loop import settle_arithmetic
from pyvae.engine.recipe import Recipe
from pyvae.engine.trainer import BURST, Trainer
from pyvae.nets import build
from pyvae.objectives import TCVAE, BetaVAE, ControlVAE, FactorVAE
from pyvae.reference import unpack_bits

RECIPE = Recipe(objective=BetaVAE(), architecture="burgess", init="kaiming", lr=5e-4)
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
STRIDE = 700
Step = Callable[[], object]
Losses = Callable[[Tensor, Tensor, Callable[[Tensor], Tensor], Tensor], Tensor]


@dataclass(frozen=True)
class Variant:
    """A way of making a step, for which devices, and whether the allocator is tuned for it."""

    make: Callable[[], Step]
    tuned: bool = True
    devices: tuple[str, ...] = ("cpu", "cuda")
    steps: int = 1
    """That a call makes."""


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


def ours(steps: int = 1, *, capture: bool = False, compiled: bool = False, **changes: Any) -> Step:
    """pyvae's step: data from the whole set's bits, trace row and divergence check included."""
    recipe = replace(RECIPE, **changes)
    settle_arithmetic(recipe.precision)
    trainer = Trainer(recipe, load("dsprites"), DEVICE, log_every=100, capture=capture, compile=compiled)
    return lambda: trainer.advance(steps)


def captured(**changes: Any) -> Variant:
    return Variant(lambda: ours(8 * BURST, capture=True, **changes), devices=("cuda",), steps=8 * BURST)


OBJECTIVES = {"factor-vae": FactorVAE(), "tc-vae": TCVAE(), "control-vae": ControlVAE()}
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
        f"pyvae {name}": Variant(lambda objective=objective: ours(objective=objective), devices=("cpu",))
        for name, objective in OBJECTIVES.items()
    },
    "pyvae --no-capture": Variant(ours, devices=("cuda",)),
    "pyvae --precision fp32": captured(),
    "pyvae --precision tf32": captured(precision="tf32"),
    "pyvae --precision bf16, captured": captured(precision="bf16"),
    "pyvae --precision tf32 --compile": captured(precision="tf32", compiled=True),
    "pyvae --precision bf16 --compile": captured(precision="bf16", compiled=True),
    **{
        f"pyvae {name} --precision tf32": captured(precision="tf32", objective=objective)
        for name, objective in OBJECTIVES.items()
    },
}
HERE = [name for name, variant in VARIANTS.items() if DEVICE.type in variant.devices]


@dataclass
class Measured:
    """Steps per second, and on a GPU the kernels of a step."""

    rate: float
    kernels: float | None = field(default=None)


def _synchronise() -> None:
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def measure(name: str, seconds: float) -> Measured:
    """One variant, in this process."""
    torch.manual_seed(0)
    variant = VARIANTS[name]
    if variant.tuned:
        keep_large_buffers()
    step = variant.make()
    for _ in range(5):
        step()
    _synchronise()
    # a GPU is timed over portions of a tenth of the time, a CPU step by step
    portion = 1
    if DEVICE.type == "cuda":
        start = time.perf_counter()
        step()
        _synchronise()
        portion = max(1, int(seconds / 10 / (time.perf_counter() - start)))
    rates = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        for _ in range(portion):
            step()
        _synchronise()
        rates.append(portion * variant.steps / (time.perf_counter() - start))
    kernels = _kernels(step) / variant.steps if DEVICE.type == "cuda" else None
    return Measured(statistics.median(rates), kernels)


def _kernels(step: Step) -> int:
    """Kernels, copies and fills that a call runs on the GPU."""
    activity = torch.profiler.ProfilerActivity
    with torch.profiler.profile(activities=[activity.CPU, activity.CUDA]) as profiler:
        step()
        _synchronise()
    return sum(event.device_type.name == "CUDA" for event in profiler.events() or ())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3, help="times that every variant is measured")
    parser.add_argument("--seconds", type=float, default=5.0, help="length of one measurement")
    parser.add_argument("--out", type=Path, help="write the results there as JSON")
    parser.add_argument("--variant", choices=HERE, help="measure this one only and print it")
    options = parser.parse_args()
    if options.variant:
        measured = measure(options.variant, options.seconds)
        print(json.dumps({"rate": measured.rate, "kernels": measured.kernels}))
        return
    rates: dict[str, list[float]] = {name: [] for name in HERE}
    kernels: dict[str, float] = {}
    for _ in range(options.rounds):
        for name in HERE:
            command = [sys.executable, __file__, "--variant", name, "--seconds", str(options.seconds)]
            done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
            last = json.loads(done.stdout.splitlines()[-1])
            rates[name].append(last["rate"])
            if last["kernels"] is not None:
                kernels[name] = last["kernels"]
    results = {name: round(statistics.median(values), 1) for name, values in rates.items()}
    for name, rate in results.items():
        print(f"{name:32s} {rate:6.1f} steps/s  {rate / results['popular code']:.2f}x")
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        setting = f"{RECIPE.architecture}, batch {RECIPE.batch_size}"
        content = {"machine": describe(), "setting": setting, "steps_per_second": results, "rounds": rates}
        if kernels:
            content["kernels_per_step"] = kernels
        options.out.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
