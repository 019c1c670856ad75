"""``pyvae evaluate``: metrics of a run."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tyro.conf import Positional

from pyvae.cli.invocation import say
from pyvae.evaluation.ask import QUICK_METRICS


@dataclass(frozen=True)
class Evaluate:
    """Compute disentanglement metrics of a run from the codes of its whole data set; see pyvae.metrics."""

    run: Positional[Path]
    """Run directory."""
    metrics: tuple[str, ...] = QUICK_METRICS
    """Names of pyvae.metrics.METRICS, or "all" of them: DCI then takes minutes. Data without known factors has
    "unsupervised" and "total-correlation". Also "marginal-likelihood": log p(x), IWAE-64, effective sample size and
    active units."""
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
        from pyvae import runs

        runs.open(self.run, data=self.data).evaluate(
            self.metrics,
            without=self.without,
            samples=self.samples,
            images=self.images,
            held_out=self.held_out,
            seed=self.seed,
            device=self.device,
            found=_say_scores,
        )
        return 0


def _say_scores(scores: Mapping[str, Mapping[str, Any]]) -> None:
    for name, parts in scores.items():
        for part, value in parts.items():
            label = f"{name if part == 'score' else f'{name} {part}':28s}"
            if isinstance(value, int | float):
                say(f"{label} {value:.4f}" if isinstance(value, float) else f"{label} {value:,}")
