"""Argument checks shared by the reference and the ops: no synchronisation unless ``PYVAE_CHECK=1``."""

import math
import os
from typing import NamedTuple

import torch
from torch import Tensor

from pyvae.base.transforms import transform

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def value_checks(*tensors: Tensor) -> bool:
    """Whether checks that read the values of these, and so wait for the device, are asked for (``PYVAE_CHECK=1``).

    Not inside a transform, which may have no values, nor while torch.compile traces: its operators check when they run.
    """
    if os.environ.get("PYVAE_CHECK") != "1" or torch.compiler.is_compiling():
        return False
    return transform(*tensors) is None and not any(x.is_meta for x in tensors)


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of sums and losses: fp64 for fp64, else fp32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def check_float(name: str, x: Tensor) -> None:
    """Raise unless ``x`` is a floating-point tensor that the ops take."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{name}: expected a tensor, got {type(x).__name__}")
    if x.dtype not in FLOATS:
        raise TypeError(f"{name}: expected float32, bfloat16, float16 or float64, got {x.dtype}")


def check_columns(name: str, x: Tensor) -> None:
    """Raise unless ``x`` is a float tensor [..., rows, columns] with a column."""
    check_float(name, x)
    if x.ndim < 2 or x.shape[-1] == 0:
        raise ValueError(f"{name}: expected shape [..., rows, columns], got {list(x.shape)}")


def check_device(name: str, x: Tensor, other_name: str, other: Tensor) -> None:
    """Raise unless both tensors are on one device."""
    if x.device != other.device:
        raise ValueError(f"{name} is on {x.device} but {other_name} on {other.device}: move one of them")


def check_latents(mu: Tensor, logvar: Tensor) -> None:
    """Raise unless mu and logvar are float tensors of one shape [..., B, D], dtype and device."""
    check_float("mu", mu)
    check_float("logvar", logvar)
    if mu.shape != logvar.shape:
        raise ValueError(f"logvar: expected the shape of mu {list(mu.shape)}, got {list(logvar.shape)}")
    if mu.dtype != logvar.dtype:
        raise TypeError(f"logvar: expected the dtype of mu {mu.dtype}, got {logvar.dtype}")
    check_device("logvar", logvar, "mu", mu)
    if mu.ndim < 2:
        raise ValueError(f"mu: expected shape [..., batch, latents], got {list(mu.shape)}")
    if mu.shape[-1] == 0:
        raise ValueError(f"mu: no latent dimension in shape {list(mu.shape)}")


def check_aggregate(z: Tensor, mu: Tensor, logvar: Tensor) -> None:
    """Raise unless z is of the shape, dtype and device of the posteriors."""
    check_latents(mu, logvar)
    check_float("z", z)
    if z.shape != mu.shape:
        raise ValueError(f"z: expected the shape of mu {list(mu.shape)}, got {list(z.shape)}")
    if z.dtype != mu.dtype:
        raise TypeError(f"z: expected the dtype of mu {mu.dtype}, got {z.dtype}")
    check_device("z", z, "mu", mu)


def check_finite(mu: Tensor, logvar: Tensor) -> None:
    """Raise, if value checks are asked for, unless mu and logvar are finite."""
    if value_checks(mu, logvar) and not bool(torch.isfinite(mu).all() & torch.isfinite(logvar).all()):
        raise ValueError("mu or logvar holds NaN or infinity")


def expand_key(key: Tensor, lead: torch.Size) -> tuple[Tensor, int]:
    """Expand a key [*prefix, 2] to the first dimensions of ``lead``.

    Returns:
        the expanded key, and the number of ensemble members that share each (seed, step).

    Raises:
        ValueError: the key's dimensions are not a prefix of ``lead``.
    """
    prefix = key.shape[:-1]
    if not prefix:
        return key, math.prod(lead)
    fits = len(prefix) <= len(lead) and all(k in (1, n) for k, n in zip(prefix, lead, strict=False))
    if not fits:
        raise ValueError(
            f"key: shape {list(key.shape)} does not match the leading dimensions {list(lead)}: "
            "expected [2], or one (seed, step) per ensemble member"
        )
    return key.expand(*lead[: len(prefix)], 2), math.prod(lead[len(prefix) :])


class PixelLayout(NamedTuple):
    """How logits and target of ``bernoulli_nll`` are read: [members, batch, pixels]."""

    lead: tuple[int, ...]
    batch: int
    pixels: int
    packed: bool
    target_max: float

    @property
    def members(self) -> int:
        return math.prod(self.lead)

    @property
    def row_bytes(self) -> int:
        """Bytes of one image in a bit-packed target."""
        return -(-self.pixels // 8)


REDUCTIONS = ("batchmean", "sum", "none")


def pixel_layout(
    logits: Tensor, target: Tensor, reduction: str, event_dims: int | None, target_max: int | None
) -> PixelLayout:
    """Check the arguments of ``bernoulli_nll`` and say how to read them; see its docstring."""
    check_float("logits", logits)
    if not isinstance(target, Tensor):
        raise TypeError(f"target: expected a tensor, got {type(target).__name__}")
    check_device("target", target, "logits", logits)
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction: expected one of {', '.join(REDUCTIONS)}, got {reduction!r}")
    if target.requires_grad:
        raise ValueError("target: its gradient is not implemented; pass target.detach()")
    if event_dims is None:
        event_dims = logits.ndim - 1
    if not 0 <= event_dims < logits.ndim:
        raise ValueError(
            f"event_dims: {event_dims} trailing image dimensions leave no batch dimension in logits "
            f"of shape {list(logits.shape)}"
        )
    split = logits.ndim - event_dims
    lead, batch, event = tuple(logits.shape[: split - 1]), logits.shape[split - 1], logits.shape[split:]
    pixels = math.prod(event)
    packed = target.dtype == torch.uint8 and target_max is None
    layout = PixelLayout(lead, batch, pixels, packed, float(target_max or 1))
    if packed:
        _check_packed(target, logits, layout, split)
    else:
        _check_plain(target, logits, lead, target_max)
    return layout


def flatten_pixels(logits: Tensor, target: Tensor, layout: PixelLayout) -> tuple[Tensor, Tensor]:
    """Logits [members, batch, pixels] and target [members, batch, pixels or bytes]: views where they can be."""
    rows = (layout.members, layout.batch)
    flat_logits = logits.reshape(*rows, layout.pixels)
    columns = layout.row_bytes if layout.packed else layout.pixels
    if target.numel() == math.prod(rows) * columns:
        return flat_logits, target.reshape(*rows, columns)
    own = _own_lead(target, logits, layout)
    missing = len(layout.lead) - own
    flat = target.reshape(*target.shape[:own], layout.batch, columns)
    return flat_logits, flat.expand(*layout.lead[:missing], *flat.shape).reshape(*rows, columns)


def _own_lead(target: Tensor, logits: Tensor, layout: PixelLayout) -> int:
    """How many ensemble dimensions the target has itself; the others are the same images for every member."""
    if not layout.packed:
        return target.ndim - (logits.ndim - len(layout.lead))
    for own in range(min(len(layout.lead), target.ndim - 1), -1, -1):
        if (
            tuple(target.shape[: own + 1]) == (*layout.lead[len(layout.lead) - own :], layout.batch)
            and math.prod(target.shape[own + 1 :]) == layout.row_bytes
        ):
            return own
    return -1


def _check_packed(target: Tensor, logits: Tensor, layout: PixelLayout, split: int) -> None:
    if target.ndim >= 1 and _own_lead(target, logits, layout) >= 0:
        return
    if target.shape == logits.shape:
        raise ValueError("target: uint8 of the shape of logits: say target_max=1 or target_max=255")
    want = [*layout.lead, layout.batch, layout.row_bytes]
    raise ValueError(
        f"target: uint8 without target_max is read as packed bits of shape {want} for logits of shape "
        f"{list(logits.shape)}, got {list(target.shape)}"
    )


def _check_plain(target: Tensor, logits: Tensor, lead: tuple[int, ...], target_max: int | None) -> None:
    if target.dtype == torch.uint8:
        if target_max not in (1, 255):
            raise ValueError(f"target_max: expected 1 or 255 for a uint8 target, got {target_max!r}")
    elif target_max is not None:
        raise ValueError(f"target_max: only for uint8 targets, but target is {target.dtype}")
    elif target.dtype != torch.bool and target.dtype not in FLOATS:
        raise TypeError(f"target: expected a float, bool or uint8 tensor, got {target.dtype}")
    missing = logits.ndim - target.ndim
    if not 0 <= missing <= len(lead) or target.shape != logits.shape[missing:]:
        raise ValueError(
            f"target: expected the shape of logits {list(logits.shape)}, got {list(target.shape)}"
        )
    if value_checks(target) and target.dtype != torch.bool and target.numel():
        low, high = float(target.min()), float(target.max())
        if not (low >= 0 and high <= (target_max or 1)):
            raise ValueError(f"target: values must lie in [0, {target_max or 1}], got [{low}, {high}]")


def importance_layout(
    logits: Tensor, target: Tensor, z: Tensor, mu: Tensor, logvar: Tensor, target_max: int | None
) -> PixelLayout:
    """Check the arguments of ``importance_log_weight`` and say how to read the pixels of one sample of each image."""
    check_latents(mu, logvar)
    check_finite(mu, logvar)
    check_float("z", z)
    check_float("logits", logits)
    *lead, latents = mu.shape
    if z.ndim != mu.ndim + 2 or z.shape[:-3] != mu.shape[:-1] or z.shape[-1] != latents:
        want = ", ".join(map(str, [*lead, "M", "K", latents]))
        raise ValueError(f"z: expected shape [{want}] for mu of shape {list(mu.shape)}, got {list(z.shape)}")
    if 0 in z.shape[-3:-1]:
        raise ValueError(f"z: no importance sample in shape {list(z.shape)}")
    if z.dtype != mu.dtype:
        raise TypeError(f"z: expected the dtype of mu {mu.dtype}, got {z.dtype}")
    check_device("z", z, "mu", mu)
    check_device("logits", logits, "z", z)
    if logits.shape[: z.ndim - 1] != z.shape[:-1]:
        want = ", ".join(map(str, [*z.shape[:-1], "*image"]))
        raise ValueError(f"logits: expected shape [{want}], got {list(logits.shape)}")
    return pixel_layout(_first_sample(logits, z), target, "none", logits.ndim - z.ndim + 1, target_max)


def flatten_importance(
    logits: Tensor, target: Tensor, z: Tensor, layout: PixelLayout
) -> tuple[Tensor, Tensor]:
    """Logits [members, batch, samples, pixels] and target [members, batch, pixels or bytes]: views if they can be."""
    samples = z.shape[-3] * z.shape[-2]
    _, flat_target = flatten_pixels(_first_sample(logits, z), target, layout)
    return logits.reshape(layout.members, layout.batch, samples, layout.pixels), flat_target


def _first_sample(logits: Tensor, z: Tensor) -> Tensor:
    """Logits [..., batch, *image] of the first sample of each image."""
    outer = z.ndim - 3
    return logits.select(outer, 0).select(outer, 0)
