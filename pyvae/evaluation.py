"""Metrics of a run, kept in its ``metrics.json``."""

import json
import logging
import math
from collections.abc import Sequence
from inspect import signature
from typing import Any, TypedDict

import torch

from pyvae.adversarial_nets import AdversarialPair
from pyvae.data.dataset import Dataset, FactorDataset
from pyvae.data.subset import subset
from pyvae.engine.arithmetic import settle_arithmetic
from pyvae.engine.batches import ImageSource
from pyvae.engine.files import cause_of, set_aside, write_atomically
from pyvae.engine.plain import checked, read_json
from pyvae.engine.run import Run
from pyvae.errors import PyvaeError
from pyvae.marginal_likelihood import GROUP, active_units, marginal_likelihood
from pyvae.metrics import METRICS, encode, evaluate
from pyvae.nets import Autoencoder
from pyvae.objectives import InfoGAN

_LOG = logging.getLogger(__name__)
UNSUPERVISED = "unsupervised"
OF_VARIANCES = frozenset({"mig-chen"})
"""Metrics that read the variance of a posterior, not only the mean of a code."""
MARGINAL_LIKELIHOOD = "marginal-likelihood"
"""Under which name :func:`score_likelihood` goes beside the metrics of the codes."""


class _Of(TypedDict):
    steps: int
    data: str


class _Score(TypedDict, total=False):
    score: float | None
    factors: list[str]


class _Likelihood(TypedDict):
    data: str
    trained_on: str
    images: int
    samples: int
    seed: int
    log_p: float
    log_p_error: float | None
    iwae_64: float
    elbo: float
    difference: float
    effective_sample_size: float
    active_units: int
    latents: int


class Metrics(_Of, total=False):
    """What ``metrics.json`` holds, all of it of the weights after ``steps`` steps and of ``data``: ``scores`` of
    :func:`score`, ``marginal_likelihood`` of :func:`score_likelihood`, and what a report computes."""

    scores: dict[str, _Score]
    marginal_likelihood: _Likelihood
    images: int
    recon: float
    kl: float
    elbo: float
    kl_of_latents: list[float]
    factors: list[str]
    eta_squared: list[list[float]] | None
    information: float
    information_of_codes: list[float]


def score(
    run: Run,
    dataset: Dataset,
    names: Sequence[str],
    *,
    device: torch.device,
    without: Sequence[str] = (),
    seed: int = 0,
) -> dict[str, Any]:
    """Encode the whole data set once with the run's newest weights, and compute metrics from the codes.

    Codes of InfoGAN are those of its information head; see :class:`pyvae.adversarial_nets.CodePosterior`.

    Args:
        run: with a checkpoint.
        dataset: that of its recipe; without known factors, "unsupervised" alone can be computed.
        names: keys of :data:`pyvae.metrics.METRICS`.
        device: where the encoder runs.
        without: factors to leave out, "shape" for the four-factor MIG of Chen et al. 2018.
        seed: of what the metrics draw.

    Returns:
        for each metric the fields of its result, also written to ``metrics.json`` under "scores".

    Raises:
        PyvaeError: unknown metric or factor, no factors, no checkpoint, or a metric that cannot be computed.
    """
    for name in names:
        if name not in METRICS:
            raise PyvaeError(f"unknown metric {name!r}: there are {', '.join(METRICS)}")
    supervised = [name for name in names if name != UNSUPERVISED]
    if supervised and not isinstance(dataset, FactorDataset):
        raise PyvaeError(
            f"the factors of {run.recipe.data} are not known, which {', '.join(supervised)} need: "
            f"only --metrics {UNSUPERVISED} can do without"
        )
    if run.recipe.code == "factors":
        raise PyvaeError(f"the code of {run.path} is its true factors: there is no encoder to evaluate")
    net: Autoencoder | AdversarialPair
    newest = run.newest_checkpoint()
    if run.adversarial:
        _check_variance(run, names)
    net, steps = run.pair_of(newest) if run.adversarial else run.net_of(newest), newest.step
    settle_arithmetic(run.recipe.precision)
    dataset = run.shown(dataset)
    images = ImageSource(dataset, device).images
    table = encode(net.to(device), dataset, device=device, images=images)
    options: dict[str, dict[str, Any]] = {name: _all_points(name, len(dataset)) for name in names}
    for name in supervised:
        options[name]["without"] = tuple(without)
    try:
        scores = evaluate(table, names, seed=seed, options=options)
    except ValueError as error:
        raise PyvaeError(str(error)) from error
    earlier = read_scores(run, steps, dataset)
    write_metrics(run, steps, dataset, {"scores": {**earlier, **scores}})
    return scores


