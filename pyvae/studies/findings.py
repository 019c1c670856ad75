"""``results.json`` of a published table: our numbers beside its own, and what stands between the two."""

import json
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, TypedDict

from pyvae.data.dataset import Dataset
from pyvae.data.mnist import is_test_set, is_training_set
from pyvae.engine.files import cause_of, write_atomically
from pyvae.engine.plain import checked, read_json
from pyvae.errors import RunError
from pyvae.studies.analysis import average
from pyvae.studies.published import Certainty, Published, Quantity, Study
from pyvae.studies.verdict import judge

RESULTS = "results.json"
_DSPRITES = 737_280


class Measured(TypedDict):
    """A finished run and what was measured of it."""

    arm: str
    seed: int
    steps: int
    engine: str
    values: dict[str, float]
    """By :data:`~pyvae.studies.published.Quantity`."""
    seconds: float | None
    """Of training."""
    steps_per_second: float | None
    device: str | None
    versions: dict[str, str] | None
    recipe: dict[str, Any]


class Ours(TypedDict):
    """Mean over seeds and its standard error, which one seed does not have."""

    value: float
    error: float | None
    seeds: int


class Theirs(TypedDict):
    """The published number, as :class:`~pyvae.studies.published.Published` has it."""

    value: float
    high: float | None
    error: float | None
    runs: int | None
    source: str
    certainty: Certainty


class Judgement(TypedDict):
    """A :class:`~pyvae.studies.verdict.Verdict`."""

    difference: float
    error: float | None
    agrees: bool | None
    text: str


class Number(TypedDict):
    """A published number and ours."""

    arm: str
    quantity: Quantity
    ours: Ours
    published: Theirs
    verdict: Judgement | None
    """None where something stands in the way."""


class Findings(TypedDict):
    """What has been found so far of a study: the seeds that are through in all arms."""

    study: str
    title: str
    arms: list[str]
    quantities: list[Quantity]
    """That were measured: of a generator, which has no reconstruction and no KL, the others."""
    seeds: int
    """That were asked for."""
    scale: float
    scaled: bool
    reproduction: bool
    obstacles: list[str]
    """Why these numbers reproduce nothing."""
    data: str
    without: list[str]
    notes: list[str]
    numbers: list[Number]
    runs: list[Measured]


def findings(
    name: str,
    study: Study,
    scale: Fraction,
    dataset: Dataset,
    held_out: Dataset | None,
    seeds: int,
    measured: Mapping[str, Sequence[Measured]],
) -> Findings:
    """What the finished runs of each arm say.

    Args:
        name: of the study.
        study: its arms and published numbers.
        scale: of every length.
        dataset: that was trained on.
        held_out: images of the marginal likelihood, where they are not those of ``dataset``.
        seeds: that were asked for.
        measured: at least one run of every arm.
    """
    hindered = list(_obstacles(study, scale, dataset, held_out))
    return {
        "study": name,
        "title": study.title,
        "arms": [arm.name for arm in study.arms],
        "quantities": ["recon", "kl", *study.metrics, *study.likelihoods],
        "seeds": seeds,
        "scale": float(scale),
        "scaled": scale != 1,
        "reproduction": not hindered,
        "obstacles": hindered,
        "data": dataset.fingerprint,
        "without": list(study.without),
        "notes": list(study.notes),
        "numbers": [
            _number(
                arm.name, number, [run["values"][number.quantity] for run in measured[arm.name]], hindered
            )
            for arm, number in study.numbers()
        ],
        "runs": [run for arm in study.arms for run in measured[arm.name]],
    }


def write_findings(out: Path, found: Findings) -> None:
    """Write ``out/results.json``.

    Raises:
        RunError: it cannot be written.
    """
    write_atomically(out / RESULTS, (json.dumps(found, indent=2) + "\n").encode())


def read_findings(out: Path) -> Findings:
    """What :func:`write_findings` wrote.

    Raises:
        RunError: the file cannot be read, or is none of it; one line says so.
    """
    path = out / RESULTS
    try:
        found: Findings = checked(read_json(path), Findings)
    except OSError as error:
        raise RunError(f"cannot read {path}: {cause_of(error)}; `pyvae reproduce` writes it") from error
    except ValueError as error:
        raise RunError(
            f"{path} holds no results of this version of pyvae ({error}); `pyvae reproduce` makes it anew"
        ) from error
    return found


def _number(arm: str, number: Published, ours: Sequence[float], hindered: Sequence[str]) -> Number:
    mean = average(ours)
    verdict = None if hindered else judge(ours, number)
    return {
        "arm": arm,
        "quantity": number.quantity,
        "ours": {"value": mean.value, "error": mean.error, "seeds": mean.seeds},
        "published": {
            "value": number.value,
            "high": number.high,
            "error": number.error,
            "runs": number.runs,
            "source": number.source,
            "certainty": number.certainty,
        },
        "verdict": verdict
        and {
            "difference": verdict.difference,
            "error": verdict.error,
            "agrees": verdict.agrees,
            "text": verdict.text,
        },
    }


def _obstacles(study: Study, scale: Fraction, dataset: Dataset, held_out: Dataset | None) -> Iterator[str]:
    if study.data == "mnist":
        published = is_training_set(dataset)
    else:
        published = (dataset.name, len(dataset)) == ("dsprites", _DSPRITES)
    if scale != 1:
        yield (
            f"Scaled run: every length is {float(scale):.4g} of the published one, rates are not changed. "
            "These numbers are no reproduction and are not judged."
        )
    if not published:
        yield (
            f"Other data than the published: {dataset.fingerprint}. These numbers are no reproduction and "
            "are not judged."
        )
    if study.likelihoods and held_out is None:
        yield "The marginal likelihood is that of training images, the published one of a test set."
    elif held_out is not None and published and not is_test_set(held_out):
        yield (
            f"The marginal likelihood is of {held_out.fingerprint}, which is not MNIST's test set. These "
            "numbers are no reproduction and are not judged."
        )
