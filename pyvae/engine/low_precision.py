"""Weights in bfloat16 beside those in float32, so that no step casts them or their gradients."""

import torch
from torch import nn
from torch.nn.utils.parametrize import is_parametrized

from pyvae.engine.adam import Adam

_LAYERS = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)


def keep_low_precision_weights(module: nn.Module, optimizer: Adam) -> None:
    """Give each convolution and linear layer its weight in bfloat16 as ``low_precision_weight``, a leaf whose gradient
    the optimiser reads and which always is the rounded weight: after a step, and after the layer loads a state_dict.

    It is a plain attribute, in no state_dict; a copy of the layer has None there, since no optimiser knows it.
    """
    for layer in module.modules():
        if isinstance(layer, _LAYERS) and not is_parametrized(layer, "weight"):
            leaf = optimizer.rounded(layer.weight)  # type: ignore[arg-type]
            leaf.__deepcopy__ = _nothing  # type: ignore[method-assign]
            leaf.rounded_from = layer.weight.data_ptr()  # type: ignore[attr-defined]
            layer.low_precision_weight = leaf
            layer.register_load_state_dict_post_hook(_round_again)


def _nothing(memo: object) -> None:
    return None


@torch.no_grad()
def _round_again(layer: nn.Module, incompatible_keys: object) -> None:
    if layer.low_precision_weight is not None:
        layer.low_precision_weight.copy_(layer.weight)  # type: ignore[operator,arg-type]
