"""Pictures of what FactorVAE's discriminator says, and of FactorVAE beside beta-VAEs."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from pyvae.report.palette import Colour, palette_of, plain_axes
from questions.correlation_tables import ARMS, PARTS, arms_of
from questions.drawing import COLOURS, FAINT
from questions.labels import legend
from questions.question import Result
from questions.tables import first_of_arms

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_DENSITY = COLOURS[0]
_ESTIMATES = {"log_odds": COLOURS[1], "bound": COLOURS[2]}
_PART_COLOURS = (COLOURS[5], COLOURS[0], COLOURS[4])


def pictures(found: Sequence[Result]) -> dict[str, "Figure"]:
    """What the discriminator says, what the KL is made of, and all arms at equal reconstruction."""
    drawn = {
        "correlation-parts.png": parts_of_kl(found),
        "correlation-equal.png": at_equal_reconstruction(found),
    }
    if adversarial := [result for result in found if "caught_up" in result]:
        drawn["correlation-course.png"] = course(adversarial)
    return drawn


def course(found: Sequence[Result]) -> "Figure":
    """Total correlation over the run by its density and by the discriminator, and what more steps of it would do."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.6, 3.4), layout="constrained")
    *axes, early, last = figure.subplots(1, len(found) + 2, sharey=True)
    for ax, result in zip(axes, found, strict=True):
        snapshots = result["snapshots"]
        steps = thousands(each["step"] for each in snapshots)
        ax.plot(thousands(result["trace"]["step"]), result["trace"]["tc"], color=FAINT, linewidth=0.8)
        _plot(ax, steps, [each["tc"] for each in snapshots], _DENSITY)
        for key, colour in _ESTIMATES.items():
            _plot(ax, steps, [each["discriminator"][key] for each in snapshots], colour)
        ax.set_title(f"total correlation, nats (seed {result['seed']})", fontsize=9, loc="left")
        ax.set_xlabel("thousand steps (grey: log-odds of training batches)", fontsize=7)
    for result in found:
        for ax, tc, said in (
            (early, result["most"]["tc"], result["most"]["caught_up"]),
            (last, result["whole"]["tc"], result["caught_up"]),
        ):
            ax.axhline(tc, color=_DENSITY, linewidth=1.2)
            for key, colour in _ESTIMATES.items():
                _plot(ax, [each["steps"] for each in said], [each[key] for each in said], colour)
    early.set_title(f"encoder held still after step {found[0]['most']['step']:,}", fontsize=9, loc="left")
    last.set_title("encoder held still at the end", fontsize=9, loc="left")
    for ax in (early, last):
        ax.set_xlabel("further steps of the discriminator", fontsize=7)
    for ax in (*axes, early, last):
        ax.axhline(0, color=FAINT, linewidth=0.6)
        plain_axes(ax)
    names = {
        "by its density": _DENSITY,
        "mean log-odds": COLOURS[1],
        "bound by the discriminator": COLOURS[2],
    }
    legend(axes[0], names)
    return figure


def parts_of_kl(found: Sequence[Result]) -> "Figure":
    """Mutual information, total correlation and dimension-wise KL over the run: a panel an arm, its first seed."""
    from matplotlib.figure import Figure

    firsts = first_of_arms(found)
    figure = Figure(figsize=(9.6, 3.0), layout="constrained")
    axes = np.atleast_1d(figure.subplots(1, len(firsts), sharey=True))
    for ax, result in zip(axes, firsts, strict=True):
        steps = thousands(each["step"] for each in result["snapshots"])
        values = [[each[key] for each in result["snapshots"]] for key in PARTS]
        ax.stackplot(steps, values, colors=_PART_COLOURS, alpha=0.75, linewidth=0)
        ax.set_title(f"{result['arm']}, KL in nats", fontsize=9, loc="left")
        ax.set_xlabel("thousand steps", fontsize=8)
        plain_axes(ax)
    legend(axes[-1], dict(zip(reversed(PARTS.values()), reversed(_PART_COLOURS), strict=True)))
    return figure


def at_equal_reconstruction(found: Sequence[Result]) -> "Figure":
    """Total correlation and mutual information against reconstruction: a line a run, its end a larger point."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.6, 3.8), layout="constrained")
    axes = figure.subplots(1, 2)
    titles = {
        "tc": "total correlation, nats",
        "mutual_information": "mutual information of image and code, nats",
    }
    for ax, (key, title) in zip(axes, titles.items(), strict=True):
        for result in found:
            colour = colour_of(result["arm"])
            x, y = ([each[name] for each in result["snapshots"]] for name in ("recon", key))
            _plot(ax, x, y, colour)
            ax.plot(x[-1:], y[-1:], "o", color=colour, markersize=8)
        ax.set_title(title, fontsize=10, loc="left")
        ax.set_xlabel("reconstruction, nats", fontsize=8)
        plain_axes(ax)
    legend(axes[0], {arm: colour_of(arm) for arm in arms_of(found)})
    return figure


def _plot(axes: "Axes", x: Sequence[float], y: Sequence[float], colour: str) -> None:
    axes.plot(x, y, "o-", color=colour, markersize=3.5, linewidth=1.2)


def thousands(steps: Iterable[float]) -> list[float]:
    return [step / 1000 for step in steps]


def colour_of(arm: str) -> Colour:
    return palette_of(ARMS)[arm]
