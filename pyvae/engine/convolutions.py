"""Which convolutions a run's networks take, so that a run that goes on does not silently change the last digits of
what it computes."""

import logging
from typing import Any

import torch
from torch import nn

from pyvae.engine.checkpoint import convolutions_in
from pyvae.engine.recorder import Begun
from pyvae.engine.stepper import Stepper
from pyvae.nets.convolutions import arithmetic
from pyvae.nets.layers import convolutions_of, set_own_convolutions, takes_products

_LOG = logging.getLogger(__name__)
_WORDS = {
    "native": "pyvae's own convolutions",
    "native+linear": "pyvae's own convolutions and linear layers",
    "torch": "torch's convolutions",
    "cudnn": "cuDNN's convolutions",
}


def settle_convolutions(trainer: Stepper, begun: Begun) -> dict[str, Any]:
    """Have a run that goes on take the convolutions that it has taken so far, where they can be had; where they cannot,
    it is said.

    Returns:
        what its checkpoints say of them: nothing by the fused engine, which has none beside its own.
    """
    if trainer.net is None:
        return {}
    now = _taken(trainer, trainer.net)
    if begun.saved is None:
        return {"convolutions": now}
    metadata = begun.saved.metadata
    held, before = convolutions_in(metadata), metadata.get("convolutions_before", [])
    goes_on = begun.step < begun.recipe.steps
    was_native = any(map(_is_native, (name for name, _ in before)))
    if _is_native(now) and held in ("torch", "none") and not was_native:
        set_own_convolutions(trainer.net, False)
        now = held = "torch"
        if goes_on:
            _LOG.info(
                "%s goes on with torch's convolutions, as before, and not with others from the middle on; new runs "
                "take pyvae's own, and are about twice as fast",
                begun.run.path,
            )
    elif now == "none" or held == "none":
        held = now
    elif held != now and goes_on:
        _LOG.warning(
            "%s took %s until step %s, and goes on with %s%s: its last digits will not be those of an uninterrupted "
            "run",
            begun.run.path,
            _WORDS.get(held, held),
            f"{begun.step:,}",
            _WORDS.get(now, now),
            _why(trainer, now),
        )
    if held != now:
        before = [*before, (held, begun.step)]
    return {"convolutions": now, **({"convolutions_before": before} if before else {})}


def _taken(trainer: Stepper, net: nn.Module) -> str:
    if trainer.device.type == "cuda":
        return "cudnn"
    taken = convolutions_of(net, trainer.device, trainer.recipe.precision)
    if taken != "native":
        return taken
    if trainer.compiled:
        return "torch"
    products = trainer.recipe.precision != "bf16" and takes_products(net)
    return "native+linear" if products else "native"


def _is_native(taken: str) -> bool:
    return taken in ("native", "native+linear")


def _why(trainer: Stepper, now: str) -> str:
    if now != "torch":
        return ""
    if trainer.compiled:
        return ", which --compile takes"
    dtype = torch.bfloat16 if trainer.recipe.precision == "bf16" else torch.float32
    return f" ({arithmetic(trainer.device, dtype).reason})"
