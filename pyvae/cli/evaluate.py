"""``pyvae evaluate``: metrics of a run."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tyro.conf import Positional

from pyvae.cli.invocation import device_named, load_data, open_run, say
from pyvae.errors import PyvaeError, RunError

_LOG = logging.getLogger(__name__)
QUICK_METRICS = ("mig", "factor-vae", "beta-vae", "sap", "modularity", "explicitness", "irs")


@dataclass(frozen=True)
class Evaluate:
    """Compute disentanglement metrics of a run from the codes of its whole data set; see pyvae.metrics."""

    run: Positional[Path]
    """Run directory."""
    metrics: tuple[str, ...] = QUICK_METRICS
    """Names of pyvae.metrics.METRICS, or "all" of them: DCI then takes minutes. Data without known factors has
    "unsupervised" alone. Also "marginal-likelihood": log p(x), IWAE-64, effective sample size and active units."""
    without: tuple[str, ...] = ()
    """Factors to leave out: "shape" for the four-factor MIG of Chen et al. 2018 and ControlVAE."""
    samples: int = 5000
    """Importance samples of each image for the marginal likelihood."""
    images: int = 1000
    """Images of a fixed random subset for the marginal likelihood."""
    held_out: str | None = None
    """Images for the marginal likelihood, as --data of `pyvae train`; default: those it was trained on."""
    data: str | None = None
    """Where the data of the run lies, if it is not where it lay when the run was made."""
    seed: int = 0
    """Of what the metrics draw."""
    device: str = "auto"
    """Where the network runs."""

    def __call__(self) -> int:
        from pyvae.evaluation import (
            MARGINAL_LIKELIHOOD,
            check_likelihood,
            check_scores,
            compute_likelihood,
            compute_scores,
            none_of,
            write_metrics,
        )
        from pyvae.metrics import METRICS

        known = (*METRICS, MARGINAL_LIKELIHOOD)
        if unknown := [name for name in self.metrics if name not in (*known, "all")]:
            raise PyvaeError(f"unknown metric {unknown[0]!r}: there are {', '.join(known)} and all")
        if not self.metrics:
            raise PyvaeError(f"--metrics: name at least one of {', '.join(known)} and all")
        if not 0 <= self.seed < 2**64:
            raise PyvaeError(f"--seed must be from 0 to 2^64 - 1, got {self.seed}")
        asked = [each for name in self.metrics for each in (METRICS if name == "all" else (name,))]
        names = list(dict.fromkeys(asked))
        of_codes = [name for name in names if name != MARGINAL_LIKELIHOOD]
        run, dataset = open_run(self.run, self.data)
        device = device_named(self.device)
        held_out = None if self.held_out is None else load_data(replace(run.recipe, data=self.held_out))
        sizes: dict[str, Any] = {"samples": self.samples, "images": self.images, "held_out": held_out}
        # whatever can be refused is, before the minutes that the encoder takes
        missing = (
            check_scores(run, dataset, of_codes, without=self.without, seed=self.seed) if of_codes else {}
        )
        if missing.keys() == set(names):
            raise PyvaeError(none_of(missing))
        if MARGINAL_LIKELIHOOD in names:
            check_likelihood(run, dataset, **sizes)
        _say_missing(missing)
        unwritten: list[RunError] = []

        def keep(steps: int, values: dict[str, Any]) -> None:
            try:
                write_metrics(run, steps, dataset, values)
            except RunError as error:  # what is still to be computed is shown all the same
                unwritten.append(error)

        if possible := [name for name in of_codes if name not in missing]:
            scores = compute_scores(
                run, dataset, possible, device=device, without=self.without, seed=self.seed
            )
            _say_scores(scores.found)
            _say_missing(scores.missing)
            missing |= scores.missing
            keep(scores.steps, {"scores": scores.found})
        if MARGINAL_LIKELIHOOD in names:
            steps, likelihood = compute_likelihood(run, dataset, device=device, seed=self.seed, **sizes)
            _say_scores({MARGINAL_LIKELIHOOD: likelihood})
            keep(steps, {"marginal_likelihood": likelihood})
        if unwritten:
            raise RunError(f"{unwritten[0]}; the numbers above are right, and not kept")
        # what nobody named need not be there
        if named := [name for name in missing if name in self.metrics and self.metrics != QUICK_METRICS]:
            raise PyvaeError(f"{', '.join(named)} could not be computed; the others could")
        return 0


def _say_scores(scores: Mapping[str, Mapping[str, Any]]) -> None:
    for name, parts in scores.items():
        for part, value in parts.items():
            label = f"{name if part == 'score' else f'{name} {part}':28s}"
            if isinstance(value, int | float):
                say(f"{label} {value:.4f}" if isinstance(value, float) else f"{label} {value:,}")


def _say_missing(missing: Mapping[str, str]) -> None:
    for name, why in missing.items():
        _LOG.warning("%s is not computed: %s", name, why)
