"""Metrics of dSprites against plain numpy and the forms of the popular code: ``python benchmarks/bench_metrics.py``.

MIG by histogram and MIG of Chen et al. 2018 of all 737,280 images and 10 latents, and the pass of the encoder that both
need, by convolutions of our own and by torch's. What would take hours is timed on a slice and multiplied, and marked
so. Ways whose numbers differ are refused.
"""

import argparse
import copy
import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.metrics import mutual_info_score
from torch.utils.data import DataLoader, Dataset

from bench_code_histogram import popular as numpy_counts
from bench_train import TORCHS
from interleaved import Spread, synchronise
from machine import save
from pyvae import code_histogram, posterior_entropy
from pyvae.base.allocator import keep_large_buffers
from pyvae.data import load
from pyvae.engine.batches import ImageSource
from pyvae.metrics import CodeTable, mig, mig_chen
from pyvae.metrics.mig_chen import MigChen
from pyvae.metrics.table import encode
from pyvae.nets import Autoencoder, build
from pyvae.nets.layers import set_own_convolutions
from pyvae.ops.posterior_entropy import sampled_entropy

SIZES = (3, 6, 40, 32, 32)
NAMES = ("shape", "scale", "orientation", "x", "y")
IMAGES = math.prod(SIZES)
SAMPLES = 10_000
"""That the popular code draws for each entropy."""
CHUNK = 10


@dataclass(frozen=True)
class Way:
    """One way of computing a metric."""

    call: Callable[[], Any]
    scale: float = 1.0
    """Seconds of the whole over those of the call, where the call does a slice."""
    check: Callable[[Any], Any] = lambda result: result
    """What of the result must agree with the other ways; None has nothing to compare."""


