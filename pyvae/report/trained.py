"""The trained network of a run, and what is known of its training."""

from typing import Any, NamedTuple

from torch import Tensor

from pyvae.data.dataset import Dataset
from pyvae.engine.run import Run
from pyvae.errors import RunError
from pyvae.nets import Autoencoder


class Trained(NamedTuple):
    """The newest weights of a run."""

    net: Autoencoder
    steps: int
    """That the weights were trained for."""
    metadata: dict[str, Any]
    """Of their checkpoint."""
    steps_per_second: float | None
    """Over the whole run; None where the checkpoint does not say."""


def posterior(net: Autoencoder, dataset: Dataset, index: Tensor) -> tuple[Tensor, Tensor]:
    """Posterior mean and log-variance ``[B, D]`` of images int64 ``[B]``."""
    return net.encoder(index if net.reads_factors else dataset.images(index))


def load_trained(run: Run, dataset: Dataset) -> Trained:
    """The newest weights of a run, for images of this data set.

    Raises:
        RunError: there is no checkpoint yet, or it was trained on images of another shape.
    """
    newest = run.newest_checkpoint()
    expected = tuple(newest.metadata["image_shape"])
    if expected != dataset.image_shape:
        raise RunError(
            f"{run.path} was trained on images of shape {expected}, but those of {dataset.fingerprint} are "
            f"{dataset.image_shape}: give the data it was trained on"
        )
    seconds = newest.metadata.get("seconds")
    return Trained(
        run.net_of(newest), newest.step, newest.metadata, newest.step / seconds if seconds else None
    )
