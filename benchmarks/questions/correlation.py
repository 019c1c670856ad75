"""Does the discriminator see the total correlation, and is FactorVAE's code less entangled at equal reconstruction?"""

from collections.abc import Sequence
from typing import Any

import torch

import pyvae
from pyvae.metrics import CodeTable, factor_vae, mig, total_correlation, unsupervised
from pyvae.nets import build
from pyvae.objectives import FactorVAE
from pyvae.objectives.tc_vae import decompose_kl
from questions import correlation_pictures, correlation_tables
from questions.discriminator import catch_up, discriminator_of, says
from questions.question import Question, Result
from questions.runs import ALL, GRID, dead_in, dead_of, grid_codes, snapshot, steps_of

BATCHES = ((64, 128), (2048, 4))
"""Of beta-TCVAE's estimates: images in one, and how many."""
_SEED = 23


def measure(run: pyvae.Run) -> Result:
    """Total correlation and its estimates at every snapshot, of an eighth of the images; at the end also of all."""
    steps = steps_of(run)
    found: Result = {
        "dead_at_first": dead_at_first(run),
        "snapshots": [snapshot_of(run, step) for step in steps],
    }
    codes = grid_codes(run, run.step, ALL)
    found["whole"] = {
        **correlation_of(codes),
        "minibatch": minibatch_estimates(codes),
        "mig": round(mig(codes).score, 4),
        "factor_vae": round(factor_vae(codes).score, 4),
    }
    if isinstance(run.recipe.objective, FactorVAE):
        found["caught_up"] = catch_up(run, run.step, codes)
        found["most"] = most_correlated(run, found["snapshots"])
    return found


def most_correlated(run: pyvae.Run, snapshots: Sequence[Result]) -> Result:
    """Of the snapshot with the highest total correlation: the latent that is farthest from the prior, mean and standard
    deviation of its codes, and what the discriminator says of them after more steps of its own."""
    most = max(snapshots, key=lambda each: each["tc"])
    codes = grid_codes(run, most["step"], GRID)
    mean = codes.mu.double().mean(0)
    far = int(mean.abs().argmax())
    return {
        "step": most["step"],
        "tc": most["tc"],
        "farthest": [round(float(value), 3) for value in (mean[far], codes.mu[:, far].std())],
        "caught_up": catch_up(run, most["step"], codes),
    }


def dead_at_first(run: pyvae.Run) -> list[list[int]]:
    """As :func:`dead_of`, of the initial weights."""
    recipe = run.recipe
    channels, side, _ = run.dataset.image_shape
    net = build(recipe.architecture, channels, recipe.latents, side=side, init=recipe.init, seed=recipe.seed)
    return dead_in(net.encoder, run.dataset)


def snapshot_of(run: pyvae.Run, step: int) -> dict[str, Any]:
    """Averages over 4,096 fixed images, and correlations of the codes of a grid."""
    averages = snapshot(run, step)
    codes = grid_codes(run, step, GRID)
    found = {
        "step": step,
        "recon": round(averages.recon, 3),
        "kl": round(sum(averages.kl), 4),
        "dead": dead_of(run, step),
        **correlation_of(codes),
    }
    if isinstance(run.recipe.objective, FactorVAE):
        found["discriminator"] = says(discriminator_of(run, step), codes)
    return found


def correlation_of(codes: CodeTable) -> dict[str, Any]:
    """Total correlation by its density, the other parts of the KL, and what Gaussians of the same covariance have."""
    found = total_correlation(codes, progress=False)
    of_means = unsupervised(codes, points=None).gaussian_total_correlation
    numbers = {
        "tc": found.score,
        "tc_error": found.standard_error,
        "mutual_information": found.kl[0],
        "dimension_wise_kl": found.kl[2],
        "gaussian": found.gaussian,
        "gaussian_of_means": of_means,
    }
    return {"images": len(codes), **{name: round(float(value), 4) for name, value in numbers.items()}}


def minibatch_estimates(codes: CodeTable) -> dict[str, float]:
    """Total correlation as beta-TCVAE estimates it, by weighting and size of the batch: means over batches."""
    found = {}
    for weighting in ("mws", "mss"):
        for size, batches in BATCHES:
            g = torch.Generator().manual_seed(_SEED)
            each = []
            for _ in range(batches):
                rows = torch.randperm(len(codes), generator=g)[:size]
                mu, logvar = codes.mu[rows], codes.logvar[rows]
                z = mu + torch.exp(0.5 * logvar) * torch.randn(mu.shape, generator=g)
                parts = decompose_kl(z, mu, logvar, dataset_size=len(codes), weighting=weighting)
                each.append(float(parts.tc))
            found[f"{weighting} {size}"] = round(sum(each) / batches, 3)
    return found


QUESTION = Question(
    arms=correlation_tables.ARMS,
    measure=measure,
    pictures=correlation_pictures.pictures,
    tables={
        "trained": correlation_tables.trained,
        "runs": correlation_tables.runs,
        "estimates": correlation_tables.estimates,
        "still": correlation_tables.still,
        "equal": correlation_tables.equal,
        "dead": correlation_tables.dead,
    },
)
