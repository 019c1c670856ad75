"""``metrics.json``: what is known of a run's newest weights."""

import json
import logging
from typing import Any, TypedDict

from pyvae.data.dataset import Dataset
from pyvae.engine.files import cause_of, set_aside, write_atomically
from pyvae.engine.lock import lock
from pyvae.engine.plain import checked, read_json
from pyvae.engine.run import RunDirectory
from pyvae.errors import RunError

_LOG = logging.getLogger(__name__)


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
    :func:`pyvae.evaluation.score`, ``marginal_likelihood`` of :func:`pyvae.evaluation.score_likelihood`, and what a
    report computes."""

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
