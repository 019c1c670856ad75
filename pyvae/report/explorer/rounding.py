"""Weights as a page holds them: rounded, and written as text."""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor


class Rounded(NamedTuple):
    """A tensor as the page holds it."""

    kind: Literal["single", "short", "byte"]
    content: np.ndarray
    """Its numbers in their order, little-endian."""
    scale: np.ndarray | None
    """Of each row of integers: what one step is worth."""
    values: Tensor
    """float32, what the page computes with."""

    @property
    def bytes(self) -> int:
        """That it takes, before it is written as text."""
        return self.content.nbytes + (0 if self.scale is None else self.scale.nbytes)

    def to_json(self) -> dict[str, Any]:
        """As the page reads it."""
        scale = {} if self.scale is None else {"scale": _text(self.scale)}
        return {"kind": self.kind, "data": _text(self.content), **scale}


Rounding = Callable[[Tensor], Rounded]


def single(x: Tensor) -> Rounded:
    """float32, as it is."""
    return Rounded("single", _array(x).astype("<f4"), None, x)


def short(x: Tensor) -> Rounded:
    """Two bytes a number: 65,535 steps for each row ``x[i]``, as wide as its largest number wants. Half precision takes
    as much and is ten times as far off in what the demo's network draws."""
    steps, scale, values = _steps(x, 32767)
    return Rounded("short", steps.astype("<i2"), scale, values)


def byte(x: Tensor) -> Rounded:
    """One byte a number: 255 steps."""
    steps, scale, values = _steps(x, 127)
    return Rounded("byte", steps.astype("i1"), scale, values)


def _steps(x: Tensor, most: int) -> tuple[np.ndarray, np.ndarray, Tensor]:
    rows = x.flatten(1)
    scale = (rows.abs().amax(1, keepdim=True) / most).clamp_min(torch.finfo(torch.float32).tiny)
    steps = (rows / scale).round()
    return _array(steps), _array(scale).astype("<f4"), (steps * scale).view_as(x)


def _array(x: Tensor) -> np.ndarray:
    return x.detach().contiguous().numpy()


def _text(content: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(content).tobytes()).decode()
