"""Train and evaluate the arms of a published table, from wherever they stand."""

import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch

from pyvae.data.dataset import Dataset, FactorDataset
from pyvae.data.paths import absolute
from pyvae.engine import checkpoint
from pyvae.engine.arithmetic import check_precision
from pyvae.engine.fused.supports import settled
from pyvae.engine.recipe import Engine, Precision, Recipe
from pyvae.engine.run import RunDirectory
from pyvae.engine.trainer import check_data
from pyvae.errors import PyvaeError
from pyvae.evaluation import MARGINAL_LIKELIHOOD
from pyvae.evaluation.marginal_likelihood import GROUP
from pyvae.studies.findings import RESULTS, Measured, findings, write_findings
from pyvae.studies.here import Here
from pyvae.studies.plan import Model, StudyPlan
from pyvae.studies.published import LIKELIHOODS, QUANTITIES, STUDIES, Study, shorten
from pyvae.studies.results import Row
from pyvae.studies.runner import Place, run_study
from pyvae.studies.work import Settings

_SAMPLES = 5_000
"""Of the marginal likelihood, at full length."""
_WRITE_SECONDS = 30.0
_LOG = logging.getLogger(__name__)


def study_of(name: str) -> Study:
    """The study of this name.

    Raises:
        PyvaeError: there is none.
    """
    if name not in STUDIES:
        raise PyvaeError(f"unknown study {name!r}: `pyvae reproduce --list` names them: {', '.join(STUDIES)}")
    return STUDIES[name]


def reproduce(
    name: str,
    study: Study,
    dataset: Dataset,
    device: torch.device,
    out: Path,
    *,
    seeds: Sequence[int],
    scale: Fraction = Fraction(1),
    data: str = "dsprites",
    held_out: Dataset | None = None,
    held_out_data: str | None = None,
    precision: Precision = "fp32",
    engine: Engine = "auto",
    checkpoint_seconds: float = 60.0,
    capture: bool = True,
    place: Place | None = None,
    told: Callable[[], object] = lambda: None,
) -> Path | None:
    """Bring every arm and seed to its end, evaluate it, and write ``out/results.json``.

    Args:
        name: of the study.
        study: its arms and published numbers.
        dataset: that of ``data``.
        device: to train and to encode on.
        out: holds a run directory ``<arm>/seed-<n>`` for each; what is there is gone on with.
        seeds: of every arm.
        scale: of every length.
        data: what the recipes name as their data.
        held_out: images for the marginal likelihood, where the study needs it; by default those of ``dataset``.
        held_out_data: where they lie, for a ``place`` that opens them itself.
        precision: of the networks' products.
        engine: that trains; see :class:`pyvae.engine.recipe.Recipe`.
        checkpoint_seconds: time between checkpoints.
        capture: on a GPU, run several steps as one CUDA graph.
        place: where it is done, on devices of its own; by default in this process.
        told: called when ``results.json`` has been written, whenever a seed is through in all arms, but no more than
            twice in a minute.

    Returns:
        the path of ``results.json``; None when a signal ended training, which has been saved.

    Raises:
        PyvaeError: a run there that is of another recipe, length or data; data without the factors of the study's
            metrics; a loss that is no longer finite, once all other runs are through.
    """
    _check_factors(study, dataset, data)
    plan = _plan(study, seeds, scale, absolute(data), precision, engine)
    for model in plan.models:
        _check_run(out / model.name, model.recipe, dataset, None if place else device)
    settings = Settings(
        device="auto" if place else str(device),
        log_every=None,
        checkpoint_seconds=checkpoint_seconds,
        capture=capture,
        # of one group alone, IWAE-64 would be log p
        samples=max(round(_SAMPLES * scale), 2 * GROUP) if study.likelihoods else 0,
        held_out=held_out_data,
    )
    results = _Results(name, study, scale, dataset, seeds, held_out, out, told)
    end = run_study(plan, out, settings, place or Here(dataset, held_out), told=results.take)
    results.write()
    if end.interrupted:
        return None
    if end.problems:
        for line in end.problems[1:]:
            _LOG.warning(line)
        raise PyvaeError(end.problems[0])
    return out / RESULTS


def _plan(
    study: Study, seeds: Sequence[int], scale: Fraction, data: str, precision: Precision, engine: Engine
) -> StudyPlan:
    """Arms times seeds, as the study of a file would be: the first seed of all arms comes first."""
    shared: dict[str, Any] = {"precision": precision, "engine": engine}
    models = [
        Model(
            f"{arm.name}/seed-{seed}",
            arm.name,
            {},
            replace(shorten(study.recipe(arm, data), scale), seed=seed, **shared),
        )
        for seed in seeds
        for arm in study.arms
    ]
    return StudyPlan(study.title, tuple(models), metrics=study.metrics, without=study.without)


