"""The work of a study that any process can do."""

from dataclasses import dataclass
from functools import lru_cache

from pyvae.data import load
from pyvae.data.dataset import Dataset
from pyvae.data.shapes3d import Shapes3D
from pyvae.engine.recipe import Recipe


@dataclass(frozen=True)
class Settings:
    """How the models of a study are trained and scored, wherever that is done."""

    device: str = "auto"
    data: str | None = None
    in_memory: bool = True
    log_every: int | None = 100
    checkpoint_seconds: float = 60.0
    capture: bool = True
    metrics: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    seed: int = 0


def dataset_of(recipe: Recipe, settings: Settings) -> Dataset:
    """The data of a recipe; that of the call before is still open."""
    return _dataset(
        settings.data or recipe.data,
        recipe.image_size,
        recipe.channels,
        recipe.crop,
        recipe.corrupt,
        settings.in_memory,
    )


@lru_cache(maxsize=2)
def _dataset(
    data: str, size: int, channels: int | None, crop: int | None, corrupt: str, in_memory: bool
) -> Dataset:
    dataset = load(data, size=size, channels=channels, crop=crop, corrupt=corrupt)
    if in_memory and isinstance(dataset, Shapes3D):
        dataset.to_memory()
    return dataset
