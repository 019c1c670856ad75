"""Does continuous pressure on the bottleneck matter? ControlVAE with linear and adaptive capacity."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

import pyvae
from pyvae.metrics import mig_chen
from pyvae.objectives import ControlVAE
from pyvae.report.palette import plain_axes
from questions.drawing import COLOURS, INK
from questions.question import Question, Result
from questions.runs import ALL, GRID, dead_of, grid_codes, snapshot, steps_of
from questions.tables import (
    NONE_YET,
    dead_units,
    first_of_arms,
    machines,
    markdown,
    name_of,
    steps_and_minutes,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ARMS = ("linear", "linear-stretched", "adaptive", "adaptive-held", "adaptive-smoothed", "linear-hot")
LEVELS = (2.0, 4.0, 6.0, 8.0, 10.0, 12.0, 14.0)
"""Nats at which MIG is measured, in the first snapshot whose KL is nearest; further at the end."""
SHAPE = "shape"
BLOCKS = 20
_END = 1e-3
"""Of the run: C is forced to its end there, whatever beta does."""
_NEAR = 0.5
_LEAST_KL = 1.0
_HIGHEST_RECON = 300.0
"""Of a picture, which the first steps would fill alone."""


def measure(run: pyvae.Run) -> Result:
    """The exponent of C(t); reconstruction and KL at every snapshot; MIG at some of them and at the end."""
    trace = run.trace()
    objective = run.recipe.objective
    assert isinstance(objective, ControlVAE)
    adaptive = objective.schedule == "adaptive"
    steps = steps_of(run)
    found = [snapshot_of(run, step) for step in steps]
    chosen = sorted({nearest([each["kl"] for each in found], level) for level in LEVELS} | {len(found) - 1})
    for k in chosen:
        found[k]["mig_gaps"] = gaps(run, steps[k], GRID)
    tail = slice(-max(len(trace["step"]) // 100, 1), None)
    return {
        "exponent": exponent(trace["step"], trace["capacity"], objective) if adaptive else None,
        "share_at_full_capacity": float((trace["capacity"] >= objective.capacity - 0.005).mean()),
        "mean_beta": float(trace["beta"].mean()),
        "last_percent": {
            name: float(trace[name][tail].mean()) for name in ("recon", "kl", "capacity", "beta")
        },
        "snapshots": found,
        "mig_gaps": gaps(run, run.step, ALL),
        "dead": {str(step): dead_of(run, step) for step in steps[:: max(len(steps) // 6, 1)]},
    }


def snapshot_of(run: pyvae.Run, step: int) -> dict[str, Any]:
    """Averages over 4,096 fixed images."""
    averages = snapshot(run, step)
    return {
        "step": step,
        "recon": round(averages.recon, 3),
        "kl": round(sum(averages.kl), 4),
        "kl_of_latents": [round(kl, 4) for kl in averages.kl],
    }


def gaps(run: pyvae.Run, step: int, strides: Sequence[int]) -> dict[str, float]:
    """Of each factor, the gap of the MIG of Chen et al. 2018; their mean is the MIG."""
    found = mig_chen(grid_codes(run, step, strides), progress=False)
    return {name: round(float(gap), 5) for name, gap in zip(found.factors, found.gaps, strict=True)}


def mig_of(by_factor: Mapping[str, float], *, shape: bool) -> float:
    """With the factor shape, or without it as Chen et al. and Shao et al."""
    kept = [gap for name, gap in by_factor.items() if shape or name != SHAPE]
    return sum(kept) / len(kept)


def nearest(values: Sequence[float], level: float) -> int:
    """Position of the first value that is nearest to the level."""
    return int(np.argmin(np.abs(np.asarray(values) - level)))


def exponent(
    step: npt.NDArray[Any], capacity: npt.NDArray[np.float64], objective: ControlVAE
) -> dict[str, Any]:
    """p of ``stop - C(t) = (stop - start) (1 - t / T)^p``, and its band over the run.

    The share of steps that raise C is the slope of ``-log`` of the gap over ``-log(1 - t / T)``. It is taken in 20
    parts of the schedule, as long as one another, without its last thousandth: p is their median, the band is from the
    second lowest to the second highest of them, nine tenths.
    """
    left = 1.0 - (step + 1.0) / objective.capacity_steps
    inside = left > _END
    u = -np.log(left[inside])
    gap = -np.log((objective.capacity - capacity[inside]) / (objective.capacity - objective.capacity_start))
    edges = -np.log1p(np.linspace(math.expm1(-u[0]), math.expm1(-u[-1]), BLOCKS + 1))
    slopes = np.diff(np.interp(edges, u, gap)) / np.diff(edges)
    ordered = np.sort(slopes)
    return {
        "p": round(float(np.median(slopes)), 4),
        "band": [round(float(ordered[1]), 4), round(float(ordered[-2]), 4)],
        "parts": [round(float(slope), 4) for slope in slopes],
        "part_starts": [round(float(1.0 - math.exp(-edge)), 5) for edge in edges[:-1]],
    }


def pictures(found: Sequence[Result]) -> dict[str, "Figure"]:
    """The course of every run, and what its code is worth at equal KL."""
    return {"capacity-course.png": course(found), "capacity-equal.png": at_equal_kl(found)}


def course(found: Sequence[Result]) -> "Figure":
    """C, KL, beta and reconstruction over the run, an arm a colour; the law of p = 1/2 is dotted."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.6, 6.4), layout="constrained")
    axes = figure.subplots(2, 2, sharex=True).ravel()
    titles = {"capacity": "C, nats", "kl": "KL, nats", "beta": "beta", "recon": "reconstruction, nats"}
    firsts = first_of_arms(found)
    for ax, (name, title) in zip(axes, titles.items(), strict=True):
        for result in found:
            trace = result["trace"]
            x = np.asarray(trace["step"]) / result["recipe"]["steps"]
            first = any(result is each for each in firsts)
            colour = colour_of(result["arm"])
            ax.plot(x, trace[name], color=colour, linewidth=1.3, alpha=1.0 if first else 0.45)
        ax.set_title(title, fontsize=10, loc="left")
        plain_axes(ax)
    axes[2].set_yscale("log")
    axes[3].set_ylim(0, _HIGHEST_RECON)
    t = np.linspace(0, 1, 400)
    axes[0].plot(t, 16 - 15.5 * np.sqrt(1 - t), ":", color=INK, linewidth=1.2)
    for ax in axes[2:]:
        ax.set_xlabel("t / T", fontsize=9)
    label_arms(axes[0], found)
    return figure


