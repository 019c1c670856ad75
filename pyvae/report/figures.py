"""Figures of a run, drawn with matplotlib's objects alone: no window, no global state."""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from pyvae.engine.files import make_directory, write_atomically
from pyvae.objectives import OBJECTIVES, TERMS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Trace = dict[str, np.ndarray]
_SMOOTHED_ROWS = 60
_MARKED_ROWS = 5  # fewer are drawn as points too: one alone would not be seen
_LEGEND_ROWS = 12
_TITLES = {name: f"{name}, nats" for kind in OBJECTIVES.values() for name in kind.extra_terms} | {
    "ess": "effective sample size",
    "discriminator_loss": "discriminator loss, nats",
}
"""Of what a trace has beside the terms of all objectives, where it is a published one's; of others nobody knows the
unit."""
DPI = 120


def save(figure: Figure, path: Path) -> Path:
    """Write a figure as PNG."""
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=DPI, bbox_inches="tight")
    return write(path, content.getvalue())


def write(path: Path, content: bytes) -> Path:
    """Write a file, and make its directory where there is none.

    Raises:
        RunError: the directory cannot be made, or the file cannot be written.
    """
    make_directory(path.parent)
    write_atomically(path, content)
    return path


def smooth(values: np.ndarray) -> np.ndarray:
    """Running mean over a twenty-fifth of the rows, the window cut at both ends."""
    width = max(len(values) // 50, 1)
    sums = np.concatenate([[0.0], np.cumsum(values)])
    first = np.clip(np.arange(len(values)) - width, 0, None)
    last = np.clip(np.arange(len(values)) + width + 1, None, len(values))
    return (sums[last] - sums[first]) / (last - first)


def draw_trace(trace: Trace) -> Figure:
    """Reconstruction, KL, KL of each latent, beta and C where they say something, and the objective's own terms."""
    from matplotlib.figure import Figure

    panels = _panels(trace)
    columns = min(len(panels), 3)
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(4.4 * columns, 2.9 * rows), layout="constrained")
    for number, (title, draw) in enumerate(panels):
        axes = figure.add_subplot(rows, columns, number + 1)
        axes.set_xlabel("step", fontsize=8)
        draw(axes)
        axes.set_title(title, fontsize=10, loc="left")
        axes.tick_params(which="both", labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
    return figure


def trace_caption(trace: Trace) -> str:
    """What the lines of :func:`draw_trace` are."""
    if _is_short(trace):
        return "Minibatch values against the step."
    return (
        "Minibatch values (faint) and their running mean against the step; of the KL of each latent or the bound of "
        "each code, the running mean alone."
    )


def _panels(trace: Trace) -> list[tuple[str, Callable[[Any], None]]]:
    if not {"recon", "kl", "beta", "capacity"} <= trace.keys():
        return _adversarial_panels(trace)
    panels: list[tuple[str, Callable[[Any], None]]] = [
        ("reconstruction, nats per image", lambda axes: _line(axes, trace, "recon", log=True)),
        ("KL, nats per image", lambda axes: _kl(axes, trace)),
        ("KL of each latent, nats", lambda axes: _latents(axes, trace)),
    ]
    if np.ptp(trace["beta"]) > 0:
        panels.append(("weight of the KL in the gradient", lambda axes: _line(axes, trace, "beta")))
    if np.ptp(trace["capacity"]) > 0:
        panels.append(("capacity C, nats", lambda axes: _plain(axes, trace, "capacity")))
        panels.append(("KL of each latent against C, nats", lambda axes: _latents_by_capacity(axes, trace)))
    if "elbo" in trace:
        panels.append(("bound and ELBO, nats per image", lambda axes: _bounds(axes, trace)))
    own = [
        name
        for name in trace
        if name not in ("step", "elbo", *TERMS)
        and not name.endswith("grad_norm")
        and not name.startswith("kl_")
    ]
    panels += [
        (_TITLES.get(name, name.replace("_", " ")), partial(_line, trace=trace, name=name)) for name in own
    ]
    return panels


def _adversarial_panels(trace: Trace) -> list[tuple[str, Callable[[Any], None]]]:
    titles = {
        "loss": "loss of the generator",
        "discriminator_loss": "loss of the critic",
        "information": "information bound, nats",
        "gradient_penalty": "gradient penalty",
    }
    panels: list[tuple[str, Callable[[Any], None]]] = [
        (title, partial(_line, trace=trace, name=name)) for name, title in titles.items() if name in trace
    ]
    panels.append(
        ("bound of each code, nats", lambda axes: _latents(axes, trace, prefix="information_", title="code"))
    )
    return panels


def _line(axes: Any, trace: Trace, name: str, *, log: bool = False, **style: Any) -> None:
    from matplotlib.ticker import LogFormatter

    values = trace[name]
    if _is_short(trace):
        _plain(axes, trace, name, **style)
    else:
        faint = axes.plot(trace["step"], values, lw=0.6, alpha=0.3, **{**style, "label": None})
        axes.plot(trace["step"], smooth(values), lw=1.4, **{"color": faint[0].get_color(), **style})
    if log and values.min() > 0 and values.max() > 4 * values.min():
        axes.set_yscale("log")
        for which in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
            which(LogFormatter())


def _plain(axes: Any, trace: Trace, name: str, against: str = "step", **style: Any) -> None:
    marker = ".-" if len(trace["step"]) < _MARKED_ROWS else "-"
    axes.plot(trace[against], trace[name], marker, **{"lw": 1.2, **style})


def _is_short(trace: Trace) -> bool:
    return len(trace["step"]) < _SMOOTHED_ROWS


def _kl(axes: Any, trace: Trace) -> None:
    _line(axes, trace, "kl", label="KL")
    if np.ptp(trace["capacity"]) > 0:
        axes.plot(trace["step"], trace["capacity"], "k--", lw=1, label="C")
        axes.legend(fontsize=8, frameon=False)


def _bounds(axes: Any, trace: Trace) -> None:
    _line(axes, {**trace, "bound": -trace["loss"]}, "bound", label="bound")
    _line(axes, trace, "elbo", label="ELBO")
    axes.legend(fontsize=8, frameon=False)


def _latents_by_capacity(axes: Any, trace: Trace) -> None:
    _latents(axes, trace, "capacity")
    axes.set_xlabel("C, nats", fontsize=8)


def _latents(
    axes: Any, trace: Trace, against: str = "step", prefix: str = "kl_", title: str = "latent"
) -> None:
    from matplotlib import colormaps

    names = [name for name in trace if name.startswith(prefix)]
    colours = colormaps["tab10" if len(names) <= 10 else "turbo"]
    for j, name in enumerate(names):
        colour = colours(j if len(names) <= 10 else j / (len(names) - 1))
        shown = trace if _is_short(trace) else {**trace, name: smooth(trace[name])}
        _plain(axes, shown, name, against, lw=1.1, color=colour, label=name.removeprefix(prefix))
    if len(names) <= 2 * _LEGEND_ROWS:
        axes.legend(
            title=title,
            ncols=-(-len(names) // _LEGEND_ROWS),
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
