"""Figures of a run, drawn with matplotlib's objects alone: no window, no global state."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pyvae.engine.files import make_directory, write_atomically
from pyvae.report.panels import MARKED_ROWS, Panel, Trace, panels_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_LEGEND_ROWS = 12
DPI = 120


def save(figure: Figure, path: Path) -> Path:
    """Write a figure as PNG, without the channels that it does not use: those of a grey one are twice the bytes."""
    from PIL import Image

    drawn, content = io.BytesIO(), io.BytesIO()
    figure.savefig(drawn, format="png", dpi=DPI, bbox_inches="tight")
    with Image.open(drawn) as opened:
        image = opened.convert("RGB")
    red, green, blue = image.split()
    if red.tobytes() == green.tobytes() == blue.tobytes():
        image = red
    image.save(content, "PNG", dpi=(DPI, DPI))
    return write(path, content.getvalue())


def write(path: Path, content: bytes) -> Path:
    """Write a file, and make its directory where there is none.

    Raises:
        RunError: the directory cannot be made, or the file cannot be written.
    """
    make_directory(path.parent)
    write_atomically(path, content)
    return path


def draw_trace(trace: Trace) -> Figure:
    """The panels of :func:`pyvae.report.panels.panels_of`."""
    from matplotlib.figure import Figure

    panels = panels_of(trace)
    columns = min(len(panels), 3)
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(4.4 * columns, 2.9 * rows), layout="constrained")
    for number, panel in enumerate(panels):
        axes = figure.add_subplot(rows, columns, number + 1)
        _draw_panel(axes, panel)
        axes.set_xlabel(panel.x_title, fontsize=8)
        axes.set_title(panel.title, fontsize=10, loc="left")
        axes.tick_params(which="both", labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
    return figure


def _draw_panel(axes: Any, panel: Panel) -> None:
    from matplotlib import colormaps
    from matplotlib.ticker import LogFormatter

    many = len(panel.lines) > 10
    colours = colormaps["turbo" if many else "tab10"]
    widths: dict[str, dict[str, Any]] = {
        "faint": {"lw": 0.6, "alpha": 0.3},
        "mean": {"lw": 1.4},
        "dashed": {"lw": 1, "ls": "--"},
    }
    for line in panel.lines:
        marker = "." if len(line.x) < MARKED_ROWS and line.style == "plain" else None
        share = line.hue / (len(panel.lines) - 1) if many and line.hue is not None else line.hue
        colour = "black" if share is None else colours(share)
        axes.plot(
            line.x,
            line.y,
            marker=marker,
            color=colour,
            label=None if line.style == "faint" else line.name,
            **widths.get(line.style, {"lw": 1.1 if panel.each else 1.2}),
        )
    if panel.log:
        axes.set_yscale("log")
        for which in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
            which(LogFormatter())
    if panel.each is None and sum(line.style != "faint" for line in panel.lines) > 1:
        axes.legend(fontsize=8, frameon=False)
    elif panel.each is not None and len(panel.lines) <= 2 * _LEGEND_ROWS:
        axes.legend(
            title=panel.each,
            ncols=-(-len(panel.lines) // _LEGEND_ROWS),
            fontsize=7,
            title_fontsize=7,
            frameon=False,
            loc="upper left",
            bbox_to_anchor=(1, 1),
        )


def draw_reconstructions(images: Tensor, means: Tensor) -> Figure:
    """Inputs above their reconstructions, ``[n, C, H, W]`` in [0, 1] each, in rows of ten."""
    from matplotlib.figure import Figure

    per_row = 10
    blocks = [
        torch.cat([_row(images[i : i + per_row], per_row), _row(means[i : i + per_row], per_row)], 1)
        for i in range(0, len(images), per_row)
    ]
    picture = torch.cat(blocks, 1)
    figure = Figure(figsize=(per_row, picture.shape[1] / picture.shape[2] * per_row), layout="constrained")
    show(figure.add_subplot(), picture)
    return figure


def _row(images: Tensor, columns: int) -> Tensor:
    missing = columns - len(images)
    padded = torch.cat([images, images.new_ones(missing, *images.shape[1:])]) if missing else images
    return tile(padded.unsqueeze(0))


def tile(images: Tensor, gap: int = 2) -> Tensor:
    """A grid ``[rows, columns, C, H, W]`` as one image ``[C, rows (H + gap), columns (W + gap)]``, gaps grey."""
    padded = torch.nn.functional.pad(images, (0, gap, 0, gap), value=0.5)
    rows, columns, channels, height, width = padded.shape
    return padded.permute(2, 0, 3, 1, 4).reshape(channels, rows * height, columns * width)


def show(axes: Any, image: Tensor) -> None:
    """An image ``[C, H, W]`` in [0, 1] without ticks; grey for one channel."""
    pixels = image.permute(1, 2, 0).numpy()
    axes.imshow(pixels[..., 0] if pixels.shape[-1] == 1 else pixels, cmap="gray", vmin=0, vmax=1)
    axes.set_axis_off()