def at_equal_kl(found: Sequence[Result]) -> "Figure":
    """Reconstruction, and MIG without and with shape, against the KL that was spent: a point a snapshot."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.6, 3.5), layout="constrained")
    axes = figure.subplots(1, 3)
    for result in found:
        colour = colour_of(result["arm"])
        points = [each for each in result["snapshots"] if each["kl"] > _LEAST_KL]
        axes[0].plot(
            *zip(*((each["kl"], each["recon"]) for each in points), strict=True),
            ".",
            color=colour,
            markersize=3.5,
        )
        for ax, shape in ((axes[1], False), (axes[2], True)):
            scored = sorted(
                (each["kl"], mig_of(each["mig_gaps"], shape=shape)) for each in points if "mig_gaps" in each
            )
            ax.plot(*zip(*scored, strict=True), "o-", color=colour, linewidth=1.0, markersize=3.5)
    for ax, title in zip(
        axes, ("reconstruction, nats", "MIG (Chen et al.), without shape", "MIG, with shape"), strict=True
    ):
        ax.set_title(title, fontsize=10, loc="left")
        ax.set_xlabel("KL, nats", fontsize=9)
        plain_axes(ax)
    axes[0].set_ylim(0, _HIGHEST_RECON)
    label_arms(axes[0], found)
    return figure


def colour_of(arm: str) -> str:
    return COLOURS[ARMS.index(arm)]


def label_arms(axes: "Axes", found: Sequence[Result]) -> None:
    """One line each, in its colour."""
    from matplotlib.lines import Line2D

    arms = [result["arm"] for result in first_of_arms(found)]
    axes.legend(
        [Line2D([], [], color=colour_of(arm), linewidth=2) for arm in arms], arms, fontsize=8, frameon=False
    )


def runs_table(found: Sequence[Result]) -> str:
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


def dead_table(found: Sequence[Result]) -> str:
    """Dead units of the encoder, at the last step at which they were counted."""
    last = [max(result["dead"], key=int) for result in found]
    return dead_units(
        [(name_of(result), int(step), result["dead"][step]) for result, step in zip(found, last, strict=True)]
    )


def parts_table(found: Sequence[Result]) -> str:
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


def levels_table(found: Sequence[Result]) -> str:
    """Reconstruction and MIG without shape at equal KL."""
    if not found:
        return NONE_YET
    levels = (*LEVELS[1::2], 16.0)
    rows = []
    for result in found:
        cells = []
        for level in levels:
            recon = at_level(result["snapshots"], level, lambda each: each["recon"])
            scored = [each for each in result["snapshots"] if "mig_gaps" in each]
            mig = at_level(scored, level, lambda each: mig_of(each["mig_gaps"], shape=False))
            cells.append("-" if recon is None or mig is None else f"{recon:.1f} / {mig:.3f}")
        rows.append([name_of(result), *cells])
    return markdown(["run", *(f"{level:g} nats" for level in levels)], rows)


def at_level(
    snapshots: Sequence[dict[str, Any]], level: float, value: Callable[[dict[str, Any]], float]
) -> float | None:
    """Of the snapshot whose KL is nearest; None where none is within half a nat."""
    best = snapshots[nearest([each["kl"] for each in snapshots], level)]
    return value(best) if abs(best["kl"] - level) <= _NEAR else None


QUESTION = Question(
    arms=ARMS,
    measure=measure,
    pictures=pictures,
    tables={
        "trained": trained,
        "runs": runs_table,
        "levels": levels_table,
        "dead": dead_table,
        "parts": parts_table,
    },
)
