"""Which curves of a training stand in one panel: the same in a figure for papers and in a page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal, NamedTuple

import numpy as np

from pyvae.objectives import OBJECTIVES, TERMS

Trace = dict[str, np.ndarray]
Style = Literal["plain", "mean", "faint", "dashed"]
SMOOTHED_ROWS = 60
MARKED_ROWS = 5
"""Fewer are drawn as points too: one alone would not be seen."""
_TITLES = {name: f"{name}, nats" for kind in OBJECTIVES.values() for name in kind.extra_terms} | {
    "ess": "effective sample size",
    "discriminator_loss": "discriminator loss, nats",
}
"""Of what a trace has beside the terms of all objectives, where it is a published one's; of others nobody knows the
unit."""
OF_PAIRS = {
    "loss": "loss of the generator",
    "discriminator_loss": "loss of the critic",
    "information": "information bound, nats",
    "gradient_penalty": "gradient penalty",
}
"""Columns of the trace of a generator and its critic, and what they are called."""
OF_ALL = {
    "recon": "reconstruction, nats per image",
    "kl": "KL, nats per image",
    "beta": "weight of the KL in the gradient",
    "capacity": "capacity C, nats",
}
"""The same of all with an encoder and a decoder."""


class Line(NamedTuple):
    """A curve."""

    name: str
    x: np.ndarray
    y: np.ndarray
    style: Style = "plain"
    hue: int | None = 0
    """Which of the panel's colours; None: that of text."""


class Panel(NamedTuple):
    """Curves that share their axes."""

    title: str
    lines: list[Line]
    x_title: str = "step"
    log: bool = False
    """Whether the ordinate is logarithmic."""
    each: str | None = None
    """What each line is of, where there is one for each of many: a latent, a code."""
    hues: int = 2
    """Colours that its lines are drawn from."""


def panels_of(trace: Trace) -> list[Panel]:
    """Reconstruction, KL, KL of each latent, beta and C where they say something, and the objective's own terms."""
    if not OF_ALL.keys() <= trace.keys():
        return [
            *(_panel(trace, name, title) for name, title in OF_PAIRS.items() if name in trace),
            _each(trace, "information_", "bound of each code, nats", "code"),
        ]
    found = [
        _panel(trace, "recon", OF_ALL["recon"]),
        _panel(trace, "kl", OF_ALL["kl"]),
        _each(trace, "kl_", "KL of each latent, nats", "latent"),
    ]
    if varies(trace["beta"]):
        found.append(_panel(trace, "beta", OF_ALL["beta"]))
    if varies(trace["capacity"]):
        c = Line("C", trace["step"], trace["capacity"], "dashed", None)
        found[1] = Panel(found[1].title, [*_lines(trace, "kl", "KL"), c])
        found.append(Panel(OF_ALL["capacity"], [Line("C", trace["step"], trace["capacity"])]))
        if np.isfinite(trace["capacity"]).all():
            by_capacity = _each(trace, "kl_", "KL of each latent against C, nats", "latent", "capacity")
            found.append(by_capacity._replace(x_title="C, nats"))
    if "elbo" in trace:
        bound = {**trace, "bound": -trace["loss"]}
        lines = [*_lines(bound, "bound", "bound"), *_lines(trace, "elbo", "ELBO", hue=1)]
        found.append(Panel("bound and ELBO, nats per image", lines))
    return found + [_panel(trace, name, _title(name)) for name in _own(trace)]


def shared_panels(traces: Mapping[str, Trace | None]) -> list[Panel]:
    """What several trainings have in common, a line for each in each panel, by its name.

    Of what differs between minibatches the running means alone; what one of them alone has stands there too. One
    without a trace keeps its colour.
    """
    terms = {run: _terms(trace) for run, trace in traces.items() if trace is not None}
    found = []
    for title in dict.fromkeys(title for own in terms.values() for title in own):
        lines = []
        for hue, (run, trace) in enumerate(traces.items()):
            if trace is not None and (name := terms[run].get(title)) is not None:
                plain = len(trace["step"]) < SMOOTHED_ROWS or name == "capacity"
                lines.append(Line(run, trace["step"], trace[name] if plain else smooth(trace[name]), hue=hue))
        values = np.concatenate([line.y[np.isfinite(line.y)] for line in lines])
        if says_something(title, values):
            found.append(
                Panel(title, lines, log=title == OF_ALL["recon"] and _is_wide(values), hues=len(traces))
            )
    return found


