"""How a score lies over the models of each method, and of each of its settings."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pyvae.report.cohort import Cohort, Column, Setting, describe, show, title_of
from pyvae.report.palette import Colour, Palette, cut, plain_axes, shades
from pyvae.studies.analysis import density

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_POINTS = 10
"""Models of a violin that are drawn as points as well."""
_COLUMNS = 4
_FEW = 16
"""Methods that have room for tall violins."""
_BLOCK = 6
_MOST_SERIES = 6
_MOST_PANELS = 216
_MOST_TICKS = 8
_HALF = 0.4

Group = tuple[float, Column, Colour]
"""Where a violin stands, what is in it, and its colour."""


def draw_violins(cohort: Cohort, colours: Palette) -> Figure:
    """A panel for each column, a violin for each method: quartiles as a bar, the median as a dot."""
    from matplotlib.figure import Figure

    names, rows = list(cohort.columns), cohort.rows
    across = min(len(names), _COLUMNS)
    down = -(-len(names) // across)
    height = max((0.34 if len(rows) <= _FEW else 0.2) * len(rows), 0.6) + 0.75
    figure = Figure(figsize=(2.6 * across + 1.6, height * down), layout="constrained")
    panels = figure.subplots(down, across, sharey=True, squeeze=False)
    labels = [f"{cut(method)} ({len(at)})" for method, at in rows.items()]
    for axes, name in zip(panels.flat, names, strict=False):
        column = cohort.columns[name]
        groups = [(float(y), _known(column[at]), colours[m]) for y, (m, at) in enumerate(rows.items())]
        _violins(axes, groups, across=True)
        axes.set_title(cut(title_of(name)), fontsize=10, loc="left")
        axes.set_yticks(range(len(labels)), labels)
        axes.set_ylim(len(labels) - 0.4, -0.6)
        axes.xaxis.get_major_locator().set_params(nbins=5)
        plain_axes(axes, grid="x")
    for axes in panels.flat[len(names) :]:
        axes.set_axis_off()
    return figure


def draw_settings(cohort: Cohort, colours: Palette) -> Iterator[tuple[list[str], Figure]]:
    """Figures of up to six methods each, with their names: a row for each score, a column for each method.

    Along each panel goes the hyperparameter with the most values; where others are swept as well, a line is drawn for
    each of their combinations. Lines join means over seeds. No more are drawn than a page can hold.
    """
    scores = list(cohort.scores) or list(cohort.columns)
    rows = cohort.rows
    swept = [m for m, at in rows.items() if len({cohort.settings[i] for i in at.tolist()}) > 1]
    for first in range(0, min(len(swept), max(_MOST_PANELS // len(scores), 1)), _BLOCK):
        methods = swept[first : first + _BLOCK]
        yield methods, _settings(cohort, methods, scores, colours)


def _settings(cohort: Cohort, methods: Sequence[str], scores: Sequence[str], colours: Palette) -> Figure:
    from matplotlib.figure import Figure

    rows = cohort.rows
    width, height = max(2.3 * len(methods) + 0.9, 4.4), 1.55 * len(scores) + 0.9
    figure = Figure(figsize=(width, height))
    # by hand: the solver of constrained layouts takes seconds for a hundred panels
    figure.subplots_adjust(
        left=0.85 / width,
        right=1 - 0.1 / width,
        bottom=0.55 / height,
        top=1 - 0.35 / height,
        wspace=0.14,
        hspace=0.2,
    )
    panels = figure.subplots(len(scores), len(methods), sharey="row", sharex="col", squeeze=False)
    for j, method in enumerate(methods):
        at = rows[method]
        layout = _Layout([cohort.settings[i] for i in at.tolist()])
        for i, score in enumerate(scores):
            axes = panels[i, j]
            _panel(axes, cohort.columns[score][at], layout, colours[method])
            plain_axes(axes)
            if not i:
                axes.set_title(cut(method, 24), fontsize=10, loc="left", color=colours[method])
            if not j:
                axes.set_ylabel(cut(title_of(score), 34).replace(", ", ",\n"), fontsize=8)
        bottom = panels[-1, j]
        step = -(-len(layout.ticks) // _MOST_TICKS)
        ticks = list(enumerate(layout.ticks))[::step]
        bottom.set_xticks([k for k, _ in ticks], [cut(text, 9) for _, text in ticks])
        bottom.set_xlim(-0.6, len(layout.ticks) - 0.4)
        bottom.set_xlabel(cut(layout.name, 30), fontsize=8)
        if 1 < len(layout.series) <= _MOST_SERIES:
            _key(panels[0, j], layout, colours[method])
    figure.align_ylabels(panels[:, 0])
    return figure


class _Layout:
    """Where the settings of a method stand: along the axis by one hyperparameter, in series by the others."""

    def __init__(self, settings: Sequence[Setting]) -> None:
        names = list(dict.fromkeys(name for setting in settings for name, _ in setting))
        values = {
            name: list(dict.fromkeys(dict(s)[name] for s in settings if name in dict(s))) for name in names
        }
        along = max(names, key=lambda name: len(values[name]), default="")
        self.name = along.replace("_", " ")
        there = _ordered(values[along]) if along else [None]
        self.ticks = [show(value) for value in there]
        rest = [tuple(pair for pair in s if pair[0] != along) for s in settings]
        self.series = list(dict.fromkeys(rest))
        self.at = np.array([there.index(dict(s).get(along)) for s in settings], dtype=np.int64)
        self.of = np.array([self.series.index(r) for r in rest], dtype=np.int64)


def _ordered(values: list[Any]) -> list[Any]:
    try:
        return sorted(values)
    except TypeError:
        return values


def _panel(axes: Any, column: Column, layout: _Layout, colour: Colour) -> None:
    count = len(layout.series)
    drawn = shades(colour, min(count, _MOST_SERIES))
    spread = np.linspace(-0.2, 0.2, count) if count > 1 else np.zeros(1)
    for number in range(count):
        mine = (layout.of == number) & np.isfinite(column)
        own = drawn[number] if count <= _MOST_SERIES else colour
        positions = np.unique(layout.at[mine])
        values = [column[mine & (layout.at == p)] for p in positions]
        if max(map(len, values), default=0) > MOST_POINTS and count == 1:
            _violins(axes, [(float(p), v, own) for p, v in zip(positions, values, strict=True)], across=False)
        else:
            x = layout.at[mine] + spread[number]
            axes.plot(x, column[mine], "o", ms=3.2, mew=0, color=own, alpha=0.65)
        if count <= _MOST_SERIES:
            means = [v.mean() for v in values]
            axes.plot(positions + spread[number], means, "-", lw=1.3, color=own, alpha=0.9)
    if count > _MOST_SERIES:
        known = np.isfinite(column)
        positions = np.unique(layout.at[known])
        axes.plot(positions, [column[known & (layout.at == p)].mean() for p in positions], "k-", lw=1.3)


def _key(axes: Any, layout: _Layout, colour: Colour) -> None:
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], color=c, lw=1.5, label=cut(describe(s), 22))
        for c, s in zip(shades(colour, len(layout.series)), layout.series, strict=True)
    ]
    axes.legend(handles=handles, fontsize=6, frameon=True, framealpha=0.7, edgecolor="none", handlelength=1.0)


def _violins(axes: Any, groups: Sequence[Group], *, across: bool) -> None:
    """Violins along x (``across``) or y with three artists for all, and one more for points of small groups."""
    from matplotlib.collections import LineCollection, PolyCollection

    bodies, faces, bars, dots, points, shown = [], [], [], [], [], []
    for place, values, colour in groups:
        if not len(values):
            continue
        curve = density(values)
        if curve is not None:
            at, wide = curve
            edge = np.concatenate([place - _HALF * wide, (place + _HALF * wide)[::-1]])
            bodies.append(np.column_stack([np.concatenate([at, at[::-1]]), edge]))
            faces.append((*colour, 0.45))
        low, middle, high = np.quantile(values, [0.25, 0.5, 0.75])
        if len(values) > MOST_POINTS:
            bars.append([(low, place), (high, place)])
        dots.append((middle, place, colour))
        if len(values) <= MOST_POINTS:
            points.append(np.column_stack([values, np.full(len(values), place)]))
            shown += [colour] * len(values)
    turn: Any = np.asarray if across else _turned
    if bodies:
        axes.add_collection(PolyCollection([turn(b) for b in bodies], facecolors=faces, edgecolors="none"))
    if bars:
        axes.add_collection(LineCollection([turn(np.array(b)) for b in bars], colors="0.2", linewidths=2.2))
    if points:
        x, y = turn(np.concatenate(points)).T
        axes.scatter(x, y, s=9, c=shown, linewidths=0, zorder=2.5)
    if dots:
        x, y = turn(np.array([dot[:2] for dot in dots])).T
        if across:
            axes.scatter(x, y, s=15, c="white", edgecolors="0.15", linewidths=0.9, zorder=3)
        axes.update_datalim(np.column_stack([x, y]))
    axes.autoscale_view()


def _turned(points: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return points[:, ::-1]


def _known(column: Column) -> Column:
    return column[np.isfinite(column)]
