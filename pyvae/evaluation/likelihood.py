"""The marginal likelihood of a run."""

import math
from typing import Any

import torch

from pyvae.data.dataset import Dataset
from pyvae.data.subset import subset
from pyvae.engine.arithmetic import settle_arithmetic
from pyvae.engine.run import RunDirectory
from pyvae.errors import PyvaeError
from pyvae.evaluation.marginal_likelihood import (
    GROUP,
    active_units,
    check_black_and_white,
    marginal_likelihood,
)
from pyvae.evaluation.metrics_file import read_metrics, write_metrics

_AT_ONCE = 256
MARGINAL_LIKELIHOOD = "marginal-likelihood"
"""Under which name :func:`score_likelihood` goes beside the metrics of the codes."""


def score_likelihood(run: RunDirectory, dataset: Dataset, **options: Any) -> dict[str, Any]:
    """What :func:`compute_likelihood` finds, also written to ``metrics.json`` under "marginal_likelihood".

    Args:
        run: with a checkpoint, of Bernoulli pixels.
        dataset: that of its recipe.
        options: keyword arguments of :func:`compute_likelihood`, ``device`` among them.

    Raises:
        PyvaeError: as :func:`compute_likelihood`; a file that cannot be written.
    """
    steps, result = compute_likelihood(run, dataset, **options)
    write_metrics(run, steps, dataset, {"marginal_likelihood": result})
    return result


def compute_likelihood(
    run: RunDirectory,
    dataset: Dataset,
    *,
    device: torch.device,
    samples: int = 5000,
    images: int = 1000,
    held_out: Dataset | None = None,
    seed: int = 0,
    progress: bool = True,
) -> tuple[int, dict[str, Any]]:
    """Estimate log p(x) under the run's newest weights, as Burda et al. 2016 and Rainforth et al. 2018 do.

    Args:
        run: with a checkpoint, of Bernoulli pixels.
        dataset: that of its recipe.
        device: where the network runs.
        samples: of each image, at least 64.
        images: of a fixed random subset.
        held_out: images to take instead of the data set's.
        seed: of the noise.
        progress: whether to show a progress bar.

    Returns:
        the steps that the weights were trained for; averages over the images, in nats: "log_p", its standard error
        "log_p_error", "iwae_64", "elbo" and "difference", of iwae_64 and log_p, which the papers write -KL(Q || P);
        "effective_sample_size" out of "samples"; "active_units" out of "latents"; "images" and their "data".

    Raises:
        PyvaeError: no Bernoulli pixels, fewer than 64 samples or one image, images of another shape than the run was
            trained on, or grey ones without binarisation; no checkpoint.
    """
    check_likelihood(run, dataset, samples=samples, images=images, held_out=held_out)
    newest = run.newest_checkpoint()
    net, steps = run.net_of(newest), newest.step
    shown = run.shown(dataset if held_out is None else held_out)
    settle_arithmetic(run.recipe.precision)
    found, means = marginal_likelihood(
        net.to(device),
        lambda index: shown.images(index).to(device),
        subset(shown, images),
        device=device,
        samples=samples,
        seed=seed,
        progress=progress,
    )
    count = len(means)
    averages = {name: float(values.mean()) for name, values in found._asdict().items()}
    return steps, {
        "data": shown.fingerprint,
        "trained_on": newest.metadata["data"],
        "images": count,
        "samples": samples,
        "seed": seed,
        "log_p": averages["log_p"],
        "log_p_error": float(found.log_p.std()) / math.sqrt(count) if count > 1 else None,
        "iwae_64": averages["iwae"],
        "elbo": averages["elbo"],
        "difference": averages["iwae"] - averages["log_p"],
        "effective_sample_size": averages["effective_sample_size"],
        "active_units": active_units(means),
        "latents": net.latents,
    }


def check_likelihood(
    run: RunDirectory, dataset: Dataset, *, samples: int, images: int, held_out: Dataset | None
) -> None:
    """Raise the PyvaeError of :func:`compute_likelihood` that can be told without sampling."""
    if run.adversarial:
        raise PyvaeError(
            f"{MARGINAL_LIKELIHOOD} needs a decoder's likelihood, and {run.path} has a generator: leave it out"
        )
    if run.recipe.likelihood != "bernoulli":
        raise PyvaeError(
            f"{MARGINAL_LIKELIHOOD} is of bernoulli pixels, but the likelihood of {run.path} is {run.recipe.likelihood}"
        )
    if samples < GROUP:
        raise PyvaeError(f"IWAE-{GROUP} needs at least {GROUP} samples, got {samples}")
    if images < 1:
        raise PyvaeError(f"at least 1 image is needed, got {images}")
    shown = run.shown(dataset if held_out is None else held_out)
    run.newest_for(shown)
    if run.recipe.code == "factors" and held_out is not None:
        raise PyvaeError(f"the code of {run.path} is its true factors, which held-out images do not have")
    try:
        for rows in subset(shown, images).split(_AT_ONCE):
            check_black_and_white(shown.images(rows))
    except ValueError as error:
        raise PyvaeError(f"{shown.fingerprint}: {error}") from error


def read_likelihood(run: RunDirectory, steps: int, dataset: Dataset) -> dict[str, Any] | None:
    """What :func:`score_likelihood` wrote for the weights after so many steps of a run on this data, if it did."""
    return read_metrics(run, steps, dataset).get("marginal_likelihood")