def _terms(trace: Trace) -> dict[str, str]:
    """Columns of a trace by what they are called where several trainings are compared."""
    if not OF_ALL.keys() <= trace.keys():
        return {title: name for name, title in OF_PAIRS.items() if name in trace}
    elbo = {"ELBO, nats per image": "elbo"} if "elbo" in trace else {}
    return (
        {title: name for name, title in OF_ALL.items()} | elbo | {_title(name): name for name in _own(trace)}
    )


def caption(trace: Trace) -> str:
    """What the lines of :func:`panels_of` are."""
    if len(trace["step"]) < SMOOTHED_ROWS:
        return "Minibatch values against the step."
    return (
        "Minibatch values (faint) and their running mean against the step; of the KL of each latent or the bound of "
        "each code, the running mean alone."
    )


def smooth(values: np.ndarray) -> np.ndarray:
    """Running mean over a twenty-fifth of the rows, the window cut at both ends; what is not finite is left out, and
    NaN stands where nothing else is in the window."""
    width = max(len(values) // 50, 1)
    finite = np.isfinite(values)
    number = _window_sums(finite.astype(float), width)
    sums = _window_sums(np.where(finite, values, 0.0), width)
    return np.where(number > 0, sums / np.maximum(number, 1), np.nan)


def _window_sums(values: np.ndarray, width: int) -> np.ndarray:
    """Sums of ``values[i - width : i + width + 1]``, each of its own window alone: a difference of sums over all rows
    would keep nothing of what stands behind a huge one."""
    size = 2 * width + 1
    first = np.arange(len(values))
    padded = np.zeros(-(-(len(values) + 2 * width) // size) * size)
    padded[width : width + len(values)] = values
    blocks = padded.reshape(-1, size)
    # a window is the end of one block and the beginning of the next
    begins = blocks.cumsum(1).ravel()[first + size - 1]
    ends = blocks[:, ::-1].cumsum(1)[:, ::-1].ravel()[first]
    return np.where(first % size == 0, begins, ends + begins)


def says_something(title: str, values: np.ndarray) -> bool:
    """Whether a panel with this title is worth its place: a weight or a capacity that stays what it is belongs to the
    settings."""
    return title not in (OF_ALL["beta"], OF_ALL["capacity"]) or varies(values)


def varies(values: np.ndarray) -> bool:
    """Whether there are two finite values that differ."""
    finite = values[np.isfinite(values)]
    return len(finite) > 0 and bool(np.ptp(finite) > 0)


def _own(trace: Trace) -> Iterator[str]:
    """Terms of an objective's own."""
    for name in trace:
        if (
            name not in ("step", "elbo", *TERMS)
            and not name.endswith("grad_norm")
            and not name.startswith("kl_")
        ):
            yield name


def _title(name: str) -> str:
    return _TITLES.get(name, name.replace("_", " "))


def _panel(trace: Trace, name: str, title: str) -> Panel:
    values = trace[name]
    return Panel(title, _lines(trace, name), log=name == "recon" and _is_wide(values[np.isfinite(values)]))


def _is_wide(values: np.ndarray) -> bool:
    return len(values) > 0 and bool(values.min() > 0 and values.max() > 4 * values.min())


def _lines(trace: Trace, name: str, called: str = "", hue: int = 0) -> list[Line]:
    step, values = trace["step"], trace[name]
    if len(step) < SMOOTHED_ROWS:
        return [Line(called or "minibatch", step, values, "plain", hue)]
    return [
        Line(f"{called}, minibatch" if called else "minibatch", step, values, "faint", hue),
        Line(called or "running mean", step, smooth(values), "mean", hue),
    ]


def _each(trace: Trace, prefix: str, title: str, each: str, against: str = "step") -> Panel:
    short = len(trace["step"]) < SMOOTHED_ROWS
    names = [name for name in trace if name.startswith(prefix)]
    lines = [
        Line(
            name.removeprefix(prefix),
            trace[against],
            trace[name] if short else smooth(trace[name]),
            "plain",
            j,
        )
        for j, name in enumerate(names)
    ]
    return Panel(title, lines, each=each, hues=len(lines))
