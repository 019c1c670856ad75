"""Published figures that are computed, not trained."""

import json
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from pyvae.engine.files import write_atomically
from pyvae.report.toy import to_json, write_report
from pyvae.signal_to_noise import Curve, Ratio, Toy, measure

_LOG = logging.getLogger(__name__)

TOYS: dict[str, tuple[str, Toy]] = {
    "tighter-bounds-toy": (
        "Signal-to-noise ratio of importance-weighted gradients against K and M, near the optimum (Rainforth et al. "
        "2018, figures 2 and 3)",
        Toy(),
    ),
    "tighter-bounds-toy-far": (
        "The same far from the optimum, where K up to hundreds is not yet asymptotic",
        Toy(perturbation=0.5),
    ),
}


def reproduce_toy(name: str, out: Path, *, seeds: Sequence[int], scale: float = 1.0) -> Path:
    """Measure a figure of ``TOYS`` for each seed, or take over what ``out`` holds of it; a report is written whenever a
    seed is through.

    Args:
        name: of the figure.
        out: directory of ``seed-<n>.json``, ``report.html`` and ``results.json``.
        seeds: at least one, of the data, the parameters and the draws.
        scale: part of the draws to make.

    Returns:
        the path of the report.

    Raises:
        RunError: a file that cannot be written.
    """
    title, toy = TOYS[name]
    out.mkdir(parents=True, exist_ok=True)
    found = {}
    for seed in seeds:
        path, own = out / f"seed-{seed}.json", replace(toy, seed=seed)
        kept = _read(path, own, scale)
        if kept is None:
            _LOG.info("%s, seed %d", name, seed)
            kept = measure(own, scale=scale)
            content = {"scale": scale, "toy": vars(own), "curves": to_json(kept)}
            write_atomically(path, (json.dumps(content) + "\n").encode())
        found[seed] = kept
        page = write_report(title, found, toy, scale, out)
    return page


def _read(path: Path, toy: Toy, scale: float) -> list[Curve] | None:
    """What was measured before, of the same toy and as many draws."""
    try:
        content = json.loads(path.read_text())
        if (content["scale"], content["toy"]) != (scale, vars(toy)):
            return None
        return [_curve(curve) for curve in content["curves"]]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _curve(values: dict[str, object]) -> Curve:
    curve = Curve(**values)  # type: ignore[arg-type]
    ratios = tuple(Ratio(_number(r["snr"]), r["floor"]) for r in values["ratios"])  # type: ignore[attr-defined]
    slope = float("nan") if curve.slope is None else curve.slope
    return curve._replace(samples=tuple(curve.samples), ratios=ratios, slope=slope)


def _number(value: float | None) -> float:
    return float("inf") if value is None else value
