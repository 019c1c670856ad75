"""Whatever metrics somebody asks for, of one run: those that cannot be computed do not take the others with them."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from pyvae.data.dataset import Dataset
from pyvae.engine.run import RunDirectory
from pyvae.errors import PyvaeError, RunError
from pyvae.evaluation.likelihood import MARGINAL_LIKELIHOOD, check_likelihood, compute_likelihood
from pyvae.evaluation.metrics_file import write_metrics
from pyvae.evaluation.scores import check_scores, compute_scores, none_of
from pyvae.metrics import METRICS

QUICK_METRICS = ("mig", "factor-vae", "beta-vae", "sap", "modularity", "explicitness", "irs")
Told = Callable[[Mapping[str, Any]], object]


def ask(
    run: RunDirectory,
    dataset: Dataset,
    names: Sequence[str] = QUICK_METRICS,
    *,
    device: torch.device,
    without: Sequence[str] = (),
    seed: int = 0,
    samples: int = 5000,
    images: int = 1000,
    held_out: Callable[[], Dataset] | None = None,
    found: Told = lambda scores: None,
    missing: Told = lambda reasons: None,
) -> dict[str, dict[str, Any]]:
    """Compute metrics of a run, and put them into its ``metrics.json``.

    Args:
        run: with a checkpoint.
        dataset: that of its recipe.
        names: those of :data:`pyvae.metrics.METRICS`, "all" of them, or "marginal-likelihood".
        device: where the network runs.
        without: factors to leave out.
        seed: of what the metrics draw.
        samples: of each image for the marginal likelihood.
        images: of a fixed random subset for the marginal likelihood.
        held_out: opens other images for the marginal likelihood.
        found: called with scores as soon as they are known.
        missing: called with the reasons why some cannot be computed, once they are known.

    Returns:
        for each metric the fields of its result.

    Raises:
        PyvaeError: an unknown metric or factor; none can be computed, or, once the others are written, one that was
            named cannot.
        RunError: the file cannot be written; what was computed has been told.
    """
    known = (*METRICS, MARGINAL_LIKELIHOOD)
    if unknown := [name for name in names if name not in (*known, "all")]:
        raise PyvaeError(f"unknown metric {unknown[0]!r}: there are {', '.join(known)} and all")
    if not names:
        raise PyvaeError(f"--metrics: name at least one of {', '.join(known)} and all")
    if not 0 <= seed < 2**64:
        raise PyvaeError(f"--seed must be from 0 to 2^64 - 1, got {seed}")
    asked = list(dict.fromkeys(each for name in names for each in (METRICS if name == "all" else (name,))))
    of_codes = [name for name in asked if name != MARGINAL_LIKELIHOOD]
    sizes: dict[str, Any] = {"samples": samples, "images": images}
    sizes["held_out"] = None if held_out is None else held_out()
    # whatever can be refused is, before the minutes that the encoder takes
    lacking = check_scores(run, dataset, of_codes, without=without, seed=seed) if of_codes else {}
    if lacking.keys() == set(asked):
        raise PyvaeError(none_of(lacking))
    if MARGINAL_LIKELIHOOD in asked:
        check_likelihood(run, dataset, **sizes)
    missing(lacking)
    results: dict[str, dict[str, Any]] = {}
    unwritten: list[RunError] = []

    def keep(steps: int, values: dict[str, Any]) -> None:
        try:
            write_metrics(run, steps, dataset, values)
        except RunError as error:  # what is still to be computed is told all the same
            unwritten.append(error)

    if possible := [name for name in of_codes if name not in lacking]:
        scores = compute_scores(run, dataset, possible, device=device, without=without, seed=seed)
        results |= scores.found
        found(scores.found)
        missing(scores.missing)
        lacking |= scores.missing
        keep(scores.steps, {"scores": scores.found})
    if MARGINAL_LIKELIHOOD in asked:
        steps, likelihood = compute_likelihood(run, dataset, device=device, seed=seed, **sizes)
        results[MARGINAL_LIKELIHOOD] = likelihood
        found({MARGINAL_LIKELIHOOD: likelihood})
        keep(steps, {"marginal_likelihood": likelihood})
    if unwritten:
        raise RunError(f"{unwritten[0]}; the numbers above are right, and not kept")
    # what nobody named need not be there
    if named := [name for name in lacking if name in names and tuple(names) != QUICK_METRICS]:
        raise PyvaeError(f"{', '.join(named)} could not be computed; the others could")
    return results
