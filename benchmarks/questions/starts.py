"""What the first steps of ControlVAE decide: how many latents are left for position, and the MIG that follows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

import pyvae
from pyvae.report.palette import palette_of, plain_axes
from pyvae.report.panels import Trace
from questions.capacity import gaps_of, snapshot_of
from questions.capacity_pictures import label_arms
from questions.capacity_tables import ARMS as CAPACITY_ARMS
from questions.capacity_tables import mig_of, nearest
from questions.effects import grid_effects
from questions.question import Question, Result
from questions.runs import GRID, grid_codes, steps_of
from questions.tables import NONE_YET, machines, markdown, name_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ARMS = ("linear", "adaptive-held")
STEPS = 20_000
"""Of a longer run, no more is looked at."""
LEVEL = 8.0
"""Nats at which codes are compared."""
_OPEN = 0.3
"""Nats from which on a latent counts."""
_WINDOW = 500
"""Steps over which the KL of minibatches is averaged."""
_FRESH = 1_000
"""Steps in which the KL of new weights first rises."""
_POSITION = ("posX", "posY")


def measure(run: pyvae.Run) -> Result:
    """The lowest KL before C is met, the highest beta, and the code at 8 nats."""
    snapshots = [snapshot_of(run, step) for step in steps_of(run) if step <= STEPS]
    at = snapshots[nearest([each["kl"] for each in snapshots], LEVEL)]
    table = grid_codes(run, at["step"], GRID)
    effects = dict(zip(table.factor_names, grid_effects(table).T.tolist(), strict=True))
    return {
        **pressed(run.trace()),
        "at_level": {
            **at,
            "mig_gaps": gaps_of(table),
            "effects": {name: [round(each, 3) for each in own] for name, own in effects.items()},
        },
    }


def pressed(trace: Trace) -> dict[str, float]:
    """How low the KL got under pressure, in running means, and how high beta."""
    begun = (trace["step"] >= _FRESH) & (trace["step"] < STEPS)
    kl, beta = trace["kl"][begun], trace["beta"][begun]
    width = int(min(max(_WINDOW // np.diff(trace["step"][:2])[0], 1), len(kl)))
    means = np.convolve(kl, np.full(width, 1 / width), "valid")
    return {"lowest_kl": round(float(means.min()), 3), "highest_beta": round(float(beta.max()), 2)}


def of_position(at: Result) -> int:
    """Open latents of whose variance most is position's."""
    effects = at["effects"]
    return sum(
        kl >= _OPEN
        and sum(effects[name][j] for name in _POSITION if name in effects)
        > sum(effects[name][j] for name in effects if name not in _POSITION)
        for j, kl in enumerate(at["kl_of_latents"])
    )


def runs(found: Sequence[Result]) -> str:
    """What each start came to."""
    if not found:
        return NONE_YET
    head = (
        "run",
        "lowest KL, nats",
        "highest beta",
        "step",
        "KL there, nats",
        "reconstruction there, nats",
        "latents of position",
        "MIG without shape",
        "MIG with shape",
    )
    rows = []
    for result in found:
        at = result["at_level"]
        rows.append(
            [
                name_of(result),
                f"{result['lowest_kl']:.2f}",
                f"{result['highest_beta']:.0f}",
                f"{at['step']:,}",
                f"{at['kl']:.2f}",
                f"{at['recon']:.1f}",
                str(of_position(at)),
                *(f"{mig_of(at['mig_gaps'], shape=shape):.3f}" for shape in (False, True)),
            ]
        )
    return f"{markdown(head, rows)}\n\n{machines(found)}"


def pictures(found: Sequence[Result]) -> dict[str, Figure]:
    """MIG at 8 nats against the lowest KL of the start, a point a run, with its latents of position."""
    from matplotlib.figure import Figure

    colours = palette_of(CAPACITY_ARMS)
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axes: Any = figure.subplots()
    for result in found:
        x, y = result["lowest_kl"], mig_of(result["at_level"]["mig_gaps"], shape=False)
        axes.plot(x, y, "o", color=colours[result["arm"]])
        axes.annotate(
            str(of_position(result["at_level"])), (x, y), (6, 4), textcoords="offset points", fontsize=8
        )
    axes.set_xlabel("lowest KL before the rise, nats", fontsize=9)
    axes.set_title(
        "MIG without shape at 8 nats, and the number of latents of position", fontsize=10, loc="left"
    )
    axes.set_ylim(0, 1.15 * axes.get_ylim()[1])
    label_arms(axes, found)
    plain_axes(axes)
    return {"capacity-starts.png": figure}


QUESTION = Question(arms=ARMS, measure=measure, pictures=pictures, tables={"runs": runs})
