"""What the kernels need to know of a network, read off its torch modules, whose names and weights it keeps."""

from typing import NamedTuple

from torch import nn

from pyvae.nets import Autoencoder, Encoder

SIDE = 4
"""Of the maps between convolutions and dense layers."""
ENDS = 32
"""Channels of the maps beside images."""


class Pair(NamedTuple):
    """A convolution, or a transposed one, between small maps ``[side, side, small]`` and big ones of twice the side."""

    name: str
    side: int
    big: int
    small: int
    taps: int
    """Of a row of the kernel: 4 with a padding of 1, or 2 with none."""


class Dense(NamedTuple):
    """A fully connected layer, or a convolution whose kernel covers all of its maps, with a ReLU behind it."""

    name: str
    inputs: int
    outputs: int
    shape: tuple[int, ...]
    """Of its weight in torch."""
    maps: str = "none"
    """Which side of it are maps: "inputs", "outputs" or "none"."""
    shared: bool = False
    """Whether pixels of its output share the bias of their channel."""


class Network(NamedTuple):
    """An autoencoder of 64 x 64 images, layer by layer."""

    channels: int
    latents: int
    first: str
    """The first convolution, from images to maps of 32 x 32 x 32."""
    down: tuple[Pair, ...]
    encode: tuple[Dense, ...]
    head: str
    decode_first: str
    """The dense layer that takes z."""
    width_in: int
    """Inputs of the head."""
    width_out: int
    """Outputs of the layer that takes z."""
    decode: tuple[Dense, ...]
    up: tuple[Pair, ...]
    last: str
    """The last transposed convolution, to logits."""


class UnknownNetworkError(Exception):
    """A network that has no kernels; the message says what stands in the way."""


def network_of(net: Autoencoder) -> Network:
    """The layers of a network.

    Raises:
        UnknownNetworkError: it is not convolutions of stride 2, then dense layers, and the same the other way round.
    """
    if not isinstance(net.encoder, Encoder):
        raise UnknownNetworkError("the code is made from factors, without convolutions")
    trunk = _products(net.encoder.trunk, "encoder.trunk", ends_with_relu=True)
    decoder = _products(net.decoder, "decoder", ends_with_relu=False)
    convolutions = [(n, m) for n, m in trunk if isinstance(m, nn.Conv2d) and m.stride == (2, 2)]
    transposed = [(n, m) for n, m in decoder if isinstance(m, nn.ConvTranspose2d) and m.stride == (2, 2)]
    if len(convolutions) != 4 or len(transposed) != 4:
        raise UnknownNetworkError("its networks are not four convolutions and four transposed ones")
    encode = [_dense("encoder.trunk", *layer) for layer in trunk if layer not in convolutions]
    decode = [_dense("decoder", *layer) for layer in decoder if layer not in transposed]
    first, last = convolutions[0], transposed[-1]
    down = [_pair("encoder.trunk", *layer, side=16 >> n) for n, layer in enumerate(convolutions[1:])]
    up = [_pair("decoder", *layer, side=4 << n) for n, layer in enumerate(transposed[:-1])]
    ends = first[1].out_channels, last[1].in_channels, down[0].big, down[0].small, down[0].taps, up[-1].big
    kernels = {(layer.kernel_size, layer.padding) for _, layer in (first, last)}
    known = ends == (ENDS, ENDS, ENDS, ENDS, 4, ENDS) and kernels == {((4, 4), (1, 1))}
    if not known or not encode or not decode:
        raise UnknownNetworkError(f"beside images it does not have {ENDS} channels and kernels of 4 x 4")
    if encode[0].inputs != SIDE * SIDE * down[-1].small or decode[-1].outputs != SIDE * SIDE * up[0].small:
        raise UnknownNetworkError(f"its maps beside dense layers are not {SIDE} x {SIDE}")
    encode[0] = encode[0]._replace(maps="inputs")
    if len(decode) > 1:
        decode[-1] = decode[-1]._replace(maps="outputs")
    else:
        raise UnknownNetworkError("its decoder has a single dense layer")
    return Network(
        channels=first[1].in_channels,
        latents=net.latents,
        first=f"encoder.trunk.{first[0]}",
        down=tuple(down),
        encode=tuple(encode),
        head="encoder.head",
        decode_first=decode[0].name,
        width_in=net.encoder.head.in_features,
        width_out=decode[0].outputs,
        decode=tuple(decode[1:]),
        up=tuple(up),
        last=f"decoder.{last[0]}",
    )


def _products(layers: nn.Module, prefix: str, *, ends_with_relu: bool) -> list[tuple[str, nn.Module]]:
    """Convolutions and linear layers by name, of which each has a ReLU behind it, the last perhaps none."""
    found: list[tuple[str, nn.Module]] = []
    active = True
    for name, layer in layers.named_children():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            if not active:
                raise UnknownNetworkError(f"there is no ReLU in front of {prefix}.{name}")
            if not _is_plain(layer):
                raise UnknownNetworkError(f"{prefix}.{name} has groups, a dilation, or no bias")
            found.append((name, layer))
            active = False
        elif isinstance(layer, nn.ReLU):
            active = True
        elif not isinstance(layer, nn.Flatten | nn.Unflatten):
            raise UnknownNetworkError(f"{type(layer).__name__} has no kernel")
    if active != ends_with_relu:
        raise UnknownNetworkError(f"{prefix} ends {'with' if active else 'without'} a ReLU")
    return found


def _is_plain(layer: nn.Conv2d | nn.ConvTranspose2d | nn.Linear) -> bool:
    if layer.bias is None or isinstance(layer, nn.Linear):
        return layer.bias is not None
    beyond = layer.output_padding != (0, 0) if isinstance(layer, nn.ConvTranspose2d) else False
    return layer.dilation == (1, 1) and layer.groups == 1 and layer.padding_mode == "zeros" and not beyond


def _pair(prefix: str, name: str, layer: nn.Conv2d | nn.ConvTranspose2d, *, side: int) -> Pair:
    big, small = layer.in_channels, layer.out_channels
    if isinstance(layer, nn.ConvTranspose2d):
        big, small = small, big
    taps = layer.kernel_size[0]
    known = taps in (2, 4) and layer.kernel_size == (taps, taps) and layer.padding == (taps // 2 - 1,) * 2
    if not known or not {big, small} <= {32, 64}:
        raise UnknownNetworkError(
            f"{prefix}.{name} is not of 32 or 64 channels with a kernel of 4 x 4 or 2 x 2"
        )
    return Pair(f"{prefix}.{name}", side, big, small, taps)


def _dense(prefix: str, name: str, layer: nn.Module) -> Dense:
    if isinstance(layer, nn.Linear):
        return Dense(f"{prefix}.{name}", layer.in_features, layer.out_features, tuple(layer.weight.shape))
    assert isinstance(layer, nn.Conv2d | nn.ConvTranspose2d)
    if layer.kernel_size != (SIDE, SIDE) or layer.stride != (1, 1) or layer.padding != (0, 0):
        raise UnknownNetworkError(
            f"{prefix}.{name} has a stride of 1 and does not cover maps of {SIDE} x {SIDE}"
        )
    pixels, shape = SIDE * SIDE, tuple(layer.weight.shape)
    if isinstance(layer, nn.Conv2d):
        return Dense(f"{prefix}.{name}", pixels * layer.in_channels, layer.out_channels, shape)
    return Dense(f"{prefix}.{name}", layer.in_channels, pixels * layer.out_channels, shape, shared=True)
