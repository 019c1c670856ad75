"""Where the weights of a network lie in one flat row, in the order that the kernels read them, and back.

Convolutions are ``[taps, big channels, small channels]``, those at either end ``[channels of images, taps, channels]``,
dense layers ``[inputs, outputs]``, maps ``[y, x, channels]``. Mean and log-variance are padded to ``padded(latents)``.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from pyvae.engine.fused.network import ENDS, SIDE, Dense, Network, Pair

ALIGNMENT = 256
"""Every parameter and activation begins at a multiple of this."""


def padded(latents: int) -> int:
    """P, the latents that tensor cores multiply: 16 at least, a power of two."""
    return max(16, 1 << (latents - 1).bit_length())


def z_width(latents: int) -> int:
    """Z, the columns of z: 32 at least, as a tile of its weight gradient has."""
    return max(32, padded(latents))


@dataclass(frozen=True)
class Parameter:
    """One parameter in the row."""

    offset: int
    shape: tuple[int, ...]
    """As the kernels read it."""
    index: Tensor
    """int64, of the shape that it has in torch: where in the row each of its elements lies."""

    @property
    def size(self) -> int:
        return math.prod(self.shape)


class Layout:
    """The rows of a network: its parameters by their names in torch."""

    def __init__(self, network: Network) -> None:
        self.parameters: dict[str, Parameter] = {}
        self.width = 0
        """Numbers in a row."""
        self._flat: dict[torch.device, Tensor] = {}
        latents, p, z = network.latents, padded(network.latents), z_width(network.latents)
        self._end(network.first, network.channels, bias=ENDS)
        for pair in network.down:
            self._pair(pair, bias=pair.small)
        for dense in network.encode:
            self._dense(dense)
        head = (network.width_in, 2 * p)
        columns = torch.arange(2 * p).view(2, p)[:, :latents].reshape(-1)
        self._add(f"{network.head}.weight", head, lambda at: at.index_select(1, columns).t())
        self._add(f"{network.head}.bias", (2 * p,), lambda at: at[columns])
        self._add(f"{network.decode_first}.weight", (network.width_out, z), lambda at: at[:, :latents])
        self._add(f"{network.decode_first}.bias", (network.width_out,), lambda at: at)
        for dense in network.decode:
            self._dense(dense)
        for pair in network.up:
            self._pair(pair, bias=pair.big)
        self._end(network.last, network.channels, bias=network.channels)

    def row(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """float32 ``[width]`` of parameters, or of a moment of each, by name; what nobody names is zero."""
        row = torch.zeros(self.width)
        for name, parameter in self.parameters.items():
            row[parameter.index] = tensors[name].detach().to("cpu", torch.float32)
        return row

    def tensors(self, row: Tensor) -> dict[str, Tensor]:
        """What :meth:`row` was made of, in new memory on the device of ``row``."""
        flat = self._flat.get(row.device)
        if flat is None:
            flat = torch.cat([p.index.flatten() for p in self.parameters.values()]).to(row.device)
            self._flat[row.device] = flat
        parts = row.index_select(0, flat).split([p.index.numel() for p in self.parameters.values()])
        return {
            name: part.view(p.index.shape)
            for (name, p), part in zip(self.parameters.items(), parts, strict=True)
        }

    def _add(self, name: str, shape: tuple[int, ...], as_torch: Callable[[Tensor], Tensor]) -> None:
        size = math.prod(shape)
        index = as_torch(torch.arange(size).view(shape)) + self.width
        self.parameters[name] = Parameter(self.width, shape, index.contiguous())
        self.width += -(-size // ALIGNMENT) * ALIGNMENT

    def _end(self, name: str, channels: int, *, bias: int) -> None:
        # [channels of the maps, of images, 4, 4] in torch, of either kind
        self._add(
            f"{name}.weight",
            (channels, 16, ENDS),
            lambda at: at.view(channels, 4, 4, ENDS).permute(3, 0, 1, 2),
        )
        self._add(f"{name}.bias", (bias,), lambda at: at)

    def _pair(self, pair: Pair, *, bias: int) -> None:
        taps = pair.taps
        self._add(
            f"{pair.name}.weight",
            (taps * taps, pair.big, pair.small),
            lambda at: at.view(taps, taps, pair.big, pair.small).permute(3, 2, 0, 1),
        )
        self._add(f"{pair.name}.bias", (bias,), lambda at: at)

    def _dense(self, dense: Dense) -> None:
        name, inputs, outputs = dense.name, dense.inputs, dense.outputs
        channels = (inputs if dense.maps == "inputs" else outputs) // SIDE**2

        def weight(at: Tensor) -> Tensor:
            if dense.maps == "none":
                return at.t()
            if dense.maps == "inputs":
                return at.view(SIDE, SIDE, channels, outputs).permute(3, 2, 0, 1).reshape(dense.shape)
            maps = at.view(inputs, SIDE, SIDE, channels)
            return (maps.permute(0, 3, 1, 2) if dense.shared else maps.permute(3, 1, 2, 0)).reshape(
                dense.shape
            )

        def bias(at: Tensor) -> Tensor:
            return at if at.numel() != outputs or dense.maps != "outputs" else _channels_first(at, channels)

        self._add(f"{name}.weight", (inputs, outputs), weight)
        self._add(f"{name}.bias", (channels if dense.shared else outputs,), bias)


def _channels_first(at: Tensor, channels: int) -> Tensor:
    return at.view(SIDE, SIDE, channels).permute(2, 0, 1).reshape(-1)
