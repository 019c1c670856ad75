"""Steps per second of other libraries and of pyvae: ``python benchmarks/bench_peers.py [--disentangling-vae PATH]``.

pythae and disent come with ``pip install ".[peers]"``; ``--disentangling-vae PATH`` adds a checkout of
github.com/YannDubs/disentangling-vae. What is not there is skipped, and said so; disent runs without a torchvision that
does not load. Every library makes the step that its own trainer makes, with the Burgess network and an Adam of its
default form, from images that lie in memory already: its loader, loggers and loop are left out, which favours it. pyvae
makes its whole step, and once more with the networks' products in bfloat16, where the processor has instructions for
them. Every pair of library and objective runs in a process of its own, round by round, by one thread, then by two; on a
CPU another library's steps are timed there once more with freed buffers kept in the heap, as pyvae's are, which it does
not do by itself. CPU time stands beside wall time. FactorVAE has 2 x 64 images everywhere, and a discriminator of
5 x 1000.
"""

import argparse
import importlib
import json
import logging
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bench_train import DEVICE, NO_BFLOAT16, RECIPE, STRIDE, Step, ours
from checkout import ROOT, commit_of
from machine import save
from pyvae.base import processor
from pyvae.base.allocator import keep_large_buffers
from pyvae.data import load
from pyvae.engine.stepper import BURST
from pyvae.nets import build, count_weights
from pyvae.nets.layers import set_own_convolutions
from pyvae.objectives import DIPVAE, IWAE, TCVAE, BetaVAE, CapacityVAE, FactorVAE
from pyvae.reference import unpack_bits
from rate_rows import words
from step_rate import Rate, add_threads, rate_of, rates_by_threads
from without_torchvision import stand_in

IMAGES = 737_280
SETTLING = 240
"""Seconds after which a process hangs, beyond ten times what it measures for at most."""
KEPT = "buffers kept"
"""Behind the name of a library whose process has pyvae's setting of the allocator."""
SAMPLES = 5
"""Of IWAE."""
OBJECTIVES: dict[str, Any] = {
    "beta-vae": BetaVAE(),
    "capacity-vae": CapacityVAE(),
    "tc-vae": TCVAE(),
    "factor-vae": FactorVAE(discriminator_layers=5),
    "dip-vae": DIPVAE(),
    "iwae": IWAE(samples=SAMPLES),
}


@dataclass
class Model:
    """A step of a library, how many steps a call makes, and the weights that it trains."""

    step: Step
    weights: int
    steps: int = 1


def batches(count: int) -> Iterator[Tensor]:
    """Random images in memory, float32."""
    images = unpack_bits(load("dsprites").bits[::STRIDE], 4096).view(-1, 1, 64, 64).to(DEVICE)
    while True:
        yield images[torch.randint(len(images), (count,), device=DEVICE)].float()


def network() -> Any:
    """For another library: with torch's convolutions."""
    net = build("burgess", 1, RECIPE.latents, init=RECIPE.init).to(DEVICE)
    set_own_convolutions(net, False)
    return net


def pyvae_model(objective: str, _: Path | None, precision: str | None = None) -> Model:
    keep_large_buffers()
    steps = 8 * BURST if DEVICE.type == "cuda" else 1
    # a peer's convolutions are TF32 on a GPU unless it says otherwise
    precision = precision or ("tf32" if DEVICE.type == "cuda" else "fp32")
    made = OBJECTIVES[objective]
    step = ours(steps, capture=DEVICE.type == "cuda", objective=made, precision=precision)
    weights = count_weights(network())
    if isinstance(made, FactorVAE):
        weights += count_weights(made.discriminator(RECIPE.latents))
    return Model(step, weights, steps)


