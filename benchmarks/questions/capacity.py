"""Does continuous pressure on the bottleneck matter? ControlVAE with linear and adaptive capacity."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

import pyvae
from pyvae.metrics import CodeTable, mig_chen
from pyvae.objectives import ControlVAE
from questions import capacity_pictures, capacity_tables
from questions.capacity_tables import ARMS, LEVELS, nearest
from questions.question import Question, Result
from questions.runs import ALL, GRID, dead_of, grid_codes, snapshot, steps_of

BLOCKS = 20
_END = 1e-3
"""Of the run: C is forced to its end there, whatever beta does."""


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
        "dead": {str(step): dead_of(run, step) for step in counted(steps)},
    }


def counted(steps: Sequence[int]) -> list[int]:
    """Those at which dead units are counted: about six, and the last."""
    return list(dict.fromkeys([*steps[:: max(len(steps) // 6, 1)], steps[-1]]))


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
    """Those of the codes of a snapshot."""
    return gaps_of(grid_codes(run, step, strides))


def gaps_of(table: CodeTable) -> dict[str, float]:
    """Of each factor, the gap of the MIG of Chen et al. 2018; their mean is the MIG."""
    found = mig_chen(table, progress=False)
    return {name: round(float(gap), 5) for name, gap in zip(found.factors, found.gaps, strict=True)}


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


QUESTION = Question(
    arms=ARMS,
    measure=measure,
    pictures=capacity_pictures.pictures,
    tables={
        "trained": capacity_tables.trained,
        "runs": capacity_tables.runs,
        "levels": capacity_tables.levels,
        "full": capacity_tables.full,
        "dead": capacity_tables.dead,
        "parts": capacity_tables.parts,
    },
)
