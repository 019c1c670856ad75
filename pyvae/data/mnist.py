"""The files of MNIST (LeCun et al. 1998) by their names, and their images by what is known of them."""

import os
from pathlib import Path

import torch

from pyvae.data.dataset import Dataset

_TRAIN, _TEST = "train-images-idx3-ubyte", "t10k-images-idx3-ubyte"
_SIDE = (1, 28, 28)
# count and sum of all bytes, from the means that many have printed: 33.318421449829934 and 33.791224489795916
_TRAIN_SUM = 60_000, 1_567_298_545
_TEST_SUM = 10_000, 264_923_200


def training_file(folder: Path) -> Path | None:
    """The training images of a folder, packed by gzip or not; None: there are none."""
    return _present(folder, _TRAIN)


def test_file(path: Path) -> Path | None:
    """The test images beside training images, packed by gzip or not, ``path`` being those or their folder."""
    if os.path.isdir(path):
        return _present(path, _TEST) if training_file(path) else None
    if not path.name.startswith("train-images"):
        return None
    return _present(path.parent, path.name.removesuffix(".gz").replace("train-images", "t10k-images"))


def is_training_set(dataset: Dataset) -> bool:
    """Whether these are MNIST's own 60,000 training images, as far as a sum of their pixels tells."""
    return _is(dataset, _TRAIN_SUM)


def is_test_set(dataset: Dataset) -> bool:
    """Whether these are MNIST's own 10,000 test images, as far as a sum of their pixels tells."""
    return _is(dataset, _TEST_SUM)


def _is(dataset: Dataset, known: tuple[int, int]) -> bool:
    pixels = getattr(dataset, "pixels", None)
    if pixels is None or dataset.image_shape != _SIDE or len(dataset) != known[0]:
        return False
    return int(pixels.sum(dtype=torch.int64)) == known[1]


def _present(folder: Path, name: str) -> Path | None:
    found = (folder / each for each in (name, f"{name}.gz"))
    return next((path for path in found if os.path.isfile(path)), None)
