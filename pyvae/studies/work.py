"""The work of a study that any process can do: train a group of models, score one."""

import errno
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import torch

from pyvae.data.dataset import Dataset, FactorDataset
from pyvae.data.paths import absolute
from pyvae.engine import checkpoint
from pyvae.engine.checkpoint import engine_of
from pyvae.engine.loop import train_together
from pyvae.engine.opening import open_data
from pyvae.engine.recipe import Recipe
from pyvae.engine.run import HeldError, RunDirectory
from pyvae.engine.trainer import check_data
from pyvae.errors import PyvaeError
from pyvae.evaluation import (
    MARGINAL_LIKELIHOOD,
    check_scores,
    compute_likelihood,
    compute_scores,
    read_metrics,
    write_metrics,
)
from pyvae.evaluation.averages import evaluate
from pyvae.metrics.registry import numbers
from pyvae.studies.codes import keep_codes
from pyvae.studies.plan import Model
from pyvae.studies.results import Row, about

_ROWS = 10_000
_OF_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)
_WAIT_SECONDS = 2.0


@dataclass(frozen=True)
class Settings:
    """How the models of a study are trained and scored, wherever that is done."""

    device: str = "auto"
    """"cpu", "cuda", "cuda:1", ..., or "auto": a GPU where there is one."""
    data: str | None = None
    """Where the data lies, if it is not where the recipes say."""
    in_memory: bool = True
    """Hold the images of 3dshapes.h5 in memory."""
    log_every: int | None = 100
    """Steps between rows of a trace; None: as many as leave ten thousand rows."""
    checkpoint_seconds: float = 60.0
    capture: bool = True
    """On a GPU, run several steps as one CUDA graph."""
    metrics: tuple[str, ...] = ()
    """Names of pyvae.metrics.METRICS."""
    without: tuple[str, ...] = ()
    """Factors that the metrics leave out."""
    images: int | None = None
    """Of a fixed random subset that is encoded for the metrics; None: all of them."""
    seed: int = 0
    """Of what the metrics draw."""
    samples: int = 0
    """Of each image for the marginal likelihood; 0: it is not estimated."""
    held_out: str | None = None
    """Images for the marginal likelihood, instead of those that were trained on."""
    patience: float = 0.0
    """Seconds to wait for a run that another process still holds, as one that is being killed may."""


class ModelOutcome(NamedTuple):
    """Where the training of a model stands."""

    model: str
    """Its name."""
    step: int
    """Steps made in the whole life of its run."""
    interrupted: bool = False
    """Whether a signal ended it before its last step."""
    failure: str | None = None
    """Why it can never go on, whoever tries: a loss that is not finite."""
    error: str | None = None
    """Why it was not trained this time: a run of another recipe there, data that is missing."""


class Scored(NamedTuple):
    """How the scoring of a model ended."""

    model: str
    """Its name."""
    row: Row | None = None
    error: str | None = None
    """Why there is no row."""


class OutOfRoomError(PyvaeError):
    """The disk under a study is full or cannot be written, so that nothing else can go on either."""


def device_of(name: str) -> torch.device:
    """The device of this name; "auto" takes a GPU where there is one."""
    return torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)


def dataset_of(recipe: Recipe, settings: Settings) -> Dataset:
    """The data of a recipe; that of the call before is still open.

    Raises:
        DataError: it cannot be read.
    """
    return _dataset(
        settings.data or recipe.data,
        recipe.image_size,
        recipe.channels,
        recipe.crop,
        recipe.corrupt,
        settings.in_memory,
    )


# one data set, and the images that are held out
@lru_cache(maxsize=2)
def _dataset(data: str, size: int, channels: Any, crop: int | None, corrupt: Any, in_memory: bool) -> Dataset:
    named = Recipe(data=data, image_size=size, channels=channels, crop=crop, corrupt=corrupt)
    return open_data(named, in_memory=in_memory)


def train_group(
    models: Sequence[Model], out: Path, settings: Settings, dataset: Dataset | None = None
) -> list[ModelOutcome]:
    """Bring models of one data set to their ends, from wherever they stand.

    Args:
        models: those that may share steps do, others are trained one after another.
        out: directory of the study.
        settings: of the study.
        dataset: that of the recipes, if it is open already.

    Returns:
        an outcome for each, in their order. What stands in the way of one is in its outcome, and the others go on.

    Raises:
        OutOfRoomError: the disk is full or cannot be written; what was saved before is intact.
    """
    found: dict[str, ModelOutcome] = {}
    try:
        dataset = dataset or dataset_of(models[0].recipe, settings)
    except PyvaeError as error:
        _check_room(error)
        return [ModelOutcome(model.name, 0, error=str(error)) for model in models]
    runs: dict[str, RunDirectory] = {}
    for model in models:
        run = RunDirectory(out / model.name, replace(model.recipe, data=absolute(model.recipe.data)))
        if (refusal := _refusal(run, dataset)) is None:
            runs[model.name] = run
        else:
            found[model.name] = ModelOutcome(model.name, 0, error=refusal)
    if runs:
        found |= _train(runs, dataset, settings)
    return [found[model.name] for model in models]