def pythae_model(objective: str, _: Path | None) -> Model:
    logging.disable(logging.WARNING)
    models = importlib.import_module("pythae.models")
    bases = importlib.import_module("pythae.models.nn")
    output = importlib.import_module("pythae.models.base.base_utils").ModelOutput
    net = network()

    class Encoder(bases.BaseEncoder):
        def __init__(self) -> None:
            super().__init__()
            self.inner = net.encoder

        def forward(self, x: Tensor) -> Any:
            mu, logvar = self.inner(x)
            return output(embedding=mu, log_covariance=logvar)

    class Decoder(bases.BaseDecoder):
        def __init__(self) -> None:
            super().__init__()
            self.inner = net.decoder

        def forward(self, z: Tensor) -> Any:
            # some of its models decode [samples, batch, latents]
            images = torch.sigmoid(self.inner(z.reshape(-1, z.shape[-1])))
            return output(reconstruction=images)

    name, options = {
        "beta-vae": ("BetaVAE", {"beta": 4.0}),
        "capacity-vae": ("DisentangledBetaVAE", {"beta": 1000.0, "C": 25.0}),
        "tc-vae": ("BetaTCVAE", {"beta": 6.0}),
        "factor-vae": ("FactorVAE", {"gamma": 35.0}),
        "iwae": ("IWAE", {"number_samples": SAMPLES}),
    }[objective]
    config = getattr(models, f"{name}Config")(
        input_dim=(1, 64, 64), latent_dim=RECIPE.latents, reconstruction_loss="bce", **options
    )
    model = getattr(models, name)(config, Encoder(), Decoder()).to(DEVICE).train()
    extra = {"epoch": 1, "dataset_size": IMAGES, "uses_ddp": False}
    if objective == "factor-vae":
        parts = [*model.encoder.parameters(), *model.decoder.parameters()]
        vae_optimizer = torch.optim.Adam(parts, lr=RECIPE.lr)
        other = torch.optim.Adam(model.discriminator.parameters(), lr=1e-4)
        source = batches(2 * RECIPE.batch_size)

        def factor_step() -> None:
            out = model({"data": next(source)}, **extra)
            vae_optimizer.zero_grad()
            out.autoencoder_loss.backward(retain_graph=True)
            other.zero_grad()
            out.discriminator_loss.backward()
            vae_optimizer.step()
            other.step()
            out.autoencoder_loss.item()
            out.discriminator_loss.item()

        return Model(factor_step, count_weights(model))
    optimizer = torch.optim.Adam(model.parameters(), lr=RECIPE.lr)
    source = batches(RECIPE.batch_size)

    def step() -> None:
        out = model({"data": next(source)}, **extra)
        optimizer.zero_grad()
        out.loss.backward()
        optimizer.step()
        out.loss.item()

    return Model(step, count_weights(model))


