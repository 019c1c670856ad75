"""Which convolutions on a CPU are our own: compiled operators that take the layers of the published networks.

What they do not take is called as it is, by torch, which is the reference.
"""

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple, TypeAlias, TypeGuard

import torch
from torch import Tensor, nn

from pyvae.backend import Choice, wanted_backend
from pyvae.base import processor
from pyvae.base.native import missing
from pyvae.errors import BackendError
from pyvae.nets.convolution_run import Run, Stage

_Convolution: TypeAlias = nn.Conv2d | nn.ConvTranspose2d
_CONVOLUTIONS = (nn.Conv2d, nn.ConvTranspose2d)
_PRODUCTS = (*_CONVOLUTIONS, nn.Linear)
_WIDTHS = (32, 64)
"""Channels between layers."""
_ENDS = (1, 3)
"""Channels of images."""
_LONGEST = 2**13
"""Side of a map, in pixels."""
_WIDEST = 2**16
"""Numbers of a row; a thread keeps memory for 64 of them."""
_LEVELS = ("", "AVX2", "AVX-512", "AVX-512 with products of bfloat16")
_PLAIN = (Tensor, nn.Parameter)


def arithmetic(device: torch.device, dtype: torch.dtype = torch.float32) -> Choice:
    """What computes convolutions on this device, "native" or "torch", and why.

    Args:
        device: of the maps.
        dtype: of the products: float32, or bfloat16 as under autocast.

    Raises:
        BackendError: PYVAE_BACKEND holds an unknown name, or asks for compiled operators where there are none.
    """
    return _arithmetic(device.type, dtype, wanted_backend())


@lru_cache(maxsize=32)
def _arithmetic(device_type: str, dtype: torch.dtype, wanted: str) -> Choice:
    if device_type != "cpu":
        return Choice("torch", f"{device_type} tensors: the compiled convolutions are for CPUs")
    if wanted in ("reference", "triton"):
        return Choice("torch", f"PYVAE_BACKEND={wanted}")
    if reason := missing("convolutions_fwd", "cpu") or missing("linears_fwd", "cpu"):
        if wanted == "native":
            raise BackendError(f"PYVAE_BACKEND=native but {reason}")
        return Choice("torch", reason, slow=True)
    level = torch.ops.pyvae_native.convolution_level.default()
    if level == 0:
        return Choice("torch", "the compiled convolutions need AVX2, which this processor or build lacks")
    if dtype == torch.bfloat16 and level < len(_LEVELS) - 1:
        return Choice("torch", f"this processor or build has {_LEVELS[level]}, without products of bfloat16")
    if dtype == torch.bfloat16 and processor.tiles():
        return Choice(
            "torch", "this processor has AMX, which oneDNN uses and the compiled convolutions do not"
        )
    if dtype not in (torch.float32, torch.bfloat16):
        return Choice("torch", f"the compiled convolutions do not take {dtype}")
    return Choice("native", _LEVELS[level if dtype == torch.bfloat16 else min(level, 2)])


def takes(layer: nn.Module) -> bool:
    """Whether compiled operators take a layer, of maps whose side halves, or doubles, without a remainder.

    Those are torch's own Conv2d and ConvTranspose2d, with neither hooks nor parametrisations: 4 x 4 of stride 2 and
    padding 1, and 2 x 2 of stride 2, between 32 and 64 channels; the former between those and 1 or 3 channels too.
    """
    return _is_common(layer) and _is_compiled(layer.stride, layer.padding, layer.weight.shape)


def takes_products(layers: Sequence[nn.Module]) -> bool:
    """Whether linear layers, or convolutions that may have a kernel as large as the map, stand in a row with those that
    :func:`takes`: in float32, compiled operators take them too."""
    convolves = multiplies = False
    for layer in layers:
        if takes(layer):
            convolves = True
        elif _is_linear(layer) or (_is_common(layer) and layer.padding == (0, 0)):
            multiplies = True
        elif _slope(layer) is None and type(layer) not in (nn.Flatten, nn.Unflatten):
            convolves = multiplies = False
        if convolves and multiplies:
            return True
    return False


def is_hooked(layer: nn.Module) -> bool:
    """Whether calling a layer does more than its class says."""
    own = layer.__dict__
    return bool(
        own["_forward_hooks"]
        or own["_forward_pre_hooks"]
        or own["_backward_hooks"]
        or own["_backward_pre_hooks"]
        or "forward" in own
        or "_conv_forward" in own
        or own.get("_compiled_call_impl")  # of module.compile()
    )


