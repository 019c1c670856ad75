"""Metrics of the codes of a run."""

from collections.abc import Mapping, Sequence
from inspect import signature
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyvae.data.dataset import Dataset, FactorDataset
from pyvae.data.subset import subset
from pyvae.engine.arithmetic import computing
from pyvae.engine.batches import ImageSource
from pyvae.engine.run import RunDirectory
from pyvae.errors import PyvaeError
from pyvae.evaluation.metrics_file import write_metrics
from pyvae.metrics import METRICS, CodeTable, encode, evaluate_possible, unavailable
from pyvae.metrics.registry import OF_VARIANCES, WITHOUT_FACTORS
from pyvae.nets import Autoencoder
from pyvae.nets.adversarial import AdversarialPair
from pyvae.objectives import InfoGAN


class Scores(NamedTuple):
    """Metrics of a run's newest weights."""

    steps: int
    """That the weights were trained for."""
    found: dict[str, Any]
    """For each metric the fields of its result."""
    missing: dict[str, str]
    """Metrics that could not be computed, and why."""


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
        dataset: that of its recipe; without known factors, "unsupervised" and "total-correlation" can be computed.
        names: those of :data:`pyvae.metrics.METRICS` that :func:`check_scores`, to be asked first, has nothing against.
        device: where the encoder runs.
        without: factors to leave out, "shape" for the four-factor MIG of Chen et al. 2018.
        seed: of what the metrics draw.
        images: of a fixed random subset, instead of all; each score then says how many. Metrics that intervene on
            factors cannot be computed of those.

    Raises:
        PyvaeError: no checkpoint, or images of another shape than it was trained on.
    """
    table, steps = encode_run(run, dataset, device=device, images=images)
    options = _options(len(table.mu), names, without)
    found, failed = evaluate_possible(table, names, seed=seed, options=options)
    # what is not as usual stands in the scores, so that nobody takes them for others
    apart = ({"images": len(table)} if _is_part(dataset, images) else {}) | ({"seed": seed} if seed else {})
    found = {name: {**score, **apart} for name, score in found.items()}
    return Scores(steps, found, failed)


def encode_run(
    run: RunDirectory,
    dataset: Dataset,
    *,
    device: torch.device,
    images: int | None = None,
    progress: bool = True,
) -> tuple[CodeTable, int]:
    """Codes of a data set by the run's newest weights, and the steps that those were trained for.

    Args:
        run: with a checkpoint, of an encoder.
        dataset: that of its recipe.
        device: where the encoder runs.
        images: of a fixed random subset, instead of all.
        progress: whether to show a progress bar.

    Raises:
        PyvaeError: no checkpoint, or images of another shape than it was trained on.
    """
    net: Autoencoder | AdversarialPair
    newest = run.newest_for(dataset)
    dataset = run.shown(dataset)
    index = _part(dataset, images)
    with computing(run.recipe.precision):
        net = run.pair_of(newest) if run.adversarial else run.net_of(newest)
        source = ImageSource(dataset, device).images
        table = encode(net.to(device), dataset, device=device, index=index, images=source, progress=progress)
    return table, newest.step


def _is_part(dataset: Dataset, images: int | None) -> bool:
    return images is not None and images < len(dataset)


def _part(dataset: Dataset, images: int | None) -> Tensor | None:
    """Indices of so many images, None for all of them."""
    return subset(dataset, images) if images is not None and images < len(dataset) else None


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
        able = " and ".join(name for name in METRICS if name in WITHOUT_FACTORS)
        why = f"the factors of {run.recipe.data} are not known, and only {able} can do without"
        missing = {name: why for name in names if name not in WITHOUT_FACTORS}
        return missing | _without_variance(run, [name for name in names if name not in missing])
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
        if name not in WITHOUT_FACTORS:
            options[name]["without"] = tuple(without)
    return options
