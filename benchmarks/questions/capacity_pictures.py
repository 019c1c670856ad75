"""Pictures of docs/findings/capacity.md."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from pyvae.report.palette import palette_of, plain_axes
from questions.capacity_tables import ARMS, mig_of
from questions.drawing import INK
from questions.labels import legend
from questions.question import Result
from questions.tables import first_of_arms

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_LEAST_KL = 1.0
_HIGHEST_RECON = 300.0
"""Of a picture, which the first steps would fill alone."""


def pictures(found: Sequence[Result]) -> dict[str, Figure]:
    """The course of every run, and what its code is worth at equal KL."""
    return {"capacity-course.png": course(found), "capacity-equal.png": at_equal_kl(found)}


def course(found: Sequence[Result]) -> Figure:
    """C, KL, beta and reconstruction over the run, an arm a colour; the law of p = 1/2 is dotted."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.6, 6.4), layout="constrained")
    axes = figure.subplots(2, 2, sharex=True).ravel()
    titles = {"capacity": "C, nats", "kl": "KL, nats", "beta": "beta", "recon": "reconstruction, nats"}
    firsts, colours = first_of_arms(found), palette_of(ARMS)
    for ax, (name, title) in zip(axes, titles.items(), strict=True):
        for result in found:
            trace = result["trace"]
            x = np.asarray(trace["step"]) / result["recipe"]["steps"]
            first = any(result is each for each in firsts)
            ax.plot(x, trace[name], color=colours[result["arm"]], linewidth=1.3, alpha=1.0 if first else 0.45)
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


def at_equal_kl(found: Sequence[Result]) -> Figure:
    """Reconstruction, and MIG without and with shape, against the KL that was spent: a point a snapshot."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.6, 3.5), layout="constrained")
    axes, colours = figure.subplots(1, 3), palette_of(ARMS)
    for result in found:
        colour = colours[result["arm"]]
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


def label_arms(axes: Axes, found: Sequence[Result]) -> None:
    """One line each, in its colour."""
    colours = palette_of(ARMS)
    legend(axes, {result["arm"]: colours[result["arm"]] for result in found})
