"""Pictures of docs/findings/generators.md."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from pyvae.report.figures import show, tile
from pyvae.report.palette import palette_of, plain_axes
from questions.generators_tables import METRICS, is_generator, real_images
from questions.labels import label_ends
from questions.question import Result
from questions.tables import first_of_arms
from questions.thumbnails import SIDE, unpack

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_WIDTH = 7.6
_CONTINUOUS = (math.log(2) - 0.5 * (math.log(2 * math.pi) + 1 / 3), math.log(2) - 0.5 * math.log(2 * math.pi))
"""Bound in nats of a uniform code under a Gaussian of variance 1, where nothing and where all is known of it."""


def pictures(found: Sequence[Result]) -> dict[str, Figure]:
    """Scores against time and images; what is drawn on the way; codes moved; information and critic's loss."""
    first = first_of_arms(found)
    drawn = {
        "generators-scores.png": _scores(found),
        "generators-samples.png": _samples(first),
        "generators-codes.png": _codes(first),
    }
    pairs = [result for result in first if is_generator(result)]
    return drawn | ({"generators-training.png": _training(pairs)} if pairs else {})


def _scores(found: Sequence[Result]) -> Figure:
    """Rows are metrics; columns have the same scores against the minutes of training and the images seen."""
    from matplotlib.figure import Figure

    colours = palette_of(result["arm"] for result in found)
    first = {result["arm"]: result for result in reversed(found)}
    figure = Figure(figsize=(_WIDTH, 4.6), layout="constrained")
    panels = figure.subplots(len(METRICS), 2, sharey="row")
    for row, (metric, title) in enumerate(METRICS.items()):
        for result in found:
            steps = np.array([each["step"] for each in result["snapshots"]])
            values = [each[metric] for each in result["snapshots"]]
            minutes = steps / result["training"]["steps_per_second"] / 60
            images = [real_images(result["recipe"], step) / 1e6 for step in steps]
            width = 1.4 if result is first[result["arm"]] else 0.6
            for axes, x in zip(panels[row], (minutes, images), strict=True):
                axes.plot(x, values, color=colours[result["arm"]], lw=width, marker=".", ms=4)
        ends = [(each["snapshots"][-1][metric], arm, colours[arm]) for arm, each in first.items()]
        for axes, x_title in zip(
            panels[row], ("minutes of training", "real images seen, millions"), strict=True
        ):
            plain_axes(axes)
            axes.set_ylim(bottom=0)
            axes.set_xlabel(x_title, fontsize=8)
        panels[row, 0].set_ylabel(title, fontsize=8)
        label_ends(panels[row, 1], ends)
    return figure


def _samples(found: Sequence[Result]) -> Figure:
    """A row for each method, a column for each of three steps; the same noise in each row."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_WIDTH, 1.35 * len(found)), layout="constrained")
    panels = figure.subplots(len(found), len(found[0]["samples"]), squeeze=False)
    for row, result in zip(panels, found, strict=True):
        for axes, sample in zip(row, result["samples"], strict=True):
            show(axes, tile(unpack(sample["images"])))
            axes.set_title(f"{result['arm']}, step {sample['step']:,}", fontsize=8, loc="left")
    return figure


def _codes(found: Sequence[Result]) -> Figure:
    """A block for each method; each row moves a code, named by the factor that moves it most in real images."""
    from matplotlib.figure import Figure

    most = max(len(result["moved"]["codes"]) for result in found)
    columns = min(2, len(found))
    rows = -(-len(found) // columns)
    figure = Figure(figsize=(_WIDTH, rows * (0.42 * most + 0.35)), layout="constrained")
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes in panels:
        axes.set_axis_off()
    for axes, result in zip(panels, found, strict=False):
        moved, own = result["moved"], result["codes"]
        images = unpack(moved["images"])
        show(axes, tile(images))
        axes.set_axis_on()
        axes.spines[:].set_visible(False)
        axes.set_xticks([])
        labels = [f"{own['names'][j]}: {_strongest(own, j)}" for j in moved["codes"]]
        axes.set_yticks([(SIDE + 2) * (row + 0.5) for row in range(len(labels))], labels, fontsize=6.5)
        axes.tick_params(length=0, pad=1)
        axes.set_title(f"{result['arm']}, seed {result['seed']}", fontsize=9, loc="left")
    return figure


def _strongest(own: dict[str, Any], code: int) -> str:
    factor = int(np.argmax(own["effect"][code]))
    return f"{own['factors'][factor]} {own['effect'][code][factor]:.2f}"


def _training(found: Sequence[Result]) -> Figure:
    """The bound of each code, of continuous ones as a share of what there is to know, and the critic's loss."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_WIDTH, 2.4 * len(found)), layout="constrained")
    panels = figure.subplots(len(found), 2, squeeze=False)
    for (left, right), result in zip(panels, found, strict=True):
        trace, names, objective = result["trace"], result["codes"]["names"], result["recipe"]["objective"]
        colours = palette_of(names)
        low, high = _CONTINUOUS
        ends = []
        for j, name in enumerate(names):
            bound = np.array(trace[f"information_{j}"])
            known = (
                bound / math.log(objective["categories"]) if name == "class" else (bound - low) / (high - low)
            )
            left.plot(trace["step"], known, color=colours[name], lw=0.9)
            ends.append((float(np.mean(known[-10:])), name, colours[name]))
        right.plot(trace["step"], trace["discriminator_loss"], color="0.3", lw=0.9)
        for axes in (left, right):
            plain_axes(axes)
            axes.set_xlabel("step", fontsize=8)
        left.axhline(1.0, color="0.5", lw=0.6, ls=":")
        left.set_title(f"{result['arm']}: known of each code, in its own images", fontsize=8, loc="left")
        right.set_title("loss of the critic and its information head", fontsize=8, loc="left")
        label_ends(left, ends)
    return figure
