"""Names at the ends of lines, or in their colours."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

_SIZE = 7
_LINE = 1.15 * _SIZE / 72
"""Inches from one line of text to the next."""


def legend(axes: Any, colours: Mapping[str, Any]) -> None:
    """What each colour is, in words of that colour."""
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], color=colour, linewidth=2.5) for colour in colours.values()]
    axes.legend(handles, colours, fontsize=8, frameon=False, labelcolor="linecolor")


def label_ends(axes: Any, ends: Sequence[tuple[float, str, Any]]) -> None:
    """Write (height, name, colour) at the right of a panel, in the order of their heights, none over another; the
    limits of its axes must be as they stay."""
    if not ends:
        return
    inches = axes.get_position().height * axes.figure.get_size_inches()[1]
    axes.get_ylim()  # the limits are found when they are asked for
    # in shares of the panel's height, so that its scale may be logarithmic
    scale = axes.transData + axes.transAxes.inverted()
    at = sorted((float(scale.transform((0.0, end[0]))[1]), *end[1:]) for end in ends)
    for height, (_, name, colour) in zip(apart([end[0] for end in at], _LINE / inches), at, strict=True):
        axes.annotate(
            name,
            (1.02, height),
            xycoords="axes fraction",
            va="center",
            fontsize=_SIZE,
            color=colour,
        )


def apart(heights: Sequence[float], gap: float) -> list[float]:
    """Ascending heights moved as little as need be for each to stand at least ``gap`` above the one before.

    What must move together moves by its mean: the least squares under that condition.
    """
    blocks: list[list[float]] = []
    for i, height in enumerate(heights):
        # where it would stand if it were the first, all gaps taken out
        blocks.append([height - i * gap])
        while len(blocks) > 1 and np.mean(blocks[-2]) > np.mean(blocks[-1]):
            blocks[-2:] = [blocks[-2] + blocks[-1]]
    flat = [float(np.mean(block)) for block in blocks for _ in block]
    return [height + i * gap for i, height in enumerate(flat)]
