"""What the latents of the best and the worst models draw."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from pyvae.data.dataset import Dataset
from pyvae.errors import PyvaeError, RunError, reason
from pyvae.report.cohort import Cohort, describe, lower_is_better, open_run, setting_of, title_of
from pyvae.report.figures import save, show, tile
from pyvae.report.palette import cut
from pyvae.report.traversal import ACTIVE_NATS, Traversal, compute, default_seeds
from pyvae.studies.codes import read_codes, write_codes

MOST_METHODS = 8
"""That are shown one by one; of more, the best, the middle and the worst of all models are."""
_COLUMNS = 9
_ROWS = 8
SPAN = 2.0


class Shown(NamedTuple):
    """A model to be drawn."""

    what: str
    model: int
    """In the cohort."""


class Drawn(NamedTuple):
    """A picture with its caption, or the line that says why there is none."""

    path: Path | None
    text: str


def choose(cohort: Cohort, score: str) -> list[tuple[str, list[Shown]]]:
    """Which models stand side by side, under which heading: of each method the best and the worst by a score."""
    methods = cohort.rows
    if len(methods) > MOST_METHODS:
        found = _ranked(cohort, score, np.arange(len(cohort.models)))
        return [("all methods", _ends(found, middle=True))] if found else []
    chosen = [(method, _ends(_ranked(cohort, score, at), middle=False)) for method, at in methods.items()]
    return [(method, shown) for method, shown in chosen if shown]


def _ranked(cohort: Cohort, score: str, at: Any) -> list[int]:
    """Models, the best first; of equal ones the first of the plan."""
    column = cohort.columns[score]
    sign = 1 if lower_is_better(score) else -1
    return sorted((i for i in at.tolist() if math.isfinite(column[i])), key=lambda i: sign * column[i])


def _ends(ranked: Sequence[int], *, middle: bool) -> list[Shown]:
    if len(ranked) < 2:
        return [Shown("the only one", i) for i in ranked]
    best, worst = Shown("best", ranked[0]), Shown("worst", ranked[-1])
    between = [Shown("median", ranked[len(ranked) // 2])] if middle and len(ranked) > 2 else []
    return [best, *between, worst]


def draw(
    cohort: Cohort, score: str, out: Path, stem: str, dataset: Callable[[], Dataset]
) -> Iterator[tuple[str, Drawn]]:
    """A picture ``out/figures/<stem>-<n>.png`` under each heading, one network in memory at a time."""
    for number, (heading, chosen) in enumerate(choose(cohort, score), start=1):
        try:
            panels = [
                (_title(cohort, score, shown), *_traverse(cohort, shown, out, dataset)) for shown in chosen
            ]
        except PyvaeError as error:
            yield heading, Drawn(None, reason(error))
            continue
        path = save(_picture(panels), out / f"figures/{stem}-{number}.png")
        names = ", ".join(f"{shown.what} {cohort.models[shown.model].name}" for shown in chosen)
        yield heading, Drawn(path, f"{heading}: {names}.")


def _title(cohort: Cohort, score: str, shown: Shown) -> str:
    model = cohort.models[shown.model]
    value = f"{shown.what}: {title_of(score)} {cohort.columns[score][shown.model]:.3f}"
    setting = describe(setting_of(model)) if model.settings else ""
    return f"{value}\n{cut(', '.join(filter(None, (setting, f'seed {model.recipe.seed}'))), 46)}"


def _traverse(
    cohort: Cohort, shown: Shown, out: Path, opened: Callable[[], Dataset]
) -> tuple[Traversal, list[float]]:
    run = open_run(out, cohort.models[shown.model])
    if run.adversarial:
        raise RunError("they have generators, whose codes `pyvae traverse` draws")
    dataset = opened()
    net = run.net_of(run.newest_for(dataset))
    kept = read_codes(run) or write_codes(run, dataset)
    kl = kept.table.mean_kl().tolist()
    images = run.shown(dataset)
    seed = default_seeds(images)[-1]
    with torch.inference_mode():
        mu, _ = net.encoder(images.images(torch.tensor([seed])))
    found = compute(net, images.images(seed), mu, kl, SPAN, _COLUMNS)
    return found._replace(order=found.order[:_ROWS], decoded=found.decoded[:_ROWS]), kl


def _picture(panels: Sequence[tuple[str, Traversal, list[float]]]) -> Any:
    from matplotlib.figure import Figure

    rows = max(len(found.order) for _, found, _ in panels)
    figure = Figure(figsize=(4.9 * len(panels), 0.46 * rows + 0.7), layout="constrained")
    for axes, (title, found, kl) in zip(
        figure.subplots(1, len(panels), squeeze=False).flat, panels, strict=True
    ):
        show(axes, tile(found.decoded))
        axes.set_anchor("NW")
        axes.set_title(title.replace("$", r"\$"), fontsize=9, loc="left")
        axes.set_axis_on()
        axes.spines[:].set_visible(False)
        height, width = (found.decoded.shape[d] + 2 for d in (-2, -1))
        ends = (0, _COLUMNS // 2, _COLUMNS - 1)
        axes.set_xticks([width * (c + 0.5) for c in ends], [f"{found.values[c]:g}" for c in ends], fontsize=7)
        labels = [f"z{j}  {kl[j]:.2f}" for j in found.order]
        axes.set_yticks([height * (r + 0.5) for r in range(len(labels))], labels, fontsize=7)
        axes.tick_params(length=0)
        for label, j in zip(axes.get_yticklabels(), found.order, strict=True):
            label.set_color("black" if kl[j] >= ACTIVE_NATS else "0.55")
    return figure
