"""The runs that a comparison is of."""

from __future__ import annotations

import html
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, NamedTuple

from pyvae.data.dataset import Dataset
from pyvae.engine.run import RunDirectory
from pyvae.evaluation import read_metrics
from pyvae.evaluation.averages import evaluate
from pyvae.report import generated
from pyvae.report.charts import colour
from pyvae.report.trained import Trained, TrainedPair, load_trained, load_trained_pair


class Member(NamedTuple):
    """A run of a comparison."""

    label: str
    run: RunDirectory
    dataset: Dataset
    """As its network is evaluated on it."""
    trained: Trained | TrainedPair
    metrics: Mapping[str, Any]
    """As ``metrics.json`` has them."""

    @property
    def data(self) -> Hashable:
        """What its numbers are of."""
        return self.dataset.fingerprint, self.dataset.image_shape, self.run.recipe.binarise


def member_of(label: str, run: RunDirectory, whole: Dataset) -> Member:
    """The newest weights of a run and what is known of them; averages that ``metrics.json`` lacks are computed."""
    if run.adversarial:
        pair = load_trained_pair(run, whole)
        metrics = read_metrics(run, pair.steps, whole)
        if "information_of_codes" not in metrics:
            bounds = generated.information(run, pair.net)
            metrics = {**metrics, "information": sum(bounds), "information_of_codes": bounds}
        return Member(label, run, whole, pair, metrics)
    dataset = run.shown(whole)
    trained = load_trained(run, dataset)
    metrics = read_metrics(run, trained.steps, dataset)
    if "kl_of_latents" not in metrics:
        metrics = {**metrics, **evaluate(trained.net, dataset, run.recipe.likelihood).to_json(dataset)}
    return Member(label, run, dataset, trained, metrics)


def name_of(members: Sequence[Member], i: int) -> str:
    """HTML of what a run is called, with its colour."""
    kind, style = colour(i, len(members))
    return f'<span class="name {kind}"{style}>{html.escape(members[i].label)}</span>'
