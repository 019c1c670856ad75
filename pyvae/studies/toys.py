"""Published figures that are computed, not trained."""

import json
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypedDict

from pyvae.engine.files import cause_of, write_atomically
from pyvae.engine.plain import checked, read_json
from pyvae.errors import RunError
from pyvae.evaluation.signal_to_noise import Curve, Estimator, Ratio, Toy, measure

RESULTS = "results.json"
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


class Measurement(NamedTuple):
    """What ``results.json`` holds of a figure."""

    title: str
    scale: float
    """Part of the draws that were made."""
    toy: Toy
    """What the curves are of, but for its seed."""
    curves: dict[int, list[Curve]]
    """Of each seed that is through."""


def reproduce_toy(
    name: str,
    out: Path,
    *,
    seeds: Sequence[int],
    scale: float = 1.0,
    told: Callable[[], object] = lambda: None,
) -> Path:
    """Measure a figure of ``TOYS`` for each seed, or take over what ``out`` holds of it.

    Args:
        name: of the figure.
        out: directory of ``seed-<n>.json`` and ``results.json``.
        seeds: at least one, of the data, the parameters and the draws.
        scale: part of the draws to make.
        told: called when ``results.json`` has been written, whenever a seed is through.

    Returns:
        the path of ``results.json``.

    Raises:
        RunError: a file that cannot be written.
    """
    title, toy = TOYS[name]
    out.mkdir(parents=True, exist_ok=True)
    found: dict[int, list[Curve]] = {}
    results = out / RESULTS
    for seed in seeds:
        path, own = out / f"seed-{seed}.json", replace(toy, seed=seed)
        kept = _read(path, own, scale)
        if kept is None:
            _LOG.info("%s, seed %d", name, seed)
            kept = measure(own, scale=scale)
            content = {"scale": scale, "toy": vars(own), "curves": _to_json(kept)}
            write_atomically(path, (json.dumps(content) + "\n").encode())
        found[seed] = kept
        _write(results, Measurement(title, scale, toy, found))
        told()
    return results


def read_toy(out: Path) -> Measurement:
    """What ``out/results.json`` holds.

    Raises:
        RunError: the file cannot be read, or is none of :func:`reproduce_toy`; one line says so.
    """
    path = out / RESULTS
    try:
        content = checked(read_json(path), _Results)
        curves = {int(seed): [_curve(each) for each in found] for seed, found in content["seeds"].items()}
        return Measurement(content["title"], content["scale"], content["toy"], curves)
    except OSError as error:
        raise RunError(f"cannot read {path}: {cause_of(error)}; `pyvae reproduce` writes it") from error
    except ValueError as error:
        raise RunError(
            f"{path} holds no figure of this version of pyvae ({error}); `pyvae reproduce` makes it anew"
        ) from error


def _write(path: Path, found: Measurement) -> None:
    seeds = {seed: _to_json(curves) for seed, curves in found.curves.items()}
    content = {"title": found.title, "scale": found.scale, "toy": vars(found.toy), "seeds": seeds}
    write_atomically(path, (json.dumps(content, indent=2) + "\n").encode())


def _to_json(curves: Sequence[Curve]) -> list[dict[str, Any]]:
    """What JSON can hold; an infinite ratio, of a gradient that is always 0, is null."""
    return [
        {
            **curve._asdict(),
            "slope": _finite(curve.slope),
            "ratios": [{"snr": _finite(r.snr), "floor": r.floor} for r in curve.ratios],
        }
        for curve in curves
    ]


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


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


class _Results(TypedDict):
    title: str
    scale: float
    toy: Toy
    seeds: dict[str, list[_Curve]]


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
