"""What the figures of all questions share."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK, FAINT = "#333333", "#b5b5b5"
COLOURS = ("#1b6ca8", "#d1495b", "#2a9d5c", "#8d5aa8", "#e08e1b", "#5b6770")
"""Of arms, in their order; told apart by the colour-blind too, and labelled besides."""


def tidy(axes: "Axes") -> None:
    """No frame but two thin axes, and small numbers."""
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(FAINT)
    axes.tick_params(labelsize=8, color=FAINT)
