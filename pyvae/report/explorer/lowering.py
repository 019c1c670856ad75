"""A decoder's layers as the stages that a page computes."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import type_before_parametrizations

from pyvae.nets.adversarial import BatchNorm
from pyvae.nets.layers import Layers
from pyvae.report.explorer.rounding import single
from pyvae.report.explorer.stages import Activation, Affine, Pair, Product, Reorder, Resample, Shape, Stage

_IDLE = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.AlphaDropout, nn.FeatureAlphaDropout)
_CONVOLUTIONS = (nn.Conv2d, nn.ConvTranspose2d)
_NORMALISATIONS = (nn.BatchNorm1d, nn.BatchNorm2d, BatchNorm)
_UPSAMPLES = (nn.Upsample, nn.UpsamplingNearest2d, nn.UpsamplingBilinear2d)
_CLOSE = 1e-3


class CannotRunError(Exception):
    """A page cannot compute a decoder; what it says goes behind "because"."""


@torch.inference_mode()
def lower(decoder: nn.Module, codes: Tensor) -> list[Stage]:
    """The stages that compute what a decoder does in evaluation.

    Args:
        decoder: maps codes ``[B, D]`` to logits ``[B, C, H, W]``.
        codes: float32 ``[B, D]``, on which both are compared.

    Raises:
        CannotRunError: it has a layer that is not known here, or computes something else than its layers say.
    """
    for tensor in (*decoder.parameters(), *decoder.buffers()):
        if not bool(torch.isfinite(tensor).all()):
            raise CannotRunError("its weights are not all finite")
    stages: list[Stage] = []
    x = codes
    for name, layer in _layers(decoder, ""):
        kind = type_before_parametrizations(layer)
        where = f"nn.{kind.__name__}" if kind.__module__.startswith("torch.nn") else kind.__name__
        where += f" (layer {name})" if name else ""
        before = tuple(x.shape[1:])
        try:
            after = layer(x)
        except Exception as error:
            raise CannotRunError(f"{where} fails when it is called by itself: {error}") from error
        if not isinstance(after, Tensor) or len(after) != len(x):
            raise CannotRunError(f"{where} gives something else than one tensor of the same images")
        stages += _stages(layer, kind, where, before, tuple(after.shape[1:]))
        x = after
    expected = decoder(codes)
    found = codes
    for stage in stages:
        found = stage(found)
    scale = expected.abs().amax().clamp_min(1.0)
    if found.shape != expected.shape or not bool((found - expected).abs().amax() <= _CLOSE * scale):
        raise CannotRunError("it computes something else than its layers one after another")
    return stages


def _layers(module: nn.Module, path: str) -> Iterator[tuple[str, nn.Module]]:
    if type(module).forward in (nn.Sequential.forward, Layers.forward):
        for name, layer in module._modules.items():
            if layer is not None:
                yield from _layers(layer, f"{path}.{name}" if path else name)
    else:
        yield path, module


def _stages(layer: nn.Module, kind: type, where: str, before: Shape, after: Shape) -> list[Stage]:
    """Of one layer, from maps or rows to maps or rows."""
    if kind in _IDLE:
        return []
    if len(before) not in (1, 3) or len(after) not in (1, 3):
        raise CannotRunError(f"{where} reads or gives neither rows nor maps, but {before} and {after}")
    if kind in (nn.Flatten, nn.Unflatten):
        return [Reorder(before, after)] if before != after else []
    if (activation := _activation(layer, kind)) is not None:
        return [activation]
    if kind is nn.Linear and len(before) == 1:
        assert isinstance(layer, nn.Linear)
        weight = layer.weight[:, :, None, None]
        return [Product(single(_own(weight)), _bias(layer, len(weight)), before, after)]
    if kind in _CONVOLUTIONS and len(before) == 3:
        return [_convolution(layer, where, before, after)]
    if kind in _NORMALISATIONS:
        return [_affine(layer, where)]
    if kind in _UPSAMPLES and len(before) == 3:
        return [_resample(layer, before)]
    raise CannotRunError(f"it has a layer that the page does not know, {where}")


def _activation(layer: nn.Module, kind: type) -> Activation | None:
    plain = {nn.ReLU: "relu", nn.SiLU: "silu", nn.Tanh: "tanh", nn.Sigmoid: "sigmoid"}
    if kind in plain:
        return Activation(plain[kind])  # type: ignore[arg-type]
    if kind is nn.LeakyReLU:
        return Activation("leaky", (layer.negative_slope,))  # type: ignore[arg-type]
    if kind is nn.ELU:
        return Activation("elu", (layer.alpha,))  # type: ignore[arg-type]
    if kind is nn.GELU:
        return Activation("gelu" if layer.approximate == "none" else "gelu_tanh")
    if kind is nn.Softplus:
        return Activation("softplus", (layer.beta, layer.threshold))  # type: ignore[arg-type]
    return None


def _convolution(layer: nn.Module, where: str, before: Shape, after: Shape) -> Product:
    assert isinstance(layer, _CONVOLUTIONS)
    if layer.padding_mode != "zeros" or isinstance(layer.padding, str):
        raise CannotRunError(f"{where} pads in a way that the page does not know")
    transposed = isinstance(layer, nn.ConvTranspose2d)
    weight = _dense(layer.weight, layer.groups, transposed)
    return Product(
        single(_own(weight)),
        _bias(layer, len(weight)),
        before,
        after,
        transposed,
        stride=_pair(layer.stride),
        padding=_pair(layer.padding),
        dilation=_pair(layer.dilation),
        output_padding=_pair(layer.output_padding),
    )


def _pair(sizes: tuple[int, ...]) -> Pair:
    return sizes[0], sizes[1]


def _dense(weight: Tensor, groups: int, transposed: bool) -> Tensor:
    """``[outputs, inputs, height, width]`` of a convolution in groups, zeros between them."""
    parts = weight.chunk(groups)
    outputs, inputs = weight.shape[1 if transposed else 0], weight.shape[0 if transposed else 1]
    if groups == 1:
        return weight.transpose(0, 1) if transposed else weight
    outputs, inputs = (outputs * groups, inputs) if transposed else (outputs, inputs * groups)
    dense = weight.new_zeros(outputs, inputs, *weight.shape[2:])
    rows, columns = outputs // groups, inputs // groups
    for g, part in enumerate(parts):
        block = part.transpose(0, 1) if transposed else part
        dense[g * rows : (g + 1) * rows, g * columns : (g + 1) * columns] = block
    return dense


def _affine(layer: nn.Module, where: str) -> Affine:
    mean, variance = layer.running_mean, layer.running_var
    if layer.training or mean is None or variance is None:
        raise CannotRunError(f"{where} normalises by the other images of a batch, and a page draws one image")
    assert isinstance(mean, Tensor)
    assert isinstance(variance, Tensor)
    # in double precision, rounded once
    scale = (variance.double() + getattr(layer, "eps", 1e-5)).rsqrt()
    scale = scale if layer.weight is None else scale * layer.weight.double()  # type: ignore[operator]
    shift = -mean.double() * scale
    shift = shift if layer.bias is None else shift + layer.bias.double()  # type: ignore[operator]
    return Affine(scale.float(), shift.float())


def _resample(layer: nn.Module, before: Shape) -> Resample:
    """Its matrices are what it makes of maps of one row, and of one column."""
    channels, height, width = before
    rows = torch.eye(height)[None, :, :, None].expand(1, height, height, width).contiguous()
    columns = torch.eye(width)[None, :, None, :].expand(1, width, height, width).contiguous()
    return Resample(layer(rows)[0, :, :, 0].T, layer(columns)[0, :, 0, :].T, channels)


def _own(weight: Tensor) -> Tensor:
    return weight.detach().float().contiguous().clone()


def _bias(layer: nn.Module, outputs: int) -> Tensor:
    return torch.zeros(outputs) if layer.bias is None else _own(layer.bias)  # type: ignore[arg-type]