def codes() -> CodeTable:
    """Of a network that learnt: five latents that follow a factor with noise, five that are nearly the prior."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.arange(IMAGES)
    used = []
    for f, size in enumerate(SIZES):
        classes = rows // math.prod(SIZES[f + 1 :]) % size
        used.append(classes / (size - 1) * 3 - 1.5 + 0.1 * torch.randn(IMAGES, generator=generator))
    idle = 0.05 * torch.randn(IMAGES, 5, generator=generator)
    logvar = torch.cat([torch.full((IMAGES, 5), -4.0), torch.full((IMAGES, 5), -0.01)], 1)
    return CodeTable(torch.cat([torch.stack(used, 1), idle], 1), logvar, NAMES, SIZES)


def _gap(information: np.ndarray, entropies: np.ndarray) -> float:
    best = np.sort(information, 0)
    return float(((best[-1] - best[-2]) / entropies).mean())


def numpy_mig(mu: torch.Tensor, factors: torch.Tensor) -> float:
    """From joint counts, all in numpy."""
    counts = numpy_counts(mu, factors).numpy()
    information, entropies = [], []
    for block in np.split(counts, np.cumsum(SIZES)[:-1], -1):
        p = block / IMAGES
        own, other = p.sum(1), p.sum(2)
        ratio = np.divide(p, own[:, None] * other[:, :, None], out=np.ones_like(p), where=p > 0)
        information.append((p * np.log(ratio)).sum((1, 2)))
        entropies.append(-(own[0] * np.log(own[0])).sum())
    return _gap(np.stack(information, 1), np.array(entropies))


def pairwise_information(mu: torch.Tensor, factors: torch.Tensor, latent: int) -> np.ndarray:
    """Of one latent with every factor, a call of sklearn each, as disentanglement_lib does it."""
    x = mu[:, latent].double().numpy()
    binned = np.digitize(x, np.histogram(x, 20)[1][:-1])
    return np.array([mutual_info_score(column, binned) for column in factors.numpy().T])


def histogram_ways(table: CodeTable, device: torch.device) -> dict[str, Way]:
    mu, factors = table.mu, table.classes(torch.arange(IMAGES))
    on_device = mu.to(device)
    ours = mig(table, points=None).information
    ways = {
        "pyvae": Way(lambda: mig(table, points=None).score),
        "plain numpy": Way(lambda: numpy_mig(mu, factors)),
        "sklearn for every pair (one latent timed)": Way(
            lambda: np.abs(pairwise_information(mu, factors, 0) - ours[0]).max(), 10, _is_nothing
        ),
    }
    if device.type == "cuda":
        counts = code_histogram(mu, None, SIZES).counts
        ways["pyvae, counts alone, on the GPU"] = Way(
            lambda: code_histogram(on_device, None, SIZES).counts,
            check=lambda found: _is_nothing((found.cpu() - counts).abs().max()),
        )
    return ways


def _is_nothing(error: Any) -> None:
    assert float(error) < 1e-9, f"differs by {float(error)}"


def pairs_of_samples() -> int:
    """Samples times posteriors of the marginal entropy and of all conditional ones."""
    subsets = [IMAGES] + [IMAGES // size for size in SIZES for _ in range(size)]
    return sum(min(SAMPLES, n) * n for n in subsets)


def numpy_log_q(z: np.ndarray, mu: np.ndarray, logvar: np.ndarray) -> np.ndarray:
    """Of samples ``[S, D]`` under the mixture, in float32 as the others."""
    constant = np.float32(math.log(2 * math.pi))
    found = []
    for row in z:
        density = np.float32(-0.5) * ((row - mu) ** 2 * np.exp(-logvar) + logvar + constant)
        most = density.max(0)
        found.append(most + np.log(np.exp(density - most).sum(0, dtype=np.float64)) - math.log(len(mu)))
    return np.stack(found)


def streamed_log_q(z: torch.Tensor, mu: torch.Tensor, logvar: torch.Tensor) -> torch.Tensor:
    """As the estimator of Chen et al. streams it: a few samples at a time against every posterior."""
    sigma = torch.exp(0.5 * logvar).unsqueeze(1)
    standard = (z.unsqueeze(0) - mu.unsqueeze(1)) / sigma
    density = -0.5 * (standard * standard + 2 * torch.log(sigma) + math.log(2 * math.pi))
    return torch.logsumexp(density, 0) - math.log(len(mu))


def chen_ways(table: CodeTable, device: torch.device) -> dict[str, Way]:
    mu, logvar = table.mu, table.logvar
    generator = torch.Generator().manual_seed(1)
    rows = torch.randint(IMAGES, (CHUNK,), generator=generator)
    z = mu[rows] + torch.exp(0.5 * logvar[rows]) * torch.randn(CHUNK, 10, generator=generator)
    exact = -sampled_entropy(z, mu, logvar)[0].numpy()
    far_mu, far_logvar, far_z = (x.to(device) for x in (mu, logvar, z))

    def agrees(log_q: Any) -> None:
        np.testing.assert_allclose(np.asarray(log_q).mean(0), exact, atol=1e-3)

    # more samples, from fewer posteriors, for the quadrature; given its own factor, a used latent is one Gaussian
    few = torch.randint(IMAGES, (20_000,), generator=generator)
    drawn = mu[few[:2000]] + torch.exp(0.5 * logvar[few[:2000]]) * torch.randn(2000, 10, generator=generator)
    estimate, deviation = (x.numpy() for x in sampled_entropy(drawn, mu[few], logvar[few]))
    given = 0.5 * math.log(2 * math.pi * math.e * (0.1**2 + math.exp(-4)))

    def integrates(found: MigChen) -> None:
        assert (np.abs(found.marginal - estimate) < 6 * deviation).all(), "marginal entropies"
        np.testing.assert_allclose(np.diag(found.conditional), given, atol=0.01)

    scale = pairs_of_samples() / (CHUNK * IMAGES)
    ways = {
        "pyvae, quadrature": Way(lambda: mig_chen(table, progress=False), check=integrates),
        f"plain numpy, sampled ({CHUNK} samples timed)": Way(
            lambda: numpy_log_q(z.numpy(), mu.numpy(), logvar.numpy()), scale, agrees
        ),
        f"streamed samples, as published ({CHUNK} samples timed)": Way(
            lambda: streamed_log_q(far_z, far_mu, far_logvar).cpu().numpy(), scale, agrees
        ),
    }
    if device.type == "cuda":
        marginal = posterior_entropy(mu, logvar, SIZES).marginal

        def close(found: Any) -> None:
            torch.testing.assert_close(found.marginal.cpu(), marginal, rtol=0, atol=1e-5)

        ways["pyvae, entropies alone, on the GPU"] = Way(
            lambda: posterior_entropy(far_mu, far_logvar, SIZES), check=close
        )
    return ways


class _Items(Dataset):
    """Images one by one, as float32."""

    def __init__(self, images: torch.Tensor) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> torch.Tensor:
        return self.images[i].float()


def encoder_ways(device: torch.device) -> dict[str, Way]:
    """Of the Burgess network; on a CPU a slice of the images is timed."""
    dataset = load("dsprites")
    popular = build("burgess", 1, 10).to(device)
    set_own_convolutions(popular, False)
    net = build("burgess", 1, 10).to(device, memory_format=torch.channels_last)  # as a run is opened
    part = 8192 if device.type == "cpu" else IMAGES
    slice_ = min(part, 65_536)
    step = IMAGES // part
    source = ImageSource(dataset, device).images
    rows = torch.arange(0, part * step, step)
    few = rows[:slice_]
    stored = dataset.images(few).to(torch.uint8)
    first = encode(net, dataset, device=device, images=source, index=few[:64], progress=False).mu

    @torch.no_grad()
    def batches_of_16() -> torch.Tensor:
        return torch.cat(
            [popular.encoder(x.to(device).float())[0].cpu() for x in stored[: slice_ // 8].split(16)]
        )

    @torch.no_grad()
    def loader() -> torch.Tensor:
        batches = DataLoader(_Items(stored), 1000, num_workers=1)
        return torch.cat([popular.encoder(x.to(device))[0].cpu() for x in batches])

    def close(mu: Any) -> None:
        torch.testing.assert_close(torch.as_tensor(mu)[:64], first, rtol=1e-3, atol=1e-3)

    def ours(net: Autoencoder) -> Way:
        return Way(
            lambda: encode(net, dataset, device=device, images=source, index=rows, progress=False).mu,
            IMAGES / part,
            close,
        )

    timed = "" if part == IMAGES else f" ({part:,} images timed)"
    ways = {f"pyvae{timed}": ours(net)}
    if device.type == "cpu":
        other = copy.deepcopy(net)
        set_own_convolutions(other, False)
        ways[f"pyvae, {TORCHS}{timed}"] = ours(other)
    return ways | {
        f"batches of 16, as disentanglement_lib ({slice_ // 8:,} images timed)": Way(
            batches_of_16, IMAGES / (slice_ // 8), close
        ),
        f"DataLoader, item by item, batches of 1,000 ({slice_:,} images timed)": Way(
            loader, IMAGES / slice_, close
        ),
    }


def whole_ways(device: torch.device) -> dict[str, Way]:
    """From weights to the counts and entropies of both MIGs, all on the GPU."""
    dataset = load("dsprites")
    net = build("burgess", 1, 10).to(device)
    source = ImageSource(dataset, device).images

    @torch.inference_mode()
    def call() -> float:
        codes = [net.encoder(source(rows)) for rows in torch.arange(IMAGES, device=device).split(8192)]
        mu, logvar = (torch.cat(parts).float() for parts in zip(*codes, strict=True))
        counts = code_histogram(mu, None, SIZES).counts.cpu()
        entropies = posterior_entropy(mu, logvar, SIZES).marginal.cpu()
        return float(counts.sum()) + float(entropies.sum())

    return {"pyvae, from weights": Way(call, check=lambda _: None)}


def measure(metric: str, ways: dict[str, Way], device: torch.device, rounds: int) -> list[dict[str, Any]]:
    """Rows of one metric, its ways in turn.

    Raises:
        AssertionError: a way gives another result than the first.
    """
    scores = {}
    for name, way in ways.items():
        value = way.check(way.call())
        if value is not None:
            scores[name] = value
    if scores:
        first = next(iter(scores.values()))
        for name, value in scores.items():
            np.testing.assert_allclose(value, first, rtol=1e-6, err_msg=f"{metric}: {name}")
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            synchronise(device)
            start = time.perf_counter()
            way.call()
            synchronise(device)
            seconds[name].append((time.perf_counter() - start) * way.scale)
    return [
        {
            "metric": metric,
            "way": name,
            "seconds": Spread.of(seconds[name]).rounded(),
            "extrapolated": ways[name].scale != 1,
        }
        for name in ways
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1, help="of the CPU")
    parser.add_argument("--out", type=Path, help="write the results there as JSON")
    options = parser.parse_args()
    keep_large_buffers()
    torch.set_num_threads(options.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    table = codes()
    parts: dict[str, Callable[[], dict[str, Way]]] = {}
    if device.type == "cuda":
        # seconds, where the others take minutes of the CPU
        parts["counts and entropies from weights"] = lambda: whole_ways(device)
    parts |= {
        "MIG, histogram": lambda: histogram_ways(table, device),
        "MIG, Chen et al.": lambda: chen_ways(table, device),
        "encoder pass": lambda: encoder_ways(device),
    }
    results, wrong = {}, []
    for metric, make in parts.items():
        try:
            results[metric] = measure(metric, make(), device, options.rounds)
        except Exception as error:
            # the other metrics have their times all the same
            how = "refused" if isinstance(error, AssertionError) else "failed"
            wrong.append(f"{how}: {metric}: {' '.join(str(error).split())}")
            continue
        for row in results[metric]:
            about = "  extrapolated" if row["extrapolated"] else ""
            print(f"{metric:34s} {row['way']:60s} {row['seconds'][1]:12.5g} s{about}", flush=True)
        save(options.out, metrics=results)
    if wrong:
        sys.exit("\n".join(wrong))


if __name__ == "__main__":
    main()
