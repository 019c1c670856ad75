"""Metrics of a run, kept in its ``metrics.json``."""

import json
import logging
import math
from collections.abc import Mapping, Sequence
from inspect import signature
from typing import Any, NamedTuple, TypedDict

import torch
from torch import Tensor

from pyvae.data.dataset import Dataset, FactorDataset
from pyvae.data.subset import subset
from pyvae.engine.arithmetic import settle_arithmetic
from pyvae.engine.batches import ImageSource
from pyvae.engine.files import cause_of, set_aside, write_atomically
from pyvae.engine.lock import lock
from pyvae.engine.plain import checked, read_json
from pyvae.engine.run import RunDirectory
from pyvae.errors import PyvaeError, RunError
from pyvae.evaluation.marginal_likelihood import (
    GROUP,
    active_units,
    check_black_and_white,
    marginal_likelihood,
)
from pyvae.metrics import METRICS, encode, evaluate_possible, unavailable
from pyvae.nets import Autoencoder
from pyvae.nets.adversarial import AdversarialPair
from pyvae.objectives import InfoGAN

_LOG = logging.getLogger(__name__)
_AT_ONCE = 256
UNSUPERVISED = "unsupervised"
OF_VARIANCES = frozenset({"mig-chen"})
"""Metrics that read the variance of a posterior, not only the mean of a code."""
MARGINAL_LIKELIHOOD = "marginal-likelihood"
"""Under which name :func:`score_likelihood` goes beside the metrics of the codes."""


class Scores(NamedTuple):
    """Metrics of a run's newest weights."""

    steps: int
    """That the weights were trained for."""
    found: dict[str, Any]
    """For each metric the fields of its result."""
    missing: dict[str, str]
    """Metrics that could not be computed, and why."""


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
    run: RunDirectory,
    dataset: Dataset,
    names: Sequence[str],
    *,
    device: torch.device,
    without: Sequence[str] = (),
    seed: int = 0,
) -> dict[str, Any]:
    """What :func:`compute_scores` finds, also written to ``metrics.json`` under "scores".

    Returns:
        for each metric the fields of its result.

    Raises:
        PyvaeError: as :func:`check_scores` and :func:`compute_scores`; a metric that cannot be computed, after the
            others were written; a file that cannot be written.
    """
    names = list(dict.fromkeys(names))
    missing = check_scores(run, dataset, names, without=without, seed=seed)
    possible = [name for name in names if name not in missing]
    if not possible:
        raise PyvaeError(none_of(missing))
    scores = compute_scores(run, dataset, possible, device=device, without=without, seed=seed)
    write_metrics(run, scores.steps, dataset, {"scores": scores.found})
    if missing := missing | scores.missing:
        raise PyvaeError(none_of(missing))
    return scores.found


def compute_scores(
    run: RunDirectory,
    dataset: Dataset,
    names: Sequence[str],
    *,
    device: torch.device,
    without: Sequence[str] = (),
    seed: int = 0,
    images: int | None = None,
) -> Scores:
    """Encode the data set once with the run's newest weights, and compute metrics from the codes.

    Codes of InfoGAN are those of its information head; see :class:`pyvae.nets.adversarial.CodePosterior`.

    Args:
        run: with a checkpoint.
        dataset: that of its recipe; without known factors, "unsupervised" alone can be computed.
        names: those of :data:`pyvae.metrics.METRICS` that :func:`check_scores`, to be asked first, has nothing against.
        device: where the encoder runs.
        without: factors to leave out, "shape" for the four-factor MIG of Chen et al. 2018.
        seed: of what the metrics draw.
        images: of a fixed random subset, instead of all; each score then says how many. Metrics that intervene on
            factors cannot be computed of those.

    Raises:
        PyvaeError: no checkpoint, or images of another shape than it was trained on.
    """
    net: Autoencoder | AdversarialPair
    newest = run.newest_for(dataset)
    net, steps = run.pair_of(newest) if run.adversarial else run.net_of(newest), newest.step
    settle_arithmetic(run.recipe.precision)
    dataset = run.shown(dataset)
    index = _part(dataset, images)
    source = ImageSource(dataset, device).images
    table = encode(net.to(device), dataset, device=device, index=index, images=source)
    options = _options(len(table.mu), names, without)
    found, failed = evaluate_possible(table, names, seed=seed, options=options)
    # what is not as usual stands in the scores, so that nobody takes them for others
    apart = ({} if index is None else {"images": len(index)}) | ({"seed": seed} if seed else {})
    found = {name: {**score, **apart} for name, score in found.items()}
    return Scores(steps, found, failed)


def _part(dataset: Dataset, images: int | None) -> Tensor | None:
    """Indices of so many images, None for all of them."""
    return None if images is None or images >= len(dataset) else subset(dataset, images)


