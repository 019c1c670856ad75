"""Colours of a study's figures: a method has the same in all of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Colour = tuple[float, float, float]
Palette = Mapping[str, Colour]

# even in lightness, and told apart by most who do not see red or green
_FEW = (
    "#4477aa",
    "#ee6677",
    "#228833",
    "#ccaa33",
    "#66aacc",
    "#aa3377",
    "#ee8844",
    "#667788",
    "#997755",
    "#333333",
)
SHARES = {"method": "#35415c", "setting": "#90a4cc", "seed": "#dedede"}
"""None of them a method's."""
_MOST_IN_LEGEND = 24


def palette_of(methods: Iterable[str]) -> dict[str, Colour]:
    """A colour for each method, in their order."""
    from matplotlib import colormaps
    from matplotlib.colors import to_rgb

    names = list(dict.fromkeys(methods))
    if len(names) <= len(_FEW):
        return {name: to_rgb(colour) for name, colour in zip(names, _FEW, strict=False)}
    colours = colormaps["turbo"]
    return {name: colours(0.05 + 0.9 * i / (len(names) - 1))[:3] for i, name in enumerate(names)}


def shades(colour: Colour, count: int) -> list[Colour]:
    """From dark to light, all to be seen on white."""
    if count == 1:
        return [colour]
    found = []
    for i in range(count):
        # towards black by half at one end, towards white by half at the other
        way = i / (count - 1) - 0.5
        end = 0.0 if way < 0 else 1.0
        found.append(tuple(c + (end - c) * abs(way) * 1.1 for c in colour))
    return found  # type: ignore[return-value]


def plain_axes(axes: Any, *, grid: str = "both") -> None:
    """Without a frame, small ticks, a faint grid."""
    axes.tick_params(which="both", labelsize=8, length=2)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25, axis=grid)
    axes.set_axisbelow(True)


def legend(figure: Figure, colours: Palette, methods: Sequence[str]) -> None:
    """Names of the methods to the right of a figure; none where there are too many to tell apart."""
    from matplotlib.lines import Line2D

    if not 1 < len(methods) <= _MOST_IN_LEGEND:
        return
    handles = [Line2D([], [], color=colours[m], marker="o", ls="", ms=5, label=cut(m)) for m in methods]
    figure.legend(handles=handles, loc="outside right upper", fontsize=8, frameon=False)


def cut(text: str, longest: int = 28) -> str:
    """A label that leaves room for the figure, none of its characters taken for mathematics."""
    return (text if len(text) <= longest else f"{text[: longest - 1]}\u2026").replace("$", r"\$")
