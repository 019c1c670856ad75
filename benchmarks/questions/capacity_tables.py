"""Tables of docs/findings/capacity.md."""

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from questions.question import Result
from questions.tables import NONE_YET, dead_units, machines, markdown, name_of, steps_and_minutes

ARMS = ("linear", "linear-stretched", "adaptive", "adaptive-held", "adaptive-smoothed", "linear-hot")
LEVELS = (2.0, 4.0, 6.0, 8.0, 10.0, 12.0, 14.0)
"""Nats at which MIG is measured, in the first snapshot whose KL is nearest; further at the end."""
SHAPE = "shape"
_REACHED = 0.2
"""Nats below the set point at which the KL counts as there."""
_AFTER = (5_000, 15_000, 25_000, 34_000)
"""Steps with the KL at its set point."""
_AROUND = 500


def mig_of(by_factor: Mapping[str, float], *, shape: bool) -> float:
    """With the factor shape, or without it as Chen et al. and Shao et al."""
    kept = [gap for name, gap in by_factor.items() if shape or name != SHAPE]
    return sum(kept) / len(kept)


def nearest(values: Sequence[float], level: float) -> int:
    """Position of the first value that is nearest to the level."""
    return int(np.argmin(np.abs(np.asarray(values) - level)))


def runs(found: Sequence[Result]) -> str:
    """What each run came to."""
    if not found:
        return NONE_YET
    rows = []
    for result in found:
        p, last = result["exponent"], result["last_percent"]
        rows.append(
            [
                name_of(result),
                "-" if p is None else f"{p['p']:.2f} ({p['band'][0]:.2f} to {p['band'][1]:.2f})",
                f"{100 * result['share_at_full_capacity']:.0f}%",
                f"{result['mean_beta']:.1f}",
                *(f"{last[name]:.2f}" for name in ("kl", "beta", "recon")),
                *(f"{mig_of(result['mig_gaps'], shape=shape):.3f}" for shape in (False, True)),
            ]
        )
    return markdown(
        [
            "run",
            "p (band)",
            "time at 16 nats",
            "mean beta",
            "KL at the end",
            "beta at the end",
            "reconstruction at the end",
            "MIG without shape",
            "MIG with shape",
        ],
        rows,
    )


def trained(found: Sequence[Result]) -> str:
    """What was run, and on what."""
    if not found:
        return NONE_YET
    rows = [(f"`{each['arm']}`", str(each["seed"]), *steps_and_minutes(each)) for each in found]
    return f"{markdown(('arm', 'seed', 'steps', 'minutes'), rows)}\n\n{machines(found)}"


def dead(found: Sequence[Result]) -> str:
    """Dead units of the encoder, at the last step at which they were counted."""
    last = [max(result["dead"], key=int) for result in found]
    return dead_units(
        [(name_of(result), int(step), result["dead"][step]) for result, step in zip(found, last, strict=True)]
    )


def parts(found: Sequence[Result]) -> str:
    """p in each part of the run."""
    known = [result for result in found if result["exponent"] is not None]
    if not known:
        return NONE_YET
    starts = known[0]["exponent"]["part_starts"]
    rows = [
        [f"{start:.2f}", *(f"{result['exponent']['parts'][k]:.2f}" for result in known)]
        for k, start in enumerate(starts)
    ]
    return markdown(["from t / T", *(name_of(result) for result in known)], rows)


def levels(found: Sequence[Result]) -> str:
    """Reconstruction and MIG without shape at equal KL."""
    if not found:
        return NONE_YET
    rows = []
    for result in found:
        scored = [each for each in result["snapshots"] if "mig_gaps" in each]
        cells = []
        for level in LEVELS[1:-1]:
            recon = at_level(result["snapshots"], level, lambda each: each["recon"])
            mig = at_level(scored, level, lambda each: mig_of(each["mig_gaps"], shape=False))
            cells.append("-" if recon is None or mig is None else f"{recon:.0f} / {mig:.2f}")
        rows.append([name_of(result), *cells])
    return markdown(["run", *(f"{level:g} nats" for level in LEVELS[1:-1])], rows)


def full(found: Sequence[Result]) -> str:
    """Reconstruction after as many steps with the KL at the last set point, of the runs that got there."""
    rows = []
    for result in found:
        trace = {name: np.array(result["trace"][name]) for name in ("step", "kl", "capacity", "recon")}
        there = trace["kl"] >= trace["capacity"][-1] - _REACHED
        if there.any():
            begin = trace["step"][there.argmax()]
            cells = [mean_at(trace["step"], trace["recon"], begin + after) for after in _AFTER]
            shown = ("-" if value is None else f"{value:.1f}" for value in cells)
            rows.append([name_of(result), f"{begin:,.0f}", *shown])
    head = ["run", "at 16 nats from step", *(f"{after:,} steps later" for after in _AFTER)]
    return markdown(head, rows) if rows else NONE_YET


def mean_at(step: npt.NDArray[Any], values: npt.NDArray[Any], at: float) -> float | None:
    """Mean over a thousand steps; None where the run ends before them."""
    if at + _AROUND > step[-1] + (step[-1] - step[-2]):
        return None
    return float(values[np.abs(step - at) <= _AROUND].mean())


def at_level(
    snapshots: Sequence[dict[str, Any]], level: float, value: Callable[[dict[str, Any]], float]
) -> float | None:
    """Where the KL first rises through the level, on a straight line between snapshots; None where it never does."""
    for before, after in pairwise(snapshots):
        if before["kl"] < level <= after["kl"]:
            share = (level - before["kl"]) / (after["kl"] - before["kl"])
            return value(before) + share * (value(after) - value(before))
    return None