class _Results:
    """What is known of the seeds that are through in all arms, written anew as they come."""

    def __init__(
        self,
        name: str,
        study: Study,
        scale: Fraction,
        dataset: Dataset,
        seeds: Sequence[int],
        held_out: Dataset | None,
        out: Path,
        told: Callable[[], object],
    ) -> None:
        self._name, self._study, self._scale = name, study, scale
        self._dataset, self._held_out = dataset, held_out
        self._seeds, self._out, self._told = seeds, out, told
        self._rows: dict[tuple[str, int], Row] = {}
        self._shown: list[int] = []
        self._written = -math.inf

    def take(self, row: Row) -> None:
        """A model's row."""
        if row.failure is None:
            self._rows[row.method, row.seed] = row
        if time.monotonic() - self._written >= _WRITE_SECONDS:
            self.write()

    def write(self) -> None:
        """Write ``results.json``, if there is something new in it."""
        arms = [arm.name for arm in self._study.arms]
        seeds = [seed for seed in self._seeds if all((arm, seed) in self._rows for arm in arms)]
        if seeds == self._shown:
            return
        measured = {arm: [self._measured(arm, seed) for seed in seeds] for arm in arms}
        count = len(self._seeds)
        found = findings(self._name, self._study, self._scale, self._dataset, self._held_out, count, measured)
        write_findings(self._out, found)
        self._told()
        self._shown = seeds
        self._written = time.monotonic()

    def _measured(self, arm: str, seed: int) -> Measured:
        run = RunDirectory.open(self._out / arm / f"seed-{seed}")
        row = self._rows[arm, seed]
        values: dict[str, float] = {}
        if row.recon is not None and row.kl is not None:
            values |= {"recon": row.recon, "kl": row.kl}
        for metric in self._study.metrics:
            values[metric] = row.scores[metric]
        for quantity in self._study.likelihoods:
            values[quantity] = row.scores[f"{MARGINAL_LIKELIHOOD}.{LIKELIHOODS[quantity]}"]
        return {
            "arm": arm,
            "seed": seed,
            "steps": row.steps_done,
            "engine": row.engine or "torch",
            "values": values,
            "seconds": row.seconds,
            "steps_per_second": row.steps_per_second,
            "device": row.device,
            "versions": (checkpoint.newest_description(run.checkpoints) or {}).get("versions"),
            "recipe": run.recipe.to_json(),
        }


def _check_run(path: Path, recipe: Recipe, dataset: Dataset, device: torch.device | None) -> None:
    """Raise PyvaeError if a run cannot be brought to its end; without a device, those of a cluster are not asked."""
    _check_length(path, recipe)
    run = RunDirectory.create_or_resume(path, recipe)
    check_data(recipe, dataset)
    saved = checkpoint.newest_description(run.checkpoints)
    finished = saved is not None and saved["step"] >= recipe.steps
    if device is not None and not finished:  # which any device may evaluate
        recipe = settled(
            recipe, dataset, device, begun=None if saved is None else checkpoint.engine_of(saved)
        )
        check_precision(recipe, device, begun=saved is not None)


def _check_length(path: Path, recipe: Recipe) -> None:
    if not checkpoint.paths(path / "checkpoints"):
        return
    there = RunDirectory.open(path).recipe.steps
    if there != recipe.steps:
        raise PyvaeError(
            f"{path} holds a run of {there:,} steps, not {recipe.steps:,}: give the --scale it was made with, or name "
            "another --out"
        )


def _check_factors(study: Study, dataset: Dataset, data: str) -> None:
    needed = ", ".join(study.metrics)
    if not needed:
        return
    if not isinstance(dataset, FactorDataset):
        raise PyvaeError(f"the factors of {data} are not known, which {needed} need: give --data dsprites")
    for factor in study.without:
        if factor not in dataset.factor_names:
            raise PyvaeError(f"{data} has no factor {factor!r}, which {needed} leave out here")


def describe(name: str) -> str:
    """A study's title, arms and published numbers, in lines of text."""
    study = study_of(name)
    lines = [f"{name}: {study.title}"]
    for arm in study.arms:
        numbers = [f"{QUANTITIES[n.quantity]} {n.show()}" for n in arm.published]
        lines.append(f"  {arm.name}, {arm.recipe.steps:,} steps: {'; '.join(numbers)}")
    return "\n".join(lines)
