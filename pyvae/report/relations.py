"""How scores go together, what they depend on, and what a ranking without factors says of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from pyvae.report.cohort import Cohort, is_supervised, title_of
from pyvae.report.palette import SHARES, Palette, cut, legend, plain_axes
from pyvae.studies.analysis import Shares, rank_correlations

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_COLUMNS = 4


def draw_correlations(cohort: Cohort, names: Sequence[str]) -> Figure:
    """The rank correlation of each two columns as a coloured square with its number."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    found = rank_correlations([cohort.columns[name] for name in names])
    side = 0.52 * len(names)
    figure = Figure(figsize=(side + 2.9, side + 1.6), layout="constrained")
    axes = figure.add_subplot()
    colours = colormaps["RdBu_r"].with_extremes(bad="0.92")
    picture = axes.imshow(np.ma.masked_invalid(found), cmap=colours, vmin=-1, vmax=1)
    labels = [cut(title_of(name)) for name in names]
    axes.set_xticks(range(len(names)), labels, rotation=40, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(names)), labels)
    axes.tick_params(labelsize=8, length=0)
    axes.spines[:].set_visible(False)
    for i, j in np.ndindex(*found.shape):
        text = "\u2013" if np.isnan(found[i, j]) else f"{found[i, j]:.2f}".replace("-0.00", "0.00")
        strong = abs(found[i, j]) > 0.65
        axes.text(j, i, text, ha="center", va="center", fontsize=7.5, color="white" if strong else "0.15")
    bar = figure.colorbar(picture, ax=axes, shrink=0.7, ticks=[-1, -0.5, 0, 0.5, 1])
    bar.set_label("Spearman's rank correlation", fontsize=8)
    bar.ax.tick_params(labelsize=8, length=2)
    bar.outline.set_visible(False)
    return figure


def draw_shares(found: Mapping[str, Shares]) -> Figure:
    """A bar for each score, of the shares of method, setting and seed."""
    from matplotlib.figure import Figure

    names = list(found)
    figure = Figure(figsize=(8.2, 0.34 * len(names) + 1.1), layout="constrained")
    axes = figure.add_subplot()
    left = np.zeros(len(names))
    titles = {"method": "method", "setting": "setting, within the method", "seed": "seed (what is left)"}
    for part, colour in SHARES.items():
        wide = np.array([getattr(found[name], part) for name in names])
        axes.barh(range(len(names)), wide, left=left, color=colour, height=0.68, label=titles[part])
        for y, (start, share) in enumerate(zip(left, wide, strict=True)):
            if share >= 0.06:
                dark = part == "method"
                axes.text(
                    start + share / 2,
                    y,
                    f"{100 * share:.0f}",
                    ha="center",
                    va="center",
                    fontsize=8,
                    color="white" if dark else "0.15",
                )
        left = left + wide
    axes.set_yticks(range(len(names)), [cut(title_of(name)) for name in names])
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xlim(0, 1)
    axes.set_xticks(np.linspace(0, 1, 6), [f"{p}%" for p in range(0, 101, 20)])
    axes.set_xlabel("share of the variance over models", fontsize=8)
    plain_axes(axes, grid="x")
    axes.legend(
        ncols=3, fontsize=8, frameon=False, loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0.2
    )
    return figure


def draw_ranking(cohort: Cohort, colours: Palette) -> Figure | None:
    """UDR along x against each score computed from factors, a dot for each model; None where there is none."""
    from matplotlib.figure import Figure

    names = [name for name in cohort.scores if is_supervised(name)]
    if not names:
        return None
    across = min(len(names), _COLUMNS)
    down = -(-len(names) // across)
    figure = Figure(figsize=(2.5 * across + 1.8, 2.35 * down + 0.2), layout="constrained")
    panels = figure.subplots(down, across, sharex=True, squeeze=False)
    shown = np.array([colours[method] for method in cohort.methods])
    size = 14 if len(shown) <= 200 else 6
    for number, (axes, name) in enumerate(zip(panels.flat, names, strict=False)):
        axes.scatter(cohort.columns["udr"], cohort.columns[name], s=size, c=shown, alpha=0.7, linewidths=0)
        axes.set_title(cut(title_of(name)), fontsize=10, loc="left")
        if number + across >= len(names):
            axes.set_xlabel("UDR", fontsize=8)
            axes.tick_params(labelbottom=True)
        plain_axes(axes)
    for axes in panels.flat[len(names) :]:
        axes.set_axis_off()
    legend(figure, colours, list(cohort.rows))
    return figure
