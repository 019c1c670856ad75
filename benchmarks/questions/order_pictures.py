"""Pictures of docs/findings/order.md."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from pyvae.report.figures import show, tile
from pyvae.report.palette import palette_of, plain_axes
from pyvae.report.traversal import ACTIVE_NATS
from questions.labels import label_ends
from questions.order_tables import CARRIED, curves, followed, tells
from questions.question import Result
from questions.tables import first_of_arms
from questions.thumbnails import SIDE, unpack

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_WIDTH = 7.6
_ASLEEP = (0.75, 0.75, 0.75)


def pictures(found: Sequence[Result]) -> dict[str, Figure]:
    """KL of latents, nats spent on factors and reconstruction against C; traversals of each method's first seed."""
    drawn = {
        "order-kl.png": _kl(found),
        "order-spent.png": _spent(found),
        "order-recon.png": _recon(found),
    }
    for result in first_of_arms(found):
        drawn[f"order-traversals-{result['arm']}.png"] = _traversals(result)
    return drawn


def _panels(count: int, height: float) -> tuple[Figure, list[Any]]:
    """At most three in a row."""
    from matplotlib.figure import Figure

    rows, columns = -(-count // 3), min(count, 3)
    figure = Figure(figsize=(_WIDTH, height * rows + 0.3), layout="constrained")
    panels = list(figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).flat)
    for axes in panels[count:]:
        axes.set_visible(False)
    for axes in panels[:count]:
        plain_axes(axes)
        axes.set_xlabel("C, nats", fontsize=8)
        axes.tick_params(labelbottom=True)
    return figure, panels[:count]


def _kl(found: Sequence[Result]) -> Figure:
    """A panel for each run; a line for each latent, in the colour of the factor that it follows."""
    colours = palette_of(found[0]["factors"])
    figure, panels = _panels(len(found), 2.5)
    ends: list[list[tuple[float, str, Any]]] = [[] for _ in found]
    for axes, result, names_at in zip(panels, found, ends, strict=True):
        trace, end, same = result["trace"], result["snapshots"][-1], []
        for j, (last, says) in enumerate(zip(end["kl"], tells(end), strict=True)):
            nats, awake, colour = trace[f"kl_{j}"], last >= ACTIVE_NATS, _ASLEEP
            if awake and says:
                names = followed(result, j)
                colour = colours[names[0]]
                names_at.append((nats[-1], " + ".join(names), colour))
            elif awake:
                same.append(nats[-1])
            axes.plot(trace["capacity"], nats, color=colour, lw=1.1 if awake else 0.6)
        if same:
            names_at.append((sum(same) / len(same), f"{len(same)} constant", "0.5"))
        axes.set_title(f"{result['arm']}, seed {result['seed']}", fontsize=9, loc="left")
    # the panels share their limits, which are known once all are drawn
    for axes, names_at in zip(panels, ends, strict=True):
        label_ends(axes, names_at)
    for axes in panels[::3]:
        axes.set_ylabel("KL of each latent, nats", fontsize=8)
    return figure


def _spent(found: Sequence[Result]) -> Figure:
    """A panel for each method, a line for each factor and seed."""
    arms = list(dict.fromkeys(result["arm"] for result in found))
    first = {result["arm"]: result for result in reversed(found)}
    colours = palette_of(found[0]["factors"])
    figure, panels = _panels(len(arms), 2.5)
    for result in found:
        axes = panels[arms.index(result["arm"])]
        x = [0.0, *(each["capacity"] for each in result["snapshots"])]
        for factor, nats in curves(result).items():
            width = 1.4 if result is first[result["arm"]] else 0.6
            axes.plot(x, [0.0, *nats], color=colours[factor], lw=width)
    for axes, arm in zip(panels, arms, strict=True):
        axes.axhline(CARRIED, color="0.2", lw=0.9, ls=":")
        axes.set_title(arm, fontsize=9, loc="left")
        label_ends(axes, [(nats[-1], name, colours[name]) for name, nats in curves(first[arm]).items()])
    for axes in panels[::3]:
        axes.set_ylabel("nats spent on each factor", fontsize=8)
    return figure


def _recon(found: Sequence[Result]) -> Figure:
    """A line for each run, on a logarithmic scale."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator

    colours = palette_of(result["arm"] for result in found)
    figure = Figure(figsize=(_WIDTH * 0.75, 2.8), layout="constrained")
    axes = figure.add_subplot()
    plain_axes(axes)
    for result in found:
        axes.plot(result["trace"]["capacity"], result["trace"]["recon"], color=colours[result["arm"]], lw=1.0)
    axes.set_yscale("log")
    axes.yaxis.set_minor_locator(LogLocator(subs=(2, 5)))
    for which in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
        which("{x:g}")
    axes.set_xlabel("C, nats", fontsize=8)
    axes.set_ylabel("reconstruction, nats per image", fontsize=8)
    arms = first_of_arms(found)
    label_ends(axes, [(each["trace"]["recon"][-1], each["arm"], colours[each["arm"]]) for each in arms])
    return figure


def _traversals(result: Result) -> Figure:
    """A block for each C; a row for each latent that says anything there, the one of the highest KL first."""
    from matplotlib.figure import Figure

    blocks = result["traversals"]
    most = max(len(block["latents"]) for block in blocks)
    figure = Figure(figsize=(_WIDTH * len(blocks) / 4, 0.3 * most + 0.5), layout="constrained")
    snapshots = [each["step"] for each in result["snapshots"]]
    for axes, block in zip(figure.subplots(1, len(blocks), squeeze=False).flat, blocks, strict=True):
        images = unpack(block["images"])
        rows, columns = images.shape[:2]
        empty = images.new_ones(most - rows, columns, 1, SIDE, SIDE)
        sheet = tile(torch.cat([images, empty]))
        sheet[:, rows * (SIDE + 2) :] = 1.0
        show(axes, sheet)
        axes.set_axis_on()
        axes.spines[:].set_visible(False)
        axes.set_xticks([])
        at = snapshots.index(block["step"])
        kl, says = result["snapshots"][at]["kl"], tells(result["snapshots"][at])
        labels = [
            f"{'+'.join(_short(followed(result, j, at))) if says[j] else 'constant'} {kl[j]:.1f}"
            for j in block["latents"]
        ]
        axes.set_yticks([(SIDE + 2) * (row + 0.5) for row in range(rows)], labels, fontsize=6)
        axes.tick_params(length=0, pad=1)
        axes.set_title(f"C = {block['capacity']:.1f} (for {block['published']:g})", fontsize=8, loc="left")
    return figure


def _short(names: Sequence[str]) -> list[str]:
    return [{"orientation": "turn", "posX": "x", "posY": "y"}.get(name, name) for name in names]