def disent_model(objective: str, _: Path | None) -> Model:
    importlib.import_module("lightning")  # before a stand-in that torchmetrics would take for the real thing
    stand_in()
    frameworks = importlib.import_module("disent.frameworks.vae")
    bases = importlib.import_module("disent.model")
    net = network()
    latents = RECIPE.latents

    class Encoder(bases.DisentEncoder):
        def __init__(self) -> None:
            super().__init__(x_shape=(1, 64, 64), z_size=latents, z_multiplier=2)
            self.inner = net.encoder

        def encode(self, x: Tensor) -> Tensor:
            return self.inner.head(self.inner.trunk(x))

    class Decoder(bases.DisentDecoder):
        def __init__(self) -> None:
            super().__init__(x_shape=(1, 64, 64), z_size=latents)
            self.inner = net.decoder

        def decode(self, z: Tensor) -> Tensor:
            return self.inner(z)

    name, options = {
        "beta-vae": ("BetaVae", {"beta": 4.0}),
        "tc-vae": ("BetaTcVae", {"beta": 6.0}),
        "dip-vae": ("DipVae", {"beta": 1.0}),
    }[objective]
    framework_class = getattr(frameworks, name)
    config = framework_class.cfg(
        recon_loss="bce",
        loss_reduction="mean_sum",
        optimizer="adam",
        optimizer_kwargs={"lr": RECIPE.lr},
        **options,
    )
    framework = framework_class(bases.AutoEncoder(Encoder(), Decoder()), cfg=config).to(DEVICE).train()
    optimizer = framework.configure_optimizers()
    source = batches(RECIPE.batch_size)

    def step() -> None:
        loss = framework.training_step({"x_targ": (next(source),)}, 0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return Model(step, count_weights(framework))


def disentangling_vae_model(objective: str, checkout: Path | None) -> Model:
    sys.path.insert(0, str(checkout))
    vars(np).setdefault("product", np.prod)  # gone from numpy 2
    losses = importlib.import_module("disvae.models.losses")
    training = importlib.import_module("disvae.training")
    vae = importlib.import_module("disvae.models.vae")
    common = {"rec_dist": "bernoulli", "steps_anneal": 0}
    if objective == "factor-vae":
        loss = losses.FactorKLoss(
            DEVICE,
            gamma=35.0,
            disc_kwargs={"latent_dim": RECIPE.latents},
            optim_kwargs={"lr": 1e-4, "betas": (0.5, 0.9)},
            **common,
        )
    else:
        loss = {
            "beta-vae": lambda: losses.BetaHLoss(beta=4, **common),
            "capacity-vae": lambda: losses.BetaBLoss(C_fin=25, gamma=1000, **common),
            "tc-vae": lambda: losses.BtcvaeLoss(IMAGES, beta=6.0, is_mss=True, **common),
        }[objective]()
    model = vae.init_specific_model("Burgess", (1, 64, 64), RECIPE.latents)
    optimizer = torch.optim.Adam(model.parameters(), lr=RECIPE.lr)
    folder = tempfile.mkdtemp(prefix="disentangling-vae-")
    trainer = training.Trainer(model, optimizer, loss, device=DEVICE, save_dir=folder, is_progress_bar=False)
    model.train()
    source = batches(RECIPE.batch_size * (2 if objective == "factor-vae" else 1))
    storer: dict[str, list[float]] = defaultdict(list)
    weights = count_weights(model)
    if isinstance(getattr(loss, "discriminator", None), nn.Module):
        weights += count_weights(loss.discriminator)
    return Model(lambda: trainer._train_iteration(next(source), storer), weights)


@dataclass(frozen=True)
class Library:
    """How its model is made, and for which objectives."""

    make: Callable[[str, Path | None], Model]
    objectives: tuple[str, ...]
    needs: str | None = None
    """A package that must be installed."""
    bfloat16: bool = False
    """Whether a CPU must have instructions for it."""


LIBRARIES = {
    "pyvae": Library(pyvae_model, tuple(OBJECTIVES)),
    "pyvae, bf16": Library(partial(pyvae_model, precision="bf16"), tuple(OBJECTIVES), bfloat16=True),
    "pythae": Library(
        pythae_model, ("beta-vae", "capacity-vae", "tc-vae", "factor-vae", "iwae"), needs="pythae"
    ),
    "disent": Library(disent_model, ("beta-vae", "tc-vae", "dip-vae"), needs="disent"),
    "disentangling-vae": Library(
        disentangling_vae_model, ("beta-vae", "capacity-vae", "tc-vae", "factor-vae")
    ),
}


def missing(name: str, checkout: Path | None) -> str | None:
    """Why a library cannot run, if it cannot."""
    needs = LIBRARIES[name].needs
    if LIBRARIES[name].bfloat16 and DEVICE.type == "cpu" and processor.bfloat16() is not True:
        return NO_BFLOAT16
    if needs:
        try:
            version(needs)
        except PackageNotFoundError:
            return 'not installed: pip install ".[peers]"'
    if name == "disentangling-vae":
        if checkout is None:
            return "no checkout given: --disentangling-vae PATH"
        if not (checkout / "disvae").is_dir():
            return f"{checkout} holds no disvae folder"
    return None


def measure(
    library: str, objective: str, checkout: Path | None, seconds: float, threads: list[int]
) -> dict[str, Any]:
    """One library and objective, in this process: packed rates by what has them and by threads, and its weights."""
    torch.manual_seed(0)
    torch.set_num_threads(threads[0])
    model = LIBRARIES[library].make(objective, checkout)

    def rates() -> dict[str, dict[str, Any]]:
        return rates_by_threads(lambda: rate_of(model.step, model.steps, seconds, DEVICE), threads)

    found = {library: rates()}
    if DEVICE.type == "cpu" and not library.startswith("pyvae"):
        keep_large_buffers()  # to the end of the process: last
        found[f"{library}, {KEPT}"] = rates()
    return {"rates": found, "weights": model.weights}


def check_weights(weights: dict[tuple[str, str], int]) -> None:
    """Raises:
    ValueError: two libraries did not train the same number of weights.
    """
    for (library, objective), count in weights.items():
        right = weights.get(("pyvae", objective))
        if right is not None and count != right:
            raise ValueError(
                f"{objective}: {library} trains {count:,} weights and pyvae {right:,}: not the same network"
            )


def versions_of(reasons: dict[str, str | None], checkout: Path | None) -> dict[str, str]:
    """Of the libraries that are there."""
    versions = {
        name: version(has.needs) for name, has in LIBRARIES.items() if has.needs and not reasons[name]
    }
    if checkout and not reasons["disentangling-vae"]:
        versions["disentangling-vae"] = commit_of(checkout) or "no git checkout"
    return versions


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--disentangling-vae", type=Path, metavar="PATH", help="a checkout of it")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=5.0, help="length of one measurement")
    add_threads(parser)
    parser.add_argument("--minutes", type=float, help="begin no measurement after so many")
    parser.add_argument("--objectives", nargs="+", choices=OBJECTIVES, default=list(OBJECTIVES))
    parser.add_argument("--out", type=Path, help="write the results there as JSON")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    checkout = options.disentangling_vae
    if options.one:
        print(json.dumps(measure(*options.one, checkout, options.seconds, options.threads)))
        return
    reasons = {name: missing(name, checkout) for name in LIBRARIES}
    skipped = {name: reason for name, reason in reasons.items() if reason}
    for name, reason in skipped.items():
        print(f"{name} skipped, {reason}")
    if all(name in skipped for name in LIBRARIES if not name.startswith("pyvae")):
        print("no other library is there: nothing to compare with")
        return
    pairs = [
        (library, objective)
        for objective in options.objectives
        for library, has in LIBRARIES.items()
        if library not in skipped and objective in has.objectives
    ]
    rates: dict[tuple[str, str, int], list[Rate]] = {}
    weights: dict[tuple[str, str], int] = {}
    failed = False

    def write() -> list[dict[str, Any]]:
        order = {pair: place for place, pair in enumerate(pairs)}
        rows = [
            {
                "library": library,
                "objective": objective,
                "threads": count,
                **Rate.of_rounds(rates[library, objective, count]).row(),
            }
            for library, objective, count in sorted(
                rates, key=lambda key: order[key[0].removesuffix(f", {KEPT}"), key[1]]
            )
        ]
        if rows:
            save(
                options.out,
                options.threads,
                versions=versions_of(reasons, checkout),
                setting=f"{RECIPE.architecture}, batch {RECIPE.batch_size}",
                rates=rows,
                skipped=skipped,
            )
        return rows

    limit = SETTLING + 20 * options.seconds * len(options.threads)
    end = time.monotonic() + 60 * (options.minutes or float("inf"))
    for _ in range(options.rounds):
        for pair in pairs:
            name = " ".join(pair)
            if time.monotonic() > end or name in skipped:
                continue
            command = [sys.executable, __file__, "--one", *pair, "--seconds", str(options.seconds)]
            command += ["--threads", *map(str, options.threads)]
            if checkout:
                command += ["--disentangling-vae", str(checkout)]
            try:
                done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=limit)
            except subprocess.TimeoutExpired as late:
                skipped[name] = f"failed: no result within {late.timeout:.0f} s"
                continue
            if done.returncode:
                # another's library may not run with this torch: that is a result, not the end
                last = (done.stderr.strip().splitlines() or ["no message"])[-1]
                skipped[name] = f"failed: {last}"
                failed = failed or pair[0].startswith("pyvae")
                continue
            row = json.loads(done.stdout.splitlines()[-1])
            weights[pair] = row["weights"]
            try:
                check_weights(weights)
            except ValueError as error:
                sys.exit(f"refused: {error}")
            for library, by_threads in row["rates"].items():
                for count, packed in by_threads.items():
                    rates.setdefault((library, pair[1], int(count)), []).append(Rate.unpacked(packed))
            write()
    measured = {key[:2] for key in rates}
    skipped |= {
        " ".join(p): "no time left" for p in pairs if p not in measured and " ".join(p) not in skipped
    }
    for row in write():
        print(
            f"{row['objective']:14s} {row['library']:32s} {words(row['threads']):>9s} "
            f"{row['steps_per_second'][1]:8.4g} steps/s  {row['cpu_ms'][1]:8.4g} ms of the CPU"
        )
    for name, reason in skipped.items():
        print(f"{name}: {reason}")
    sys.exit(failed)


if __name__ == "__main__":
    main()
