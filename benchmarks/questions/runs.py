"""What every question needs of a run: its numbers over time, and its codes at a snapshot."""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

import pyvae
from pyvae.data.dataset import FactorDataset
from pyvae.engine.run import RunDirectory
from pyvae.evaluation.averages import Evaluation, evaluate
from pyvae.metrics import CodeTable

ROWS = 300
"""Of a thinned trace."""
GRID = (1, 1, 2, 2, 2)
"""Of dSprites, every second orientation and position: an eighth of the images, and every combination of the rest."""
_BATCH = 512


def finished_runs(runs: Path) -> Iterator[Path]:
    """Directories of the runs in that of a study which have reached their last step."""
    for path in sorted(each.parent for each in runs.rglob("recipe.json")):
        run = pyvae.open(path)
        if run.step >= run.recipe.steps:
            yield path


def arm_of(path: Path, runs: Path) -> str:
    """The method of a run, by the name of its directory."""
    return path.relative_to(runs).parts[0]


def says_of_every_run(run: pyvae.Run, arm: str) -> dict[str, Any]:
    """Which run it is, how it was trained, and its trace in rows that are means over as many steps."""
    recipe = run.recipe
    return {
        "arm": arm,
        "seed": recipe.seed,
        "recipe": recipe.to_json(),
        "training": training_of(run),
        "trace": thinned(run.trace()),
    }


def training_of(run: pyvae.Run) -> dict[str, Any]:
    """Steps, seconds and machine of the training itself, which may be another than that which measures."""
    told = RunDirectory.open(run.path).newest_checkpoint().metadata
    seconds = told["seconds"]
    return {
        "steps": run.step,
        "seconds": round(seconds),
        "steps_per_second": round(run.step / seconds, 2),
        **{name: told[name] for name in ("device", "engine", "versions")},
    }


def thinned(trace: dict[str, npt.NDArray[Any]], rows: int = ROWS) -> dict[str, list[float]]:
    """Means over blocks of the logged rows; of the step the mean too."""
    parts = np.array_split(np.arange(len(trace["step"])), min(rows, len(trace["step"])))
    return {name: [float(f"{values[part].mean():.5g}") for part in parts] for name, values in trace.items()}


def snapshot(run: pyvae.Run, step: int) -> Evaluation:
    """Reconstruction, KL of each latent, and which latent follows which factor, over 4,096 fixed images."""
    return evaluate(run.model(step).net, run.dataset, run.recipe.likelihood)  # type: ignore[arg-type]


@torch.inference_mode()
def grid_codes(run: pyvae.Run, step: int, strides: Sequence[int] = GRID) -> CodeTable:
    """Codes of the images of a grid in which each factor keeps one class of so many."""
    dataset = run.dataset
    assert isinstance(dataset, FactorDataset)
    sizes = dataset.factor_sizes
    kept = [torch.arange(0, size, stride) for size, stride in zip(sizes, strides, strict=True)]
    classes = torch.cartesian_prod(*kept)
    places = torch.tensor([math.prod(sizes[k + 1 :]) for k in range(len(sizes))])
    model = run.model(step)
    parts = [model.encode(dataset.images(chunk)) for chunk in (classes @ places).split(_BATCH)]
    mu, logvar = (torch.cat(part) for part in zip(*parts, strict=True))
    return CodeTable(mu, logvar, dataset.factor_names, tuple(len(each) for each in kept))
