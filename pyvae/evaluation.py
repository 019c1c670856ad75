"""Metrics of a run, kept in its ``metrics.json``."""

import json
from collections.abc import Sequence
from inspect import signature
from typing import Any

import torch

from pyvae.data.dataset import Dataset, FactorDataset
from pyvae.engine.batches import ImageSource
from pyvae.engine.files import write_atomically
from pyvae.engine.run import Run
from pyvae.errors import PyvaeError
from pyvae.metrics import METRICS, encode, evaluate

UNSUPERVISED = "unsupervised"


def score(
    run: Run,
    dataset: Dataset,
    names: Sequence[str],
    *,
    device: torch.device,
    without: Sequence[str] = (),
    seed: int = 0,
) -> dict[str, Any]:
    """Encode the whole data set once with the run's newest weights, and compute metrics from the codes.

    Args:
        run: with a checkpoint.
        dataset: that of its recipe; without known factors, "unsupervised" alone can be computed.
        names: keys of :data:`pyvae.metrics.METRICS`.
        device: where the encoder runs.
        without: factors to leave out, "shape" for the four-factor MIG of Chen et al. 2018.
        seed: of what the metrics draw.

    Returns:
        for each metric the fields of its result, also written to ``metrics.json`` under "scores".

    Raises:
        PyvaeError: unknown metric or factor, no factors, no checkpoint, or a metric that cannot be computed.
    """
    for name in names:
        if name not in METRICS:
            raise PyvaeError(f"unknown metric {name!r}: there are {', '.join(METRICS)}")
    supervised = [name for name in names if name != UNSUPERVISED]
    if supervised and not isinstance(dataset, FactorDataset):
        raise PyvaeError(
            f"the factors of {run.recipe.data} are not known, which {', '.join(supervised)} need: "
            f"only --metrics {UNSUPERVISED} can do without"
        )
    if run.recipe.code == "factors":
        raise PyvaeError(f"the code of {run.path} is its true factors: there is no encoder to evaluate")
    net, steps = run.load_net()
    images = ImageSource(dataset, device).images
    table = encode(net.to(device), dataset, device=device, images=images)
    options: dict[str, dict[str, Any]] = {name: _all_points(name, len(dataset)) for name in names}
    for name in supervised:
        options[name]["without"] = tuple(without)
    try:
        scores = evaluate(table, names, seed=seed, options=options)
    except ValueError as error:
        raise PyvaeError(str(error)) from error
    earlier = read_scores(run, steps, dataset)
    write_metrics(run, steps, dataset, {"scores": {**earlier, **scores}})
    return scores


def _all_points(name: str, size: int) -> dict[str, None]:
    """Options that let a metric take all images where there are fewer than it draws by default."""
    parameters = signature(METRICS[name]).parameters
    sizes = (parameters[option] for option in ("points", "variance_points") if option in parameters)
    return {p.name: None for p in sizes if p.default is not None and p.default > size}


def read_scores(run: Run, steps: int, dataset: Dataset) -> dict[str, Any]:
    """Scores in ``metrics.json``, if they are of the weights after so many steps and of this data."""
    return _read(run, steps, dataset).get("scores", {})


def write_metrics(run: Run, steps: int, dataset: Dataset, values: dict[str, Any]) -> None:
    """Put values into ``metrics.json``; what stood there is kept if it is of the same weights and data."""
    content = {**_read(run, steps, dataset), "steps": steps, "data": dataset.fingerprint, **values}
    write_atomically(run.path / "metrics.json", (json.dumps(content, indent=2) + "\n").encode())


def _read(run: Run, steps: int, dataset: Dataset) -> dict[str, Any]:
    try:
        saved = json.loads((run.path / "metrics.json").read_text())
        same = (saved["steps"], saved["data"]) == (steps, dataset.fingerprint)
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return saved if same else {}
