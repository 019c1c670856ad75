"""A network of a user's own, tried before it is trained."""

import logging
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from pyvae.base.source import Source, told
from pyvae.errors import SourceError
from pyvae.nets.build import build
from pyvae.nets.own import kind_of, name_of

_IMAGES = 2
_LOG = logging.getLogger(__name__)


def check_own(source: Source, channels: int, latents: int, side: int) -> None:
    """Run a network of a user's own on two images, so that what is wrong with it is told before training.

    Neither the network that is trained nor torch's generator is touched.

    Args:
        source: of a function of (channels, latents, side), see :func:`pyvae.nets.build`.
        channels, side: of the images.
        latents: D.

    Raises:
        SourceError: it cannot be trained; one line for what is wrong, with what is wanted.
    """
    for line in _wrong(source, channels, latents, side):
        raise SourceError(line)


# the outcome is kept, since a run is checked where it is begun, opened and trained
@lru_cache(maxsize=64)
def _wrong(source: Source, channels: int, latents: int, side: int) -> tuple[str, ...]:
    net = build(source, channels, latents, side=side)
    if not any(parameter.requires_grad for parameter in net.parameters()):
        return (f"{source}: the network has no parameters to train",)
    images = torch.rand(_IMAGES, channels, side, side, generator=torch.Generator().manual_seed(0))
    shape = f"images {list(images.shape)}"
    z = torch.randn(_IMAGES, latents, generator=torch.Generator().manual_seed(1))
    wanted = f"logits {list(images.shape)}"
    with told(source, doing="asked for its state_dict"):
        before = {name: _copy(value) for name, value in net.state_dict().items()}
    others = {name: _copy(value) for name, value in net.named_buffers() if name not in before}
    if strange := [name for name, value in before.items() if not isinstance(value, Tensor)]:
        return (
            f"{source}: {name_of(strange[0])} is no tensor, and would not be in a checkpoint: keep state in buffers",
        )
    for training in (False, True):
        net.train(training)
        mode = ", in training," if training else ","
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            with told(source, doing=f"in its encoder, of {shape}"):
                found = net.encoder.own(images.clone())  # type: ignore[operator]
            if wrong := _of_encoder(found, latents):
                return (f"{source}: its encoder, of {shape}{mode} {wrong}",)
            with told(source, doing=f"in its decoder, of codes {list(z.shape)}"):
                logits = net.decoder(z.clone())
        if wrong := _of_tensor(logits, list(images.shape), wanted):
            return (f"{source}: its decoder, of codes {list(z.shape)}{mode} {wrong}",)
    if 0 <= float(logits.min()) <= float(logits.max()) <= 1:
        _LOG.warning(
            "%s: all logits that its decoder gave lie between 0 and 1. Has it a sigmoid at its end? It should have "
            "none: pixels are the sigmoid of what it gives",
            source,
        )
    return _of_buffers(source, net, before, others)


def _of_buffers(
    source: Source, net: nn.Module, before: dict[str, Tensor], others: dict[str, Tensor]
) -> tuple[str, ...]:
    """What a run that goes on would not find again as it was."""
    for name, value in net.state_dict().items():
        if name not in before or value.shape != before[name].shape:
            return (
                f"{source}: the buffer {name_of(name)} is of another shape once the network has run, and a checkpoint "
                "of it would not fit: give it its last shape where the network is made",
            )
    for name, value in net.named_buffers():
        if name in others and not torch.equal(value, others[name]):
            return (
                f"{source}: the buffer {name_of(name)} changes while the network runs, and with persistent=False is "
                "in no checkpoint: leave that out",
            )
    return ()


def _copy(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, Tensor) else value


def _of_encoder(found: Any, latents: int) -> str:
    both, each = [_IMAGES, 2 * latents], [_IMAGES, latents]
    wanted = f"(mu, logvar), {each} each, or one tensor {both} of mean and log-variance"
    if isinstance(found, Tensor):
        return _of_tensor(found, both, wanted)
    if not isinstance(found, tuple | list) or len(found) != 2:
        return f"gave {kind_of(found)}, and should give {wanted}"
    for part in found:
        if wrong := _of_tensor(part, each, wanted):
            return wrong
    return ""


def _of_tensor(found: Any, shape: list[int], wanted: str) -> str:
    if not isinstance(found, Tensor):
        return f"gave {kind_of(found)}, and should give {wanted}"
    if list(found.shape) != shape:
        return f"gave {list(found.shape)}, and should give {wanted}"
    if not found.is_floating_point():
        return f"gave {str(found.dtype).removeprefix('torch.')}, and should give floating-point numbers"
    if not bool(found.isfinite().all()):
        return "gave numbers that are not finite"
    return ""
