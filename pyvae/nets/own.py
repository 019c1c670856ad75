"""Networks of a user's own."""

from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from pyvae.base.source import Source, told
from pyvae.errors import SourceError
from pyvae.nets.autoencoder import Autoencoder, OwnEncoder


def own_network(source: Source, channels: int, latents: int, side: int) -> Autoencoder:
    """What a user's function makes of these, called with them in this order.

    Raises:
        SourceError: it failed, or what it gives is no encoder and decoder; one line says why.
    """
    with told(source, doing=f"called as {source.name}({channels}, {latents}, {side})"):
        made = source.object(channels, latents, side)
    if isinstance(made, nn.Module):
        with told(source, doing="asked for its encoder and decoder"):
            parts: list[Any] = [getattr(made, name, None) for name in ("encoder", "decoder")]
        missing = [n for n, part in zip(("encoder", "decoder"), parts, strict=True) if part is None]
        if missing:
            raise SourceError(
                f"{source}: the {type(made).__name__} that it gives has no {missing[0]}: name its two modules encoder "
                "and decoder, or give the pair (encoder, decoder)"
            )
    elif isinstance(made, tuple | list) and len(made) == 2:
        parts = list(made)
    else:
        raise SourceError(
            f"{source}: gave {kind_of(made)}, and should give a module with encoder and decoder, or a pair of modules"
        )
    for name, part in zip(("encoder", "decoder"), parts, strict=True):
        if not isinstance(part, nn.Module):
            raise SourceError(f"{source}: its {name} is {kind_of(part)}, and should be a torch.nn.Module")
    net = Autoencoder(OwnEncoder(parts[0], latents), parts[1])
    for name, tensor in (*net.named_parameters(), *net.named_buffers()):
        if is_lazy(tensor):
            raise SourceError(
                f"{source}: {name_of(name)} is of a lazy layer, whose size is not known before it runs: name its "
                "size, as in nn.Linear(128, 10)"
            )
    for name, parameter in net.named_parameters():
        if parameter.requires_grad and parameter.dtype != torch.float32:
            raise SourceError(
                f"{source}: {name_of(name)} is {str(parameter.dtype).removeprefix('torch.')}, and weights are "
                "float32 here: --precision bf16 casts them where they are used"
            )
    held = {id(tensor) for tensor in (*net.parameters(), *net.buffers())}
    if isinstance(made, nn.Module):
        for name, tensor in (*made.named_parameters(), *made.named_buffers()):
            if id(tensor) not in held:
                raise SourceError(
                    f"{source}: {name} is in neither encoder nor decoder, and would not be trained: put it into one of "
                    "them"
                )
    return net


def name_of(name: str) -> str:
    """Of a parameter or buffer, as its owner knows it."""
    return name.replace("encoder.own.", "encoder.", 1)


def kind_of(found: Any) -> str:
    """What stands where a tensor or a module should, in words."""
    if isinstance(found, tuple | list):
        return f"{type(found).__name__} of {len(found)}"
    return type(found).__name__
