"""A run in a notebook's cell: its numbers, and the pictures that there are."""

import html
import io
from collections.abc import Iterable, Iterator
from pathlib import Path

from PIL import Image

from pyvae.engine import checkpoint
from pyvae.engine.run import RunDirectory
from pyvae.errors import RunError
from pyvae.evaluation.metrics_file import kept_metrics
from pyvae.report.figures import DPI, draw_trace
from pyvae.report.markup import picture, row
from pyvae.report.panels import Trace, caption

_PICTURES = ("reconstructions", "samples", "traversal-*", "codes-*", "snapshot-*")
_MOST = 4
_WIDEST = 900
"""Pixels: notebooks keep every picture that they show, and a report has them in full."""


def summary(run: RunDirectory) -> str:
    """HTML that needs no other file: steps, the newest row of the trace, scores, curves of training, and pictures that
    a report has drawn.

    Raises:
        RunError: a file of the run cannot be read.
    """
    newest = checkpoint.newest_description(run.checkpoints)
    steps = 0 if newest is None else newest["step"]
    name = run.recipe.to_json()["objective"]["name"]
    parts = [f"<p><b>{html.escape(f'{name}: {run.path}')}</b><br>{_standing(run, steps)}</p>"]
    trace = _trace_of(run)
    numbers = [] if trace is None else list(_terms(trace))
    if newest is not None:
        numbers += _scores(run, steps, newest["data"])
    if numbers:
        parts.append(f"<table>{''.join(row(each, numbers=(1,)) for each in numbers)}</table>")
    if trace is not None:
        parts.append(_curves(trace))
    drawn = [path for name in _PICTURES for path in sorted(run.figures.glob(f"{name}.png"))]
    parts += [picture("jpeg", _small(path), path.stem, alt=path.stem) for path in drawn[:_MOST]]
    if not drawn and steps:
        parts.append("<p><code>run.report()</code> draws reconstructions and what each latent does.</p>")
    return "\n".join(parts)


def _standing(run: RunDirectory, steps: int) -> str:
    recipe = run.recipe
    return html.escape(
        f"{steps:,} of {recipe.steps:,} steps on {recipe.data}, {recipe.latents} latents, seed {recipe.seed}"
    )


def _trace_of(run: RunDirectory) -> Trace | None:
    try:
        return run.trace()
    except RunError:
        return None  # none is written yet, or it is lost


def _terms(trace: Trace) -> Iterator[tuple[str, str]]:
    for name, values in trace.items():
        if not name.startswith(("kl_", "information_")) and not name.endswith("grad_norm"):
            yield ("of step", f"{values[-1]:,.0f}") if name == "step" else (name, f"{values[-1]:,.3f}")


def _scores(run: RunDirectory, steps: int, data: str) -> Iterable[tuple[str, str]]:
    kept = kept_metrics(run, steps, data)
    for name, parts in kept.get("scores", {}).items():
        if isinstance(score := parts.get("score"), float):
            yield name, f"{score:.3f}"
    if "marginal_likelihood" in kept:
        yield "log p(x)", f"{kept['marginal_likelihood']['log_p']:.2f}"


def _small(path: Path) -> bytes:
    content = io.BytesIO()
    with Image.open(path) as image:
        small = image.convert("RGB")
    small.thumbnail((_WIDEST, _WIDEST))
    small.save(content, format="jpeg", quality=90)
    return content.getvalue()


def _curves(trace: Trace) -> str:
    content = io.BytesIO()
    draw_trace(trace).savefig(content, format="png", dpi=DPI * 0.6, bbox_inches="tight")
    return picture("png", content.getvalue(), caption(trace), alt="curves of the training")
