"""The trained network of a run, and what is known of its training."""

from typing import Any, NamedTuple

from pyvae.data.dataset import Dataset
from pyvae.engine.checkpoint import Checkpoint
from pyvae.engine.run import RunDirectory
from pyvae.nets import Autoencoder
from pyvae.nets.adversarial import AdversarialPair


class Trained(NamedTuple):
    """The newest weights of a run."""

    net: Autoencoder
    steps: int
    """That the weights were trained for."""
    metadata: dict[str, Any]
    """Of their checkpoint."""
    steps_per_second: float | None
    """Over the whole run; None where the checkpoint does not say."""


class TrainedPair(NamedTuple):
    """The newest weights of a run with generator and critic."""

    net: AdversarialPair
    steps: int
    """That the weights were trained for."""
    metadata: dict[str, Any]
    """Of their checkpoint."""
    steps_per_second: float | None
    """Over the whole run; None where the checkpoint does not say."""


def load_trained(run: RunDirectory, dataset: Dataset) -> Trained:
    """The newest weights of a run, for images of this data set.

    Raises:
        RunError: there is no checkpoint yet, or it was trained on images of another shape.
    """
    newest = run.newest_for(dataset)
    return Trained(run.net_of(newest), newest.step, newest.metadata, _speed(newest))


def load_trained_pair(run: RunDirectory, dataset: Dataset) -> TrainedPair:
    """The newest generator and critic of a run, for images of this data set.

    Raises:
        RunError: as :func:`load_trained`, or the run has an encoder and a decoder.
    """
    newest = run.newest_for(dataset)
    return TrainedPair(run.pair_of(newest), newest.step, newest.metadata, _speed(newest))


def _speed(newest: Checkpoint) -> float | None:
    seconds = newest.metadata.get("seconds")
    return newest.step / seconds if seconds else None
