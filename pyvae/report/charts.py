"""Curves in a page: drawn here as SVG, seen without a script and in print; a script lets one read them off."""

from __future__ import annotations

import html
import json
import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from pyvae.report.panels import MARKED_ROWS, Line, Panel

SCRIPT = "charts.js"
"""What a page with charts runs; see :func:`pyvae.report.markup.document`."""
_HUES = 10  # that the style sheet has, for light and for dark
_WIDTH, _HEIGHT = 420, 236
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 10, 8, 36
_BUCKETS = 300  # each keeps its least and its greatest value
_POINTS = 300
_DIGITS = 5
_LETTERS = {"latent": "z", "code": "c"}
_HINT = (
    "Move over a panel to read all of them off at one step, or focus it and use the arrow keys; a name below a panel "
    "hides its line. Otherwise the last values stand beside the names."
)


class Scale(NamedTuple):
    """From values to places in a drawing."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, values: np.ndarray) -> np.ndarray:
        """Places of values; NaN where there is none."""
        low, high = (math.log(v) if self.log else v for v in (self.low, self.high))
        with np.errstate(divide="ignore", invalid="ignore"):
            share = ((np.log(values) if self.log else values) - low) / (high - low)
        return np.where(np.isfinite(share), self.start + share * (self.end - self.start), np.nan)


def charts(panels: Sequence[Panel], caption: str) -> str:
    """Panels side by side with their caption; those with the same abscissa are read off together."""
    drawn = [panel for panel in panels if panel.lines]
    thin = [[thinned(line) for line in panel.lines] for panel in drawn]
    grids: dict[tuple[float, ...], int] = {}
    described = []
    parts = []
    widths: dict[str, list[float]] = {}
    for panel in drawn:
        for line in panel.lines:
            widths.setdefault(panel.x_title, []).extend((float(line.x.min()), float(line.x.max())))
    for panel, lines in zip(drawn, thin, strict=True):
        scales = _scales(panel, min(widths[panel.x_title]), max(widths[panel.x_title]))
        parts.append(_chart(panel, lines, *scales))
        described.append(
            {
                "axis": panel.x_title,
                "x": scales[0],
                "y": scales[1],
                "lines": [
                    {"x": grids.setdefault(tuple(line.x.tolist()), len(grids)), "y": _rounded(line.y)}
                    for line in lines
                ],
            }
        )
    data = json.dumps(
        {"grids": [_rounded_grid(grid) for grid in grids], "panels": described},
        separators=(",", ":"),
        allow_nan=False,
    )
    # "</script>" would end it
    points = data.replace("<", "\\u003c")
    return (
        f'<div class="charts">{"".join(parts)}<script type="application/json">{points}</script></div>\n'
        f'<p class="note">{html.escape(caption)}<span class="screen" hidden> {_HINT}</span></p>\n'
    )


def thinned(line: Line) -> Line:
    """As much of a line as can be seen: of minibatches the extremes of each stretch, so that spikes stay; of what is
    smooth, evenly many points with both ends."""
    rows = len(line.x)
    if rows <= 2 * _BUCKETS if line.style == "faint" else rows <= _POINTS:
        return line
    if line.style != "faint":
        return _taken(line, np.unique(np.linspace(0, rows - 1, _POINTS).round().astype(int)))
    kept = []
    for part in np.array_split(np.arange(rows), _BUCKETS):
        values = line.y[part]
        finite = np.isfinite(values)
        # one that is not finite is a gap in the line, as without thinning
        kept += [part[~finite][:1]] if not finite.all() else []
        if finite.any():
            least, most = (np.where(finite, values, fill) for fill in (np.inf, -np.inf))
            kept.append(part[[np.argmin(least), np.argmax(most)]])
    return _taken(line, np.unique(np.concatenate(kept)))


def _taken(line: Line, at: np.ndarray) -> Line:
    return line._replace(x=line.x[at], y=line.y[at])


def _rounded_grid(values: Sequence[float]) -> list[float]:
    return [v if isinstance(v, int) else float(f"{v:.{_DIGITS}g}") for v in values]


def _rounded(values: np.ndarray) -> list[float | None]:
    return [float(f"{v:.{_DIGITS}g}") if math.isfinite(v) else None for v in values.tolist()]


def _scales(panel: Panel, left: float, right: float) -> tuple[Scale, Scale]:
    y = np.concatenate([line.y for line in panel.lines]).astype(float)
    y = y[np.isfinite(y) & ((y > 0) if panel.log else True)]
    low, high = (float(y.min()), float(y.max())) if len(y) else (0.0, 1.0)
    log = panel.log and low > 0
    if log:
        margin = (high / low) ** 0.04
        low, high = low / margin, high * margin
    else:
        margin = 0.04 * (high - low) or abs(high) * 0.1 or 1.0
        low, high = low - margin, high + margin
    if left == right:
        left, right = left - 1, right + 1
    return Scale(left, right, _LEFT, _WIDTH - _RIGHT), Scale(low, high, _HEIGHT - _BOTTOM, _TOP, log)


def _chart(panel: Panel, lines: Sequence[Line], x: Scale, y: Scale) -> str:
    classes = [colour(line.hue, panel.hues) for line in lines]
    paths = "".join(_path(line, *kind, x, y) for line, kind in zip(lines, classes, strict=True))
    entries = "".join(
        f'<li><button type="button" aria-pressed="true" disabled><i class="{line.style} {kind}"{style}></i>'
        f"{html.escape(_name(panel, line))} <b>{show(_last(line.y))}</b>"
        "</button></li>"
        for line, (kind, style) in zip(lines, classes, strict=True)
    )
    title = html.escape(panel.title)
    return (
        f'<figure class="chart"><figcaption><span>{title}</span><span class="at"></span></figcaption>'
        f'<div class="plot" role="img" aria-label="{html.escape(_said(panel))}">'
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" aria-hidden="true">{_axes(panel, x, y)}{paths}</svg></div>'
        f'<ul class="legend">{entries}</ul></figure>'
    )


def colour(hue: int | None, hues: int) -> tuple[str, str]:
    """Class and style attribute of what has a colour; None is that of text."""
    if hue is None:
        return "ink", ""
    if hues <= _HUES:
        return f"h{hue}", ""
    return "", f' style="--c:hsl({360 * hue / hues:.0f} 65% 50%)"'


def _path(line: Line, kind: str, style: str, x: Scale, y: Scale) -> str:
    places = list(zip(x(line.x).tolist(), y(line.y).tolist(), strict=True))
    drawn, on = [], False
    for a, b in places:
        if math.isfinite(b):
            drawn.append(f"{'L' if on else 'M'}{a:.1f} {b:.1f}")
        on = math.isfinite(b)
    path = f'<path class="line {line.style} {kind}"{style} d="{"".join(drawn)}"/>'
    if len(places) >= MARKED_ROWS:
        return path
    dots = "".join(
        f'<circle class="dot {kind}"{style} cx="{a:.1f}" cy="{b:.1f}" r="3"/>'
        for a, b in places
        if math.isfinite(b)
    )
    return path + dots


def _axes(panel: Panel, x: Scale, y: Scale) -> str:
    parts = []
    for value in ticks(y):
        at = float(y(np.array(value)))
        parts.append(
            f'<path class="grid" d="M{_LEFT} {at:.1f}H{_WIDTH - _RIGHT}"/>'
            f'<text x="{_LEFT - 6}" y="{at + 3.5:.1f}" text-anchor="end">{show(value)}</text>'
        )
    for value in ticks(x):
        if panel.x_title == "step" and not value.is_integer():
            continue
        at = float(x(np.array(value)))
        parts.append(
            f'<path class="grid" d="M{at:.1f} {_HEIGHT - _BOTTOM}v4"/>'
            f'<text x="{at:.1f}" y="{_HEIGHT - _BOTTOM + 16}" text-anchor="middle">{show(value)}</text>'
        )
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    parts.append(
        f'<text x="{middle:.0f}" y="{_HEIGHT - 4}" text-anchor="middle">{html.escape(panel.x_title)}</text>'
    )
    return "".join(parts)


def ticks(scale: Scale, most: int = 6) -> list[float]:
    """Round values on an axis, of which there are at most so many."""
    if scale.log:
        decades = range(math.floor(math.log10(scale.low)), math.ceil(math.log10(scale.high)) + 1)
        for factors in ((1, 2, 5), (1, 3), (1,)):
            found = [f * 10.0**d for d in decades for f in factors if scale.low <= f * 10.0**d <= scale.high]
            if len(found) <= most:
                break
        found = found[:: -(-len(found) // most)] if len(found) > most else found
        # within less than a decade round values may be missing: an even division has them
        return found if len(found) > 2 else ticks(scale._replace(log=False), most)
    rough = (scale.high - scale.low) / (most - 1)
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(unit * factor for factor in (1, 2, 5, 10) if unit * factor >= rough * 0.999)
    first, last = math.ceil(scale.low / step - 1e-9), math.floor(scale.high / step + 1e-9)
    return [float(f"{i * step:.12g}") for i in range(first, last + 1)]


def show(value: float | None) -> str:
    """A number of a chart, short."""
    if value is None or not math.isfinite(value):
        return "\u2013"
    if abs(value) >= 1e12:
        return f"{value:.4g}"
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            return f"{value / (1e3 if letter == 'k' else size):.4g}{letter}"
    return f"{value:.4g}"


def _name(panel: Panel, line: Line) -> str:
    return line.name if panel.each is None else f"{_LETTERS.get(panel.each, panel.each)}{line.name}"


def _last(values: np.ndarray) -> float | None:
    return float(values[-1]) if len(values) else None


def _said(panel: Panel) -> str:
    """What a panel shows, for who does not see it."""
    ends = _some(
        f"{_name(panel, line)} from {show(float(line.y[0]))} to {show(_last(line.y))}"
        for line in panel.lines
        if line.style != "faint"
    )
    return f"{panel.title}, against {panel.x_title}: {ends}"


def _some(parts: Iterable[str], most: int = 6) -> str:
    found = list(parts)
    more = f"; and {len(found) - most} more" if len(found) > most else ""
    return "; ".join(found[:most]) + more