def forward(layers: Sequence[nn.Module], x: Tensor) -> Tensor:
    """What layers make of ``x``, one after another: runs that are our own, and the others as they are.

    Raises:
        BackendError: see :func:`arithmetic`.
    """
    at = 0
    while at < len(layers):
        run, count = _run(layers, at, x)
        if run is not None:
            x = run(x)
        else:
            for layer in layers[at : at + count]:
                x = layer(x)
        at += count
    return x


def _run(layers: Sequence[nn.Module], at: int, x: Tensor) -> tuple[Run | None, int]:
    """The longest run of layers that takes ``x``, and how many layers that is; without one, how many to call."""
    dtype = _products(x) if type(layers[at]) in _PRODUCTS else None
    if dtype is None:
        return None, 1
    stages: list[Stage] = []
    parameters: list[Tensor | None] = []
    last, end, behind = x.ndim == 4 and _is_channels_last(x), at, at
    shape: tuple[int, ...] = x.shape[1:]
    while (found := _found(layers, end, shape, dtype)) is not None:
        stage, shape, weight, bias, behind, end = found
        # as torch's, what a convolution makes has channels last if its maps or its weight have
        last = bool(stage.stride) and (last or _is_channels_last(weight))
        stages.append(stage._replace(channels_last=True) if last else stage)
        parameters += [weight, bias]
    if stages and stages[-1].slope:
        # what follows may write to a leaky ReLU's output, which keeps its input: so torch's own goes behind
        stages[-1] = stages[-1]._replace(slope=None, unflattened=None)
        end = behind
    if not any(stage.compiled for stage in stages):
        return None, max(end - at, 1)
    if arithmetic(x.device, dtype).backend != "native":
        return None, end - at
    return Run(tuple(stages), parameters, dtype == torch.bfloat16), end - at


class _Found(NamedTuple):
    stage: Stage
    shape: tuple[int, ...]
    """Of what it makes, without the batch."""
    weight: Tensor
    bias: Tensor | None
    behind: int
    """The number of the layer behind the one that has them, which may be the stage's activation."""
    end: int
    """That of the layer behind the stage."""


def _found(layers: Sequence[nn.Module], at: int, shape: tuple[int, ...], dtype: torch.dtype) -> _Found | None:
    """The stage that begins with a layer, of maps ``[C, H, W]`` or rows ``[N]``."""
    flattened = 1
    if at < len(layers) and len(shape) == 3 and _flattens(layers[at]):
        flattened, shape, at = math.prod(shape[1:]), (math.prod(shape),), at + 1
    if at == len(layers):
        return None
    layer, behind = layers[at], at + 1
    weight: Tensor
    bias: Tensor | None
    made: tuple[Stage, tuple[int, ...]] | None = None
    if len(shape) == 1:
        if dtype != torch.float32 or not _is_linear(layer):
            return None
        weight, bias = layer.weight, layer.bias
        if _are_of_rows(weight.shape, None if bias is None else bias.shape, shape[0]):
            made = Stage(compiled=False, flattened=flattened), (len(weight),)
    elif _is_common(layer):
        # each is a search of torch's
        weight, bias = layer.weight, layer.bias
        made = _made(layer.transposed, layer.stride, layer.padding, weight.shape, shape)
    if made is None or not (_is_plain(weight) and (bias is None or _is_plain(bias))):
        return None
    stage, shape = made
    end = behind
    for following in layers[behind : behind + 2]:
        if stage.slope is None and (slope := _slope(following)) is not None:
            stage = stage._replace(slope=slope)
        elif len(shape) == 1 and (maps := _maps_of_rows(following, shape[0])) is not None:
            stage, shape = stage._replace(unflattened=maps), maps
        else:
            break
        end += 1
    return _Found(stage, shape, weight, bias, behind, end)


def _products(x: Tensor) -> torch.dtype | None:
    """The dtype of the products of maps ``x``; ``None`` where they are not ours."""
    if x.ndim not in (2, 4) or len(x) == 0 or not _is_on_cpu(x):
        return None
    if not torch.is_autocast_enabled("cpu"):
        return torch.float32 if x.dtype == torch.float32 else None
    asked = torch.get_autocast_dtype("cpu") == torch.bfloat16
    return torch.bfloat16 if asked and x.dtype in (torch.float32, torch.bfloat16) else None


