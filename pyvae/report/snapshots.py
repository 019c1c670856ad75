"""Traversals of the weights that a run kept on the way."""

import logging
from collections.abc import Iterator
from pathlib import Path

import torch

from pyvae.data.dataset import Dataset
from pyvae.engine import checkpoint
from pyvae.engine.checkpoint import Checkpoint
from pyvae.engine.run import RunDirectory
from pyvae.errors import RunError
from pyvae.evaluation.averages import evaluate, posterior
from pyvae.report import generated, traversal
from pyvae.report.markup import figure
from pyvae.report.panels import Trace

_LOG = logging.getLogger(__name__)
_COLUMNS = 11


def figures(run: RunDirectory, dataset: Dataset, trace: Trace | None, *, span: float) -> str:
    """The pictures of :func:`draw`, for a page."""
    alt = "Decoded images in a row for each latent, of weights on the way"
    return "".join(figure(path, caption, alt=alt) for path, caption in draw(run, dataset, trace, span=span))


def codes_figures(run: RunDirectory) -> str:
    """The pictures of :func:`draw_codes`, for a page."""
    alt = f"{generated.CODES_ALT}, of weights on the way"
    return "".join(figure(path, caption, alt=alt) for path, caption in draw_codes(run))


def draw(run: RunDirectory, dataset: Dataset, trace: Trace | None, *, span: float) -> list[tuple[Path, str]]:
    """One picture, with its caption, for each snapshot that is whole: ``figures/snapshot-<step>.png``."""
    seed = traversal.default_seeds(dataset)[-1]
    drawn = []
    for saved in _kept(run):
        net = run.net_of(saved)
        kl = evaluate(net, dataset, run.recipe.likelihood).kl
        mu, _ = posterior(net, dataset, torch.tensor([seed]))
        rows = traversal.compute(net, dataset.images(seed), mu, kl, span, _COLUMNS)
        picture = traversal.write_png(
            rows, kl, run.figures / f"snapshot-{saved.step}.png", traversal.names_of(net, dataset)
        )
        at = _capacity(trace, saved.step)
        drawn.append(
            (
                picture,
                f"After step {saved.step:,}{at}: from image {seed:,}, each row from {-span:g} to {span:g}.",
            )
        )
    return drawn


def draw_codes(run: RunDirectory) -> list[tuple[Path, str]]:
    """The same of a generator: what each of its codes drew."""
    return [
        (generated.draw_codes_on_the_way(run, run.pair_of(saved), saved.step), f"After step {saved.step:,}.")
        for saved in _kept(run)
    ]


def _capacity(trace: Trace | None, step: int) -> str:
    if trace is None or not trace["capacity"].any():
        return ""
    before = trace["capacity"][trace["step"] < step]
    return f", C = {before[-1]:.1f} nats" if len(before) else ""


def _kept(run: RunDirectory) -> Iterator[Checkpoint]:
    """Of its snapshots those that are whole."""
    for path in checkpoint.paths(run.snapshots):
        saved = _read(path)
        if saved is not None:
            yield saved


def _read(path: Path) -> Checkpoint | None:
    try:
        return checkpoint.load(path)
    except RunError as error:
        _LOG.warning("%s: its picture is left out", error)
        return None