def _check_variance(run: Run, names: Sequence[str]) -> None:
    """Refuse metrics of a posterior that the information head does not give."""
    objective = run.recipe.objective
    if not isinstance(objective, InfoGAN) or (objective.variance == "learned" and not objective.categories):
        return
    if refused := [name for name in names if name in OF_VARIANCES]:
        possible = " ".join(name for name in METRICS if name not in OF_VARIANCES)
        raise PyvaeError(
            f"{', '.join(refused)} needs the variance of every code, which the information head of {run.path} does "
            f"not give (it would with --variance learned --categories 0): --metrics {possible}"
        )


def _all_points(name: str, size: int) -> dict[str, None]:
    """Options that let a metric take all images where there are fewer than it draws by default."""
    parameters = signature(METRICS[name]).parameters
    sizes = (parameters[option] for option in ("points", "variance_points") if option in parameters)
    return {p.name: None for p in sizes if p.default is not None and p.default > size}


def score_likelihood(
    run: Run,
    dataset: Dataset,
    *,
    device: torch.device,
    samples: int = 5000,
    images: int = 1000,
    held_out: Dataset | None = None,
    seed: int = 0,
    progress: bool = True,
) -> dict[str, Any]:
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
        averages over the images, in nats: "log_p", its standard error "log_p_error", "iwae_64", "elbo" and
        "difference", of iwae_64 and log_p, which the papers write -KL(Q || P); "effective_sample_size" out of
        "samples"; "active_units" out of "latents"; "images" and their "data". Also written to ``metrics.json`` under
        "marginal_likelihood".

    Raises:
        PyvaeError: no Bernoulli pixels, fewer than 64 samples or one image, images of another shape than the run was
            trained on, or grey ones without binarisation; no checkpoint.
    """
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
    newest = run.newest_checkpoint()
    net, steps = run.net_of(newest), newest.step
    shown = run.shown(dataset if held_out is None else held_out)
    if (trained_on := tuple(newest.metadata["image_shape"])) != shown.image_shape:
        raise PyvaeError(
            f"{run.path} was trained on images of shape {trained_on}, but those of {shown.fingerprint} are "
            f"{shown.image_shape}"
        )
    if net.reads_factors and held_out is not None:
        raise PyvaeError(f"the code of {run.path} is its true factors, which held-out images do not have")
    settle_arithmetic(run.recipe.precision)
    try:
        found, means = marginal_likelihood(
            net.to(device),
            lambda index: shown.images(index).to(device),
            subset(shown, images),
            device=device,
            samples=samples,
            seed=seed,
            progress=progress,
        )
    except ValueError as error:
        raise PyvaeError(f"{shown.fingerprint}: {error}") from error
    count = len(means)
    averages = {name: float(values.mean()) for name, values in found._asdict().items()}
    result = {
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
    write_metrics(run, steps, dataset, {"marginal_likelihood": result})
    return result


def read_likelihood(run: Run, steps: int, dataset: Dataset) -> dict[str, Any] | None:
    """What :func:`score_likelihood` wrote for the weights after so many steps of a run on this data, if it did."""
    return _read(run, steps, dataset).get("marginal_likelihood")


def read_scores(run: Run, steps: int, dataset: Dataset) -> dict[str, Any]:
    """Scores in ``metrics.json``, if they are of the weights after so many steps and of this data."""
    return _read(run, steps, dataset).get("scores", {})


def write_metrics(run: Run, steps: int, dataset: Dataset, values: dict[str, Any]) -> None:
    """Put values into ``metrics.json``; what stood there is kept if it is of the same weights and data."""
    content = {**_read(run, steps, dataset), "steps": steps, "data": dataset.fingerprint, **values}
    write_atomically(run.path / "metrics.json", (json.dumps(content, indent=2) + "\n").encode())


def _read(run: Run, steps: int, dataset: Dataset) -> dict[str, Any]:
    """What ``metrics.json`` holds of these weights and this data; a file that is none is kept under another name."""
    path = run.path / "metrics.json"
    try:
        saved = checked(read_json(path), Metrics)
    except FileNotFoundError:
        return {}
    except OSError as error:
        reason = cause_of(error)
    except ValueError as error:
        reason = str(error)
    else:
        same = (saved["steps"], saved["data"]) == (steps, dataset.fingerprint)
        return saved if same else {}
    kept = set_aside(path)
    _LOG.warning("%s is damaged (%s): kept as %s", path, reason, kept.name)
    return {}
