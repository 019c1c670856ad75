"""Train, evaluate and report the arms of a published table, from wherever they stand."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch

from pyvae.data.dataset import Dataset, FactorDataset
from pyvae.engine import checkpoint
from pyvae.engine.fused.supports import settled
from pyvae.engine.loop import train
from pyvae.engine.recipe import Engine, Precision, Recipe
from pyvae.engine.run import Run
from pyvae.engine.trainer import check_data
from pyvae.errors import PyvaeError
from pyvae.evaluation import read_likelihood, read_scores, score, score_likelihood, write_metrics
from pyvae.evaluation.averages import evaluate
from pyvae.marginal_likelihood import GROUP
from pyvae.report.study import Findings, Measured, write_report
from pyvae.report.trained import load_trained
from pyvae.studies.published import LIKELIHOODS, QUANTITIES, STUDIES, Quantity, Study, shorten

_ROWS = 10_000
_SAMPLES = 5_000
"""Of the marginal likelihood, at full length."""
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
    precision: Precision = "fp32",
    engine: Engine = "auto",
    checkpoint_seconds: float = 60.0,
    capture: bool = True,
) -> Path | None:
    """Bring every arm and seed to its end, evaluate it, and write ``out/report.html`` and ``out/results.json``.

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
        precision: of the networks' products.
        engine: that trains; see :class:`pyvae.engine.recipe.Recipe`.
        checkpoint_seconds: time between checkpoints.
        capture: on a GPU, run several steps as one CUDA graph.

    Returns:
        the path of the report; None when a signal ended training, which has been saved. A report is written whenever
        a seed is through in all arms.

    Raises:
        PyvaeError: a run there that is of another recipe, length or data; data without the factors of the study's
            metrics; a loss that is no longer finite.
    """
    _check_factors(study, dataset, data)
    runs = {
        (arm.name, seed): (
            out / arm.name / f"seed-{seed}",
            replace(shorten(study.recipe(arm, data), scale), precision=precision, engine=engine, seed=seed),
        )
        for seed in seeds
        for arm in study.arms
    }
    for path, recipe in runs.values():
        _check_length(path, recipe)
        run = Run.create_or_resume(path, recipe)
        check_data(recipe, dataset)
        if not _is_finished(run, dataset):  # which any device may evaluate
            saved = checkpoint.load_newest(run.checkpoints)
            settled(
                recipe, dataset, device, begun=None if saved is None else checkpoint.engine_of(saved.metadata)
            )
    measured: dict[str, list[Measured]] = {arm.name: [] for arm in study.arms}
    page = None
    for seed in seeds:
        for arm in study.arms:
            path, recipe = runs[arm.name, seed]
            done = sum(map(len, measured.values()))
            _LOG.info("%s, seed %d: run %d of %d", arm.name, seed, done + 1, len(runs))
            run = Run.create_or_resume(path, recipe)
            if not _is_finished(run, dataset):
                outcome = train(
                    run,
                    dataset,
                    device,
                    log_every=max(recipe.steps // _ROWS, 1),
                    checkpoint_seconds=checkpoint_seconds,
                    capture=capture,
                )
                if outcome.interrupted:
                    return None
            measured[arm.name].append(_measure(run, study, scale, dataset, device, held_out))
        findings = Findings(name, study, scale, dataset, len(seeds), measured, held_out)
        page = write_report(findings, out)
    return page


def _measure(
    run: Run,
    study: Study,
    scale: Fraction,
    dataset: Dataset,
    device: torch.device,
    held_out: Dataset | None,
) -> Measured:
    trained = load_trained(run, dataset)
    scores = read_scores(run, trained.steps, dataset)
    if study.metrics and isinstance(dataset, FactorDataset):
        factors = [factor for factor in dataset.factor_names if factor not in study.without]
        # metrics.json may hold scores over other factors, of `pyvae evaluate`
        missing = [m for m in study.metrics if not _is_of(scores.get(m, {}), factors)]
        if missing:
            scores |= score(run, dataset, missing, device=device, without=study.without)
    evaluation = evaluate(trained.net, run.shown(dataset), run.recipe.likelihood)
    write_metrics(run, trained.steps, dataset, evaluation.to_json(dataset))
    values: dict[Quantity, float] = {"recon": evaluation.recon, "kl": sum(evaluation.kl)}
    for metric in study.metrics:
        values[metric] = scores[metric]["score"]
    if study.likelihoods:
        likelihood = read_likelihood(run, trained.steps, dataset) or {}
        wanted = (held_out or dataset).fingerprint
        # of one group alone, IWAE-64 would be log p
        samples = max(round(_SAMPLES * scale), 2 * GROUP)
        if (likelihood.get("samples"), likelihood.get("data")) != (samples, wanted):
            likelihood = score_likelihood(run, dataset, device=device, samples=samples, held_out=held_out)
        for quantity in study.likelihoods:
            values[quantity] = likelihood[LIKELIHOODS[quantity]]
    return Measured(run, trained, evaluation.kl, values)


def _is_of(score: dict[str, Any], factors: list[str]) -> bool:
    return score.get("factors") == factors and score.get("score") is not None


def _is_finished(run: Run, dataset: Dataset) -> bool:
    saved = checkpoint.load_newest(run.checkpoints)
    # of other data is for train to refuse
    return (
        saved is not None and saved.step >= run.recipe.steps and saved.metadata["data"] == dataset.fingerprint
    )


def _check_length(path: Path, recipe: Recipe) -> None:
    if not checkpoint.paths(path / "checkpoints"):
        return
    there = Run.open(path).recipe.steps
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
