"""What every question needs of a run: its numbers over time, and its codes at a snapshot."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

import pyvae
from pyvae.data.dataset import Dataset
from pyvae.engine.run import RunDirectory
from pyvae.evaluation import dead_units
from pyvae.evaluation.averages import Evaluation, evaluate
from pyvae.metrics import CodeTable

ROWS = 300
"""Of a thinned trace."""
GRID = (1, 1, 2, 2, 2)
"""Of dSprites, every second orientation and position: an eighth of the images, and every combination of the rest."""
ALL = (1, 1, 1, 1, 1)
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


def steps_of(run: pyvae.Run) -> list[int]:
    """Those whose weights were kept, and the last."""
    return [*sorted(step for step in run.recipe.keep_at if step < run.step), run.step]


def dead_of(run: pyvae.Run, step: int) -> list[list[int]]:
    """Dead units of the encoder, and all units, of each of its layers."""
    model: Any = run.model(step)
    return dead_in(model.net.encoder, run.dataset)


def dead_in(encoder: torch.nn.Module, dataset: Dataset) -> list[list[int]]:
    """As numbers that a file can hold."""
    return [[layer.dead, layer.units] for layer in dead_units(encoder, dataset)]


def snapshot(run: pyvae.Run, step: int) -> Evaluation:
    """Reconstruction, KL of each latent, and which latent follows which factor, over 4,096 fixed images."""
    return evaluate(run.model(step).net, run.dataset, run.recipe.likelihood)  # type: ignore[arg-type]


@torch.inference_mode()
def grid_codes(run: pyvae.Run, step: int, strides: Sequence[int] = GRID) -> CodeTable:
    """Codes of a grid of dSprites in which each factor keeps one class of so many."""
    data: Any = run.dataset
    kept = [torch.arange(0, size, stride) for size, stride in zip(data.factor_sizes, strides, strict=True)]
    index, model = data.index(torch.cartesian_prod(*kept)), run.model(step)
    # made first: of small pieces that stay among freed batches, each would keep the allocator from reusing one
    mu, logvar = torch.empty(2, len(index), model.latents)
    for place, chunk in zip(torch.arange(len(index)).split(_BATCH), index.split(_BATCH), strict=True):
        mu[place], logvar[place] = model.encode(data.images(chunk))
    return CodeTable(mu, logvar, data.factor_names, tuple(len(each) for each in kept))