def check_scores(
    run: RunDirectory,
    dataset: Dataset,
    names: Sequence[str],
    *,
    without: Sequence[str] = (),
    seed: int = 0,
    images: int | None = None,
) -> dict[str, str]:
    """Which metrics cannot be computed of a run, and why, as far as can be told without its codes.

    Raises:
        PyvaeError: an unknown metric or factor, or a run without an encoder.
    """
    for name in names:
        if name not in METRICS:
            raise PyvaeError(f"unknown metric {name!r}: there are {', '.join(METRICS)}")
    if run.recipe.code == "factors":
        raise PyvaeError(f"the code of {run.path} is its true factors: there is no encoder to evaluate")
    if not isinstance(dataset, FactorDataset):
        why = f"the factors of {run.recipe.data} are not known, and only {UNSUPERVISED} can do without"
        return {name: why for name in names if name != UNSUPERVISED}
    for factor in without:
        if factor not in dataset.factor_names:
            raise PyvaeError(f"without: no factor {factor!r}; there are {', '.join(dataset.factor_names)}")
    index = _part(dataset, images)
    missing = unavailable(
        names,
        latents=run.recipe.latents,
        factor_names=dataset.factor_names,
        factor_sizes=dataset.factor_sizes,
        factors=None if index is None else dataset.factor_classes(index),
        seed=seed,
        options=_options(len(dataset) if index is None else len(index), names, without),
    )
    return missing | _without_variance(run, names)


def none_of(missing: Mapping[str, str]) -> str:
    """Why none of some metrics can be computed, each reason once."""
    reasons: dict[str, list[str]] = {}
    for name, why in missing.items():
        reasons.setdefault(why, []).append(name)
    return "; ".join(f"{', '.join(names)}: {why}" for why, names in reasons.items())


def _without_variance(run: RunDirectory, names: Sequence[str]) -> dict[str, str]:
    """Metrics of a posterior that the information head does not give."""
    objective = run.recipe.objective
    if not isinstance(objective, InfoGAN) or (objective.variance == "learned" and not objective.categories):
        return {}
    why = (
        f"needs the variance of every code, which the information head of {run.path} does not give (it would with "
        "--variance learned --categories 0)"
    )
    return {name: why for name in names if name in OF_VARIANCES}


def _options(rows: int, names: Sequence[str], without: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Of each metric: the factors to leave out, and all images where there are fewer than it draws by default."""
    options: dict[str, dict[str, Any]] = {}
    for name in names:
        parameters = signature(METRICS[name]).parameters
        sizes = (parameters[option] for option in ("points", "variance_points") if option in parameters)
        options[name] = {p.name: None for p in sizes if p.default is not None and p.default > rows}
        if name != UNSUPERVISED:
            options[name]["without"] = tuple(without)
    return options


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


def read_scores(run: RunDirectory, steps: int, dataset: Dataset) -> dict[str, Any]:
    """Scores in ``metrics.json``, if they are of the weights after so many steps and of this data."""
    return read_metrics(run, steps, dataset).get("scores", {})


def write_metrics(run: RunDirectory, steps: int, dataset: Dataset, values: dict[str, Any]) -> None:
    """Put values into ``metrics.json``; what stood there is kept if it is of the same weights.

    Scores are put beside those that stand there. Processes that do this at once wait for one another. The file is of
    the data that the run was trained on: of other data nothing is written, with a warning.

    Raises:
        RunError: it cannot be written.
    """
    newest = run.resumable()
    if newest is not None and newest.metadata["data"] != dataset.fingerprint:
        _LOG.warning(
            "%s keeps what is of its own data: of %s nothing is written",
            run.path / "metrics.json",
            dataset.fingerprint,
        )
        return
    with lock(run.path / ".metrics-lock", wait=True):
        earlier = read_metrics(run, steps, dataset)
        content = {**earlier, "steps": steps, "data": dataset.fingerprint, **values}
        if "scores" in values:
            content["scores"] = {**earlier.get("scores", {}), **values["scores"]}
        write_atomically(run.path / "metrics.json", (json.dumps(content, indent=2) + "\n").encode())


def read_metrics(run: RunDirectory, steps: int, dataset: Dataset) -> dict[str, Any]:
    """What ``metrics.json`` holds of these weights and this data; a file that is none is kept under another name."""
    path = run.path / "metrics.json"
    try:
        saved = checked(read_json(path), Metrics)
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise RunError(f"cannot read {path}: {cause_of(error)}; give permission, or move it away") from error
    except ValueError as error:
        kept = set_aside(path)
        _LOG.warning("%s is damaged (%s): kept as %s", path, error, kept.name)
        return {}
    return saved if (saved["steps"], saved["data"]) == (steps, dataset.fingerprint) else {}
