"""Initial weights."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal, TypeAlias

from torch import nn


def _init_kaiming(layer: nn.Module) -> None:
    # 1Konny's check for Conv2d misses ConvTranspose2d, which keeps torch's default in every published run of it
    if isinstance(layer, nn.Linear | nn.Conv2d):
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        _zero_bias(layer)


def _init_normal(layer: nn.Module) -> None:
    if isinstance(layer, nn.Linear | nn.Conv2d):
        nn.init.normal_(layer.weight, 0.0, 0.02)
        _zero_bias(layer)


def _init_glorot(layer: nn.Module) -> None:
    if isinstance(layer, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
        nn.init.xavier_uniform_(layer.weight)
        _zero_bias(layer)


def _zero_bias(layer: nn.Linear | nn.Conv2d | nn.ConvTranspose2d) -> None:
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


INITIALISATIONS: dict[str, Callable[[nn.Module], None] | None] = {
    "torch": None,
    "kaiming": _init_kaiming,
    "normal": _init_normal,
    "glorot": _init_glorot,
}
if TYPE_CHECKING:
    Initialisation: TypeAlias = str
else:
    Initialisation = Literal[tuple(INITIALISATIONS)]