def _refusal(run: RunDirectory, dataset: Dataset) -> str | None:
    """Why a run cannot be trained, before anything is made for it."""
    try:
        check_data(run.recipe, dataset)
        run.check_recipe()
    except PyvaeError as error:
        return str(error)
    return None


def _train(runs: Mapping[str, RunDirectory], dataset: Dataset, settings: Settings) -> dict[str, ModelOutcome]:
    steps = next(iter(runs.values())).recipe.steps
    try:
        outcomes = _patiently(
            list(runs.values()),
            dataset,
            device_of(settings.device),
            seconds=settings.patience,
            log_every=max(steps // _ROWS, 1) if settings.log_every is None else settings.log_every,
            checkpoint_seconds=settings.checkpoint_seconds,
            capture=settings.capture,
        )
        return {
            name: ModelOutcome(name, outcome.step, outcome.interrupted, outcome.failure)
            for name, outcome in zip(runs, outcomes, strict=True)
        }
    except torch.OutOfMemoryError:
        refusal = "out of memory: give a smaller batch_size, or another device"
    except (PyvaeError, OSError) as error:
        _check_room(error)
        if not isinstance(error, PyvaeError):
            raise
        refusal = str(error)
    if len(runs) == 1:
        return {name: ModelOutcome(name, 0, error=refusal) for name in runs}
    # nobody is waited for twice
    return _by_halves(runs, dataset, replace(settings, patience=0.0))


def _by_halves(
    runs: Mapping[str, RunDirectory], dataset: Dataset, settings: Settings
) -> dict[str, ModelOutcome]:
    """Two groups of what could not be one: the memory is too small, or one of them stands in the way of the others.

    Members do not depend on one another, so that what is saved of them goes on.
    """
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    names = list(runs)
    found: dict[str, ModelOutcome] = {}
    for half in (names[: len(names) // 2], names[len(names) // 2 :]):
        if any(outcome.interrupted for outcome in found.values()):
            found |= {name: ModelOutcome(name, 0, interrupted=True) for name in half}
        else:
            found |= _train({name: runs[name] for name in half}, dataset, settings)
    return found


def _patiently(
    runs: Sequence[RunDirectory], dataset: Dataset, device: torch.device, *, seconds: float, **options: Any
) -> list[Any]:
    deadline = time.monotonic() + seconds
    while True:
        try:
            return train_together(runs, dataset, device, **options)
        except HeldError:
            if time.monotonic() >= deadline:
                raise
        time.sleep(_WAIT_SECONDS)


def score_model(
    model: Model,
    out: Path,
    settings: Settings,
    dataset: Dataset | None = None,
    held_out: Dataset | None = None,
) -> Row:
    """Measure a model's newest weights, and write it to its ``metrics.json``; what stands there is not computed again.

    Args:
        model: with a checkpoint.
        out: directory of the study.
        settings: of the study.
        dataset: that of the recipe, if it is open already.
        held_out: images of ``settings.held_out``, if they are open already.

    Returns:
        its row.

    Raises:
        PyvaeError: there is no checkpoint, or it is of other data; a file that cannot be written, as OutOfRoomError
            where the disk is full.
    """
    try:
        return _row(model, out, settings, dataset or dataset_of(model.recipe, settings), held_out)
    except (PyvaeError, OSError) as error:
        _check_room(error)
        raise


def scored(model: Model, out: Path, settings: Settings, *data: Dataset | None) -> "Scored":
    """What :func:`score_model` gives, or why it gave nothing.

    Raises:
        OutOfRoomError: the disk is full or cannot be written.
    """
    try:
        return Scored(model.name, score_model(model, out, settings, *data))
    except OutOfRoomError:
        raise
    except PyvaeError as error:
        return Scored(model.name, error=str(error))
    except torch.OutOfMemoryError:
        return Scored(model.name, error="out of memory for its scores: give another device")


def _row(model: Model, out: Path, settings: Settings, dataset: Dataset, held_out: Dataset | None) -> Row:
    run = RunDirectory.create_or_resume(out / model.name, model.recipe)
    newest = run.newest_for(dataset)
    if (trained_on := newest.metadata["data"]) != dataset.fingerprint:
        raise PyvaeError(f"{run.path} was trained on {trained_on}, but the data now is {dataset.fingerprint}")
    held = read_metrics(run, newest.step, dataset)
    values: dict[str, Any] = {}
    if not run.adversarial and "recon" not in held:
        net = run.net_of(newest)
        values |= evaluate(net, run.shown(dataset), run.recipe.likelihood).to_json(dataset)
    scores, missing = _scores(run, dataset, held.get("scores", {}), settings)
    if scores:
        values["scores"] = scores
    if settings.samples:
        values |= _likelihood(run, dataset, held.get("marginal_likelihood", {}), settings, held_out)
    if values:
        write_metrics(run, newest.step, dataset, values)
    keep_codes(run, dataset, device_of(settings.device))
    known = {**held, **values}
    known["scores"] = {**held.get("scores", {}), **values.get("scores", {})}
    return about(
        model.name,
        model.method,
        model.recipe,
        **_training(newest.step, newest.metadata),
        recon=known.get("recon"),
        kl=known.get("kl"),
        without=" ".join(settings.without),
        images=settings.images,
        scoring_seed=settings.seed,
        scores=_numbers(known, missing, settings),
    )


def failed_row(model: Model, out: Path, failure: str) -> Row:
    """The row of a model that cannot go on, with what its last checkpoint says of its training."""
    described = checkpoint.newest_description(out / model.name / "checkpoints") or {}
    known = _training(described["step"], described) if described else {}
    return about(model.name, model.method, model.recipe, **known, failure=failure)


def _training(step: int, metadata: dict[str, Any]) -> dict[str, Any]:
    seconds = metadata.get("seconds")
    return {
        "steps_done": step,
        "seconds": seconds,
        "steps_per_second": step / seconds if seconds else None,
        "engine": engine_of(metadata),
        "device": metadata.get("device"),
        "fingerprint": metadata["data"],
    }


def _scores(
    run: RunDirectory, dataset: Dataset, held: dict[str, Any], settings: Settings
) -> tuple[dict[str, Any], dict[str, str]]:
    """Scores that ``held`` does not have over these factors, and why others cannot be computed."""
    names = [name for name in settings.metrics if not _stands(held.get(name), dataset, settings)]
    if not names:
        return {}, {}
    if run.recipe.code == "factors":
        return {}, dict.fromkeys(names, "the code is the true factors: there is no encoder")
    # a study of several data sets leaves out what each of them has
    without = tuple(factor for factor in settings.without if factor in _factors(dataset))
    options: dict[str, Any] = {
        "without": without,
        "seed": settings.seed,
        "images": settings.images,
    }
    missing = check_scores(run, dataset, names, **options)
    names = [name for name in names if name not in missing]
    if not names:
        return {}, missing
    found = compute_scores(run, dataset, names, device=device_of(settings.device), **options)
    return found.found, missing | found.missing


def _stands(score: dict[str, Any] | None, dataset: Dataset, settings: Settings) -> bool:
    """Whether a score is of these factors, images and seed, and a number."""
    part = settings.images is not None and settings.images < len(dataset)
    if score is None or score.get("images") != (settings.images if part else None):
        return False
    if score.get("seed", 0) != settings.seed:
        return False
    if "factors" not in score:  # a metric of codes alone
        return True
    factors = [factor for factor in _factors(dataset) if factor not in settings.without]
    return score["factors"] == factors and score.get("score") is not None


def _factors(dataset: Dataset) -> tuple[str, ...]:
    return tuple(dataset.factor_names) if isinstance(dataset, FactorDataset) else ()


def _likelihood(
    run: RunDirectory, dataset: Dataset, held: dict[str, Any], settings: Settings, held_out: Dataset | None
) -> dict[str, Any]:
    if held_out is None and settings.held_out is not None:
        held_out = dataset_of(replace(run.recipe, data=settings.held_out), replace(settings, data=None))
    wanted = settings.samples, (held_out or dataset).fingerprint
    if (held.get("samples"), held.get("data")) == wanted:
        return {}
    device = device_of(settings.device)
    _, found = compute_likelihood(run, dataset, device=device, samples=settings.samples, held_out=held_out)
    return {"marginal_likelihood": found}


def _numbers(known: dict[str, Any], missing: dict[str, str], settings: Settings) -> dict[str, float]:
    """Single numbers of each metric, by the names of a row."""
    found: dict[str, float] = {}
    for name in settings.metrics:
        score = {} if name in missing else known["scores"].get(name, {})
        for part in numbers(name):
            if "train" in part or "accuracy" in part:
                continue
            value = score.get(part)
            found[name if part == "score" else f"{name}.{part}"] = math.nan if value is None else value
    if settings.samples:
        likelihood = known["marginal_likelihood"]
        for part in ("log_p", "iwae_64", "difference", "effective_sample_size"):
            found[f"{MARGINAL_LIKELIHOOD}.{part}"] = likelihood[part]
    return found


def _check_room(error: BaseException) -> None:
    """Raise OutOfRoomError if this is at the bottom of an error."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OutOfRoomError):
            raise cause
        if isinstance(cause, OSError) and cause.errno in _OF_DISK:
            told = str(error) if isinstance(error, PyvaeError) else f"{cause.filename}: {cause.strerror}"
            raise OutOfRoomError(told) from error
        cause = cause.__cause__
