"""Layers one after another: on a GPU, bias and activation behind each product are one launch, and so are their
gradients; on a CPU, convolutions are our own."""

from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from pyvae.backend import takes_triton
from pyvae.base.transforms import transform
from pyvae.nets import convolutions
from pyvae.nets.bias_activation import Activation, ticket_count
from pyvae.nets.convolutions import is_hooked
from pyvae.nets.product import Behind, Layer, product

_CONVOLUTIONS = (nn.Conv2d, nn.ConvTranspose2d)
_FLOATS = (torch.float32, torch.bfloat16, torch.float16)
_PRODUCTS = {
    "fp32": torch.float32,
    "tf32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}
"""Dtype of a CPU's products by the precision of a recipe."""


class Tickets:
    """Counters of the layers of one network, on each device that they run on. No two layers share any, so networks may
    run on streams of their own, each on one at a time. They are no state: copies begin with none."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, torch.device, int], Tensor] = {}

    def of(self, name: str, bias: Tensor) -> Tensor:
        """Those of a layer, int32 zeros, as :func:`pyvae.nets.bias_activation.backward` takes them."""
        key = (name, bias.device, ticket_count(bias.numel()))
        if (known := self._known.get(key)) is not None:
            return known
        tickets = torch.zeros(key[-1], dtype=torch.int32, device=bias.device)
        if not (bias.is_cuda and torch.cuda.is_current_stream_capturing()):
            # what a graph fills is not zero before its replay
            self._known[key] = tickets
        return tickets

    def __reduce__(self) -> tuple[type["Tickets"], tuple[()]]:
        return Tickets, ()


class Layers(nn.Sequential):
    """nn.Sequential, and what it computes; see :func:`run`."""

    own_convolutions: bool = True
    """Whether its convolutions on a CPU may be our own; they are torch's if not."""

    def __init__(self, *layers: Any) -> None:
        super().__init__(*layers)
        self._tickets = Tickets()

    def __getitem__(self, index: Any) -> Any:
        """A layer, or some of them, which go on as they do here."""
        found = super().__getitem__(index)
        if isinstance(index, slice):
            found.own_convolutions = self.own_convolutions  # type: ignore[assignment]
        return found

    def forward(self, input: Tensor) -> Tensor:
        """The last layer's output."""
        layers = self._modules.items()  # with those that stand in it twice
        return run(layers, input, self._tickets, own_convolutions=self.own_convolutions)


def run(
    layers: Iterable[tuple[str, nn.Module]], x: Tensor, tickets: Tickets, *, own_convolutions: bool = True
) -> Tensor:
    """What layers by name make of ``x``, one after another; where Triton runs, in fewer launches, and on a CPU by
    convolutions of our own (:mod:`pyvae.nets.convolutions`), if ``own_convolutions``.

    With Triton, a convolution or a linear layer, the activation behind it and a change between maps and rows of them
    are one step of their own. Layers that neither knows, or that have hooks, are called as they are. So are all of them
    under torch.compile and other transforms of torch (:mod:`pyvae.base.transforms`), and in float64.
    """
    if _fuses(x):
        if takes_triton(x.device):
            for step in _steps(layers):
                x = step(x, tickets)
            return x
        if own_convolutions and x.device.type == "cpu":
            return convolutions.forward(list(_flat(layers)), x)
    for _, layer in layers:
        x = layer(x)
    return x


def set_own_convolutions(net: nn.Module, wanted: bool) -> None:
    """Whether convolutions of a network on a CPU may be our own (:mod:`pyvae.nets.convolutions`), or are torch's."""
    for module in net.modules():
        if isinstance(module, Layers):
            module.own_convolutions = wanted


def convolutions_of(net: nn.Module, device: torch.device, precision: str) -> str:
    """What computes the convolutions of a network that compiled operators would take.

    Args:
        net: any module; only what stands in its :class:`Layers` counts.
        device: where it runs.
        precision: as a recipe has it: "fp32", "tf32", "bf16" or "fp16".

    Returns:
        "native"; "torch"; "none" where it has no such convolution.

    Raises:
        BackendError: PYVAE_BACKEND asks for what cannot run here.
    """
    holders = [m for m in net.modules() if isinstance(m, Layers) and _holds_convolutions(m)]
    if not holders:
        return "none"
    if not any(holder.own_convolutions for holder in holders):
        return "torch"
    return convolutions.arithmetic(device, _PRODUCTS[precision]).backend


def takes_products(net: nn.Module) -> bool:
    """Whether a network has matrix products that, in float32, go with convolutions of our own."""
    holders = [m for m in net.modules() if isinstance(m, Layers)]
    return any(convolutions.takes_products(list(_flat(m._modules.items()))) for m in holders)


def take_sequences(net: nn.Module) -> bool:
    """Make :class:`Layers` of every plain nn.Sequential in a network that holds a convolution that compiled operators
    would take, itself or in one within it; whether there is any such :class:`Layers` now."""
    found = False
    for module in net.modules():
        plain = type(module) is nn.Sequential
        if (plain or isinstance(module, Layers)) and _holds_convolutions(module):
            found = True
            if plain:
                module.__class__ = Layers
                module._tickets = Tickets()  # type: ignore[assignment]
    return found


def weight_of(layer: Layer, dtype: torch.dtype) -> Tensor:
    """The weight of a layer in the dtype of its product, as a gradient reaches it.

    An optimiser that keeps the weight in that dtype too, so that no step casts it, puts this copy, a leaf that takes
    the gradient, at ``layer.low_precision_weight``, and the weight's address at its ``rounded_from``.
    """
    weight = layer.weight
    copy: Tensor | None = getattr(layer, "low_precision_weight", None)
    if weight.dtype == dtype or copy is None or copy.dtype != dtype:
        return weight.to(dtype)
    # what functional_call puts in the place of the weight need not be the weight
    if getattr(copy, "rounded_from", None) != weight.data_ptr():
        return weight.to(dtype)
    return copy if weight.requires_grad else copy.detach()


class _Step(NamedTuple):
    """A layer, those that are computed with it, and what they do."""

    name: str
    layer: nn.Module
    following: tuple[nn.Module, ...]
    behind: Behind

    def __call__(self, x: Tensor, tickets: Tickets) -> Tensor:
        layer = self.layer
        if _is_product(layer) and not any(map(is_hooked, (layer, *self.following))):
            dtype, bias = _product_dtype(x, layer.weight), layer.bias
            ranks = 2 if isinstance(layer, nn.Linear) else 4
            if dtype is not None and x.ndim == ranks and bias is not None and bias.dtype in _FLOATS:
                wanted = torch.is_grad_enabled() and bias.requires_grad
                mine = tickets.of(self.name, bias) if wanted else None
                return product(x.to(dtype), weight_of(layer, dtype), bias, layer, self.behind, mine)
        for each in (layer, *self.following):
            x = each(x)
        return x


def _fuses(x: Tensor) -> bool:
    return (
        not torch.compiler.is_compiling()
        and transform(x) is None
        and x.dtype in _FLOATS
        and x.numel() > 0
        and not _has_any_global_hook()
    )


def _flat(layers: Iterable[tuple[str, nn.Module]]) -> Iterator[nn.Module]:
    """Layers, and those of plain containers that stand among them."""
    for _, layer in layers:
        kind = type(layer)
        if (kind is nn.Sequential or kind is Layers) and not is_hooked(layer) and _is_open(layer):
            yield from _flat(layer._modules.items())  # type: ignore[arg-type]
        else:
            yield layer


def _is_open(container: nn.Module) -> bool:
    return not isinstance(container, Layers) or container.own_convolutions


def _holds_convolutions(container: nn.Module) -> bool:
    return any(map(convolutions.takes, _flat(container._modules.items())))  # type: ignore[arg-type]


def _product_dtype(x: Tensor, weight: Tensor) -> torch.dtype | None:
    """That both are cast to, as autocast would; ``None`` for those that do not go together."""
    kind = x.device.type
    if torch.is_autocast_enabled(kind) and weight.dtype in _FLOATS:
        dtype = torch.get_autocast_dtype(kind)
        return dtype if dtype in _FLOATS else None
    return x.dtype if x.dtype == weight.dtype else None


def _steps(layers: Iterable[tuple[str, nn.Module]]) -> Iterator[_Step]:
    left = deque(layers)
    while left:
        name, layer = left.popleft()
        activation, reshaping = Activation(), None
        following: list[nn.Module] = []
        while left and _is_product(layer):
            candidate = left[0][1]
            if activation.kind == "identity" and (known := _activation(candidate)):
                activation = known
            elif reshaping is None and _reshapes(candidate, layer):
                reshaping = candidate
            else:
                break
            following.append(left.popleft()[1])
        behind = Behind(activation, flattens=isinstance(reshaping, nn.Flatten))
        if isinstance(reshaping, nn.Unflatten):
            last = bool(left) and _reads_channels_last(left[0][1])
            behind = behind._replace(maps=tuple(reshaping.unflattened_size), channels_last=last)
        yield _Step(name, layer, tuple(following), behind)


def _is_product(layer: nn.Module) -> TypeGuard[Layer]:
    """Whether it is one of torch's own, and none made of it."""
    if type(layer) is nn.Linear:
        return True
    return (
        isinstance(layer, _CONVOLUTIONS)
        and type(layer) in _CONVOLUTIONS
        and layer.padding_mode == "zeros"
        and not isinstance(layer.padding, str)
    )


def _activation(layer: nn.Module) -> Activation | None:
    if type(layer) is nn.ReLU:
        return Activation("relu")
    if type(layer) is nn.LeakyReLU and layer.negative_slope > 0:
        return Activation("leaky_relu", layer.negative_slope)
    return Activation("tanh") if type(layer) is nn.Tanh else None


def _reshapes(layer: nn.Module, before: nn.Module) -> bool:
    """Whether it makes rows of a convolution's maps, or maps of a linear layer's rows."""
    if type(layer) is nn.Flatten:
        return isinstance(before, _CONVOLUTIONS) and (layer.start_dim, layer.end_dim) == (1, -1)
    return (
        type(layer) is nn.Unflatten
        and isinstance(before, nn.Linear)
        and layer.dim == 1
        and len(layer.unflattened_size) == 3
        and all(isinstance(size, int) and size > 0 for size in layer.unflattened_size)
    )


def _reads_channels_last(layer: nn.Module) -> bool:
    if not isinstance(layer, _CONVOLUTIONS):
        return False
    weight = layer.weight
    return weight.is_contiguous(memory_format=torch.channels_last) and not weight.is_contiguous()
