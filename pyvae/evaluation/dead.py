"""Units of a network that no image excites, so that they learn nothing any more."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from pyvae.data.dataset import Dataset
from pyvae.data.subset import subset

_BATCH = 256


class DeadUnits(NamedTuple):
    """Of one layer."""

    layer: str
    """Name of its ReLU in the network."""
    dead: int
    units: int
    """Channels of a map, or features of a row."""

    @property
    def share(self) -> float:
        """From 0 to 1."""
        return self.dead / self.units


@torch.inference_mode()
def dead_units(network: nn.Module, dataset: Dataset) -> list[DeadUnits]:
    """How many units behind each ReLU are 0 for all of 4,096 fixed images, so that no gradient reaches them: "dying
    ReLU" (Lu et al. 2020, "Dying ReLU and initialization"). A learning rate too high for the pressure of the KL makes
    them, and what the remaining ones cannot tell, no capacity brings back.

    Args:
        network: of images float32 ``[B, C, H, W]``; what behind its ReLUs is ``[B, units, ...]``.
        dataset: of the images.

    Returns:
        a row for each ReLU, in the order of the network; none for a network without.
    """
    alive: dict[str, Tensor] = {}

    def watch(name: str, output: Tensor) -> None:
        fired = (output > 0).transpose(0, 1).flatten(1).any(1)
        alive[name] = alive[name] | fired if name in alive else fired

    hooks = [
        layer.register_forward_hook(lambda _layer, _inputs, output, name=name: watch(name, output))
        for name, layer in network.named_modules()
        if isinstance(layer, nn.ReLU)
    ]
    try:
        if hooks:
            for index in subset(dataset).split(_BATCH):
                network(dataset.images(index))
    finally:
        for hook in hooks:
            hook.remove()
    return [DeadUnits(name, int((~fired).sum()), len(fired)) for name, fired in alive.items()]