def _is_on_cpu(x: Tensor) -> bool:
    return type(x) in _PLAIN and x.is_cpu and x.layout == torch.strided


def _is_plain(parameter: Tensor) -> bool:
    return parameter.dtype == torch.float32 and _is_on_cpu(parameter)


def _is_common(layer: nn.Module) -> TypeGuard[_Convolution]:
    return (
        isinstance(layer, _CONVOLUTIONS)
        and type(layer) in _CONVOLUTIONS
        and layer.groups == 1
        and layer.dilation == (1, 1)
        and layer.output_padding == (0, 0)
        and layer.padding_mode == "zeros"
        and not is_hooked(layer)
    )


def _is_linear(layer: nn.Module) -> TypeGuard[nn.Linear]:
    return type(layer) is nn.Linear and not is_hooked(layer)


def _are_of_rows(weight: tuple[int, ...], bias: tuple[int, ...] | None, numbers: int) -> bool:
    """Whether sizes are those of a linear layer of rows of so many numbers: what functional_call puts in the place of a
    layer's own may have others."""
    if len(weight) != 2 or weight[1] != numbers or min(weight) == 0 or max(weight) > _WIDEST:
        return False
    return bias is None or bias == weight[:1]


def _flattens(layer: nn.Module) -> bool:
    """Whether it makes rows of maps."""
    return (
        isinstance(layer, nn.Flatten)
        and type(layer) is nn.Flatten
        and (layer.start_dim, layer.end_dim) in ((1, -1), (1, 3))
        and not is_hooked(layer)
    )


def _maps_of_rows(layer: nn.Module, numbers: int) -> tuple[int, ...] | None:
    """``C, H, W`` of the maps that a layer makes of rows of so many numbers; ``None`` if it makes none."""
    if type(layer) is not nn.Unflatten or layer.dim != 1 or is_hooked(layer):
        return None
    size = layer.unflattened_size
    if len(size) != 3 or not all(isinstance(n, int) and n > 0 for n in size) or math.prod(size) != numbers:
        return None
    return tuple(size)


def _is_compiled(stride: tuple[int, ...], padding: tuple[int, ...] | str, size: Sequence[int]) -> bool:
    """Whether compiled operators take a convolution with a weight of this size."""
    wide, narrow, *kernel = size
    if stride != (2, 2) or wide not in _WIDTHS:
        return False
    if kernel == [4, 4] and padding == (1, 1):
        return narrow in _WIDTHS or narrow in _ENDS
    return kernel == [2, 2] and padding == (0, 0) and narrow in _WIDTHS


@lru_cache(maxsize=256)
def _made(
    transposed: bool,
    stride: tuple[int, ...],
    padding: tuple[int, ...] | str,
    size: tuple[int, ...],
    shape: tuple[int, ...],
) -> tuple[Stage, tuple[int, ...]] | None:
    """Of maps of shape ``[C, H, W]`` and a convolution with a weight of this size, the stage, and the shape of what it
    makes; ``None`` if neither compiled operators nor a matrix product take it."""
    inputs, channels, *kernel = size
    if not transposed:
        inputs, channels = channels, inputs
    if inputs != shape[0] or isinstance(padding, str):
        return None
    _, height, width = shape
    if padding == (0, 0) and [height, width] == ([1, 1] if transposed else kernel):
        above = kernel if transposed else (1, 1)
        return Stage(False, transposed, None, stride, padding), (channels, *above)
    step = 1 if transposed else 2
    if kernel == [4, 4] and size[1] in _WIDTHS:
        step *= 2  # tiles are of two by two
    if height % step or width % step or max(height, width) > _LONGEST:
        return None
    if not _is_compiled(stride, padding, size):
        return None
    height, width = (2 * height, 2 * width) if transposed else (height // 2, width // 2)
    return Stage(True, transposed, None, stride, padding), (channels, height, width)


def _slope(layer: nn.Module) -> float | None:
    """Of an activation on the negative side; ``None`` for any other layer."""
    kind = type(layer)
    if (kind is not nn.ReLU and kind is not nn.LeakyReLU) or is_hooked(layer):
        return None
    if kind is nn.ReLU:
        return 0.0
    slope = float(layer.negative_slope)  # type: ignore[arg-type]
    return slope if 0.0 < slope < float("inf") else None


def _is_channels_last(x: Tensor) -> bool:
    """Whether torch would make its output so."""
    _, channels, _, width = x.shape
    return x.stride()[1:] == (1, width * channels, channels)
