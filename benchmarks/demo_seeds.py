"""Train a recipe from several seeds and count those that find position and scale of dSprites, each in one latent.

Clean, of one seed, says: for each of scale, posX and posY, over the means of 10,000 fixed random images,

- its latent, the one with the largest eta^2 (the share of its variance between the classes of the factor), follows the
  factor without a fold: Spearman's |rho| > 0.9. A folded latent has a large eta^2 and a small rho;
- every other active latent (variance of the mean > 0.01, Burda et al. 2016) has eta^2 < 0.1;
- the three latents are different ones.
"""

import argparse
import json
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import pyvae
from machine import save
from pyvae.data.subset import subset
from pyvae.evaluation.averages import correlation_ratio
from pyvae.metrics import CodeTable, mig
from pyvae.recipes import RECIPES

FACTORS = ("scale", "posX", "posY")
IMAGES = 10_000
ACTIVE = 0.01
LEAST_SPEARMAN = 0.9
MOST_OTHERS = 0.1


def factor_scores(mu: Tensor, classes: Tensor, names: tuple[str, ...]) -> dict[str, Any]:
    """Which latent follows which factor, and whether that is clean.

    Args:
        mu: ``[n, D]``, D at least 2.
        classes: int64 ``[n, F]``.
        names: of the F factors, ``FACTORS`` among them.
    """
    active = mu.double().var(0, correction=0) > ACTIVE
    eta = correlation_ratio(mu, classes) * active[:, None]
    rho = spearman(mu, classes) * active[:, None]
    factors = {}
    for name in FACTORS:
        f = names.index(name)
        second, first = eta[:, f].topk(2).values.flip(0).tolist()
        latent = int(eta[:, f].argmax())
        factors[name] = {
            "latent": latent,
            "eta_squared": round(first, 4),
            "spearman": round(abs(float(rho[latent, f])), 4),
            "second_eta_squared": round(second, 4),
        }
    found = [
        each["spearman"] > LEAST_SPEARMAN and each["second_eta_squared"] < MOST_OTHERS
        for each in factors.values()
    ]
    clean = all(found) and len({each["latent"] for each in factors.values()}) == len(FACTORS)
    return {"clean": clean, "active": int(active.sum()), "factors": factors}


def spearman(codes: Tensor, classes: Tensor) -> Tensor:
    """Spearman's rank correlation ``[D, F]`` of codes ``[n, D]`` and classes ``[n, F]``, ties at their mean rank; 0 for
    what is constant."""
    a, b = _standard_ranks(codes), _standard_ranks(classes)
    return a.T @ b / len(codes)


def _standard_ranks(values: Tensor) -> Tensor:
    columns = []
    for column in values.unbind(-1):
        _, which, counts = column.unique(return_inverse=True, return_counts=True)
        ranks = (counts.cumsum(0).double() - (counts - 1) / 2)[which]
        centred = ranks - ranks.mean()
        columns.append(centred / centred.square().mean().sqrt().clamp_min(torch.finfo(torch.float64).tiny))
    return torch.stack(columns, -1)


@torch.inference_mode()
def codes_of(run: Any) -> CodeTable:
    """Codes of a fixed random part of a run's data."""
    dataset, model = run.dataset, run.model()
    index = subset(dataset, IMAGES)
    parts = zip(*(model.encode(dataset.images(chunk)) for chunk in index.split(500)), strict=True)
    mu, logvar = (torch.cat(part) for part in parts)
    return CodeTable(mu, logvar, dataset.factor_names, dataset.factor_sizes, dataset.factor_classes(index))


def measure(recipe: str, seed: int, out: Path, threads: int) -> dict[str, Any]:
    """Train a seed, or go on with it, and score what it has learnt; times are those of this call's steps."""
    torch.set_num_threads(threads)
    start, cpu_start = time.perf_counter(), time.process_time()
    run = pyvae.train(recipe, out=out, seed=seed, device="cpu")
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
    table = codes_of(run)
    trace = run.trace()
    return {
        "seed": seed,
        **factor_scores(table.mu, table.classes(), table.factor_names),
        "mig": round(mig(table, points=None).score, 4),
        "mig_of_position_and_scale": round(
            mig(table, points=None, without=("shape", "orientation")).score, 4
        ),
        "recon": round(float(trace["recon"][-5:].mean()), 1),
        "kl_of_latents": [round(x, 3) for x in table.mean_kl().tolist()],
        "seconds": round(seconds, 1),
        "cpu_seconds": round(cpu_seconds, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--recipe", default="demo", choices=RECIPES)
    parser.add_argument("--seeds", type=int, default=10, help="this many")
    parser.add_argument("--first", type=int, default=0, help="the first of them")
    parser.add_argument("--jobs", type=int, default=2, help="trainings at a time")
    parser.add_argument("--threads", type=int, default=1, help="of each")
    parser.add_argument(
        "--runs", type=Path, help="folder where the runs are kept; a temporary one by default"
    )
    parser.add_argument("--out", type=Path, help="write the results there as JSON")
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    with (
        tempfile.TemporaryDirectory() as temporary,
        ProcessPoolExecutor(options.jobs, mp_context=get_context("spawn")) as pool,
    ):
        folder = options.runs or Path(temporary)
        jobs = [
            pool.submit(measure, options.recipe, seed, folder / f"seed-{seed}", options.threads)
            for seed in range(options.first, options.first + options.seeds)
        ]
        for job in jobs:
            rows.append(job.result())
            print(json.dumps(rows[-1]), file=sys.stderr)
            save(
                options.out,
                [options.threads],
                recipe=RECIPES[options.recipe][1].to_json(),
                clean=sum(each["clean"] for each in rows),
                of=len(rows),
                seeds=rows,
            )
    print(f"{sum(each['clean'] for each in rows)} of {len(rows)} seeds are clean")


if __name__ == "__main__":
    main()
