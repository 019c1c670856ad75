"""Published figures that are computed, not trained."""

import json
import logging
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, TypedDict

from pyvae.engine.files import write_atomically
from pyvae.engine.plain import checked, read_json
from pyvae.evaluation.signal_to_noise import Curve, Estimator, Ratio, Toy, measure
from pyvae.report.toy import to_json, write_report

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


class _Ratio(TypedDict):
    snr: float | None
    floor: float


class _Curve(TypedDict):
    parameter: Literal["theta", "phi"]
    estimator: Estimator
    against: Literal["K", "M"]
    samples: tuple[int, ...]
    ratios: list[_Ratio]
    slope: float | None
    theory: float | None


class _Measured(TypedDict):
    scale: float
    toy: dict[str, Any]
    curves: list[_Curve]


def _read(path: Path, toy: Toy, scale: float) -> list[Curve] | None:
    """What was measured before, of the same toy and as many draws."""
    try:
        content = checked(read_json(path), _Measured)
        if (content["scale"], content["toy"]) != (scale, vars(toy)):
            return None
        return [_curve(curve) for curve in content["curves"]]
    except (OSError, ValueError):
        return None


def _curve(values: _Curve) -> Curve:
    ratios = tuple(Ratio(math.inf if r["snr"] is None else r["snr"], r["floor"]) for r in values["ratios"])
    if len(ratios) != len(values["samples"]):
        raise ValueError("a curve has a ratio of each number of samples")
    slope = math.nan if values["slope"] is None else values["slope"]
    return Curve(**{**values, "ratios": ratios, "slope": slope})  # type: ignore[arg-type]
