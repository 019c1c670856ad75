"""Which implementation an op takes: the reference in plain torch, or a Triton kernel.

``PYVAE_BACKEND=auto|reference|triton`` overrides the choice. ``auto`` takes Triton for CUDA tensors that are not
float64, and the reference elsewhere.
"""

import os
import warnings
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from importlib.util import find_spec
from typing import NamedTuple

import torch
from torch import Tensor

BACKENDS = ("auto", "reference", "triton")


class Choice(NamedTuple):
    """A backend and why it was taken."""

    backend: str
    reason: str


def choose(device: torch.device, dtype: torch.dtype) -> Choice:
    """The backend for tensors of this device and dtype.

    Raises:
        ValueError: PYVAE_BACKEND holds an unknown name.
        RuntimeError: PYVAE_BACKEND asks for what cannot run here; the message says what would help.
    """
    wanted = os.environ.get("PYVAE_BACKEND", "auto")
    if wanted not in BACKENDS:
        raise ValueError(f"PYVAE_BACKEND={wanted!r}: expected one of {', '.join(BACKENDS)}")
    if wanted == "reference":
        return Choice("reference", "PYVAE_BACKEND=reference")
    if wanted == "triton":
        _require_triton(device, dtype)
        return Choice("triton", "PYVAE_BACKEND=triton")
    if dtype == torch.float64:
        return Choice("reference", "float64 is computed by the reference")
    if device.type != "cuda":
        return Choice("reference", f"{device.type} tensors: the Triton kernels need a CUDA device")
    if not has_triton():
        return Choice("reference", "triton is not installed: pip install triton")
    return Choice("triton", "CUDA tensors")


def use_triton(x: Tensor) -> bool:
    """Whether the op that takes ``x`` runs its Triton kernel."""
    choice = choose(x.device, x.dtype)
    if choice.backend == "reference" and x.is_cuda and not has_triton():
        _warn_slow()
    return choice.backend == "triton"


@lru_cache(maxsize=1)
def has_triton() -> bool:
    """Whether triton can be imported."""
    try:
        return find_spec("triton") is not None
    except ImportError:  # from an import hook that blocks it
        return False


def device_of(x: Tensor) -> AbstractContextManager[object]:
    """Make the device of ``x`` current: Triton launches on the current device, not on that of its arguments."""
    if x.is_cuda and x.device.index != torch.cuda.current_device():
        return torch.cuda.device(x.device)
    return nullcontext()


def _require_triton(device: torch.device, dtype: torch.dtype) -> None:
    if not has_triton():
        raise RuntimeError("PYVAE_BACKEND=triton but triton is not installed: pip install triton")
    if dtype == torch.float64:
        raise RuntimeError("PYVAE_BACKEND=triton but the kernels do not take float64: use PYVAE_BACKEND=auto")
    if device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        raise RuntimeError(
            f"PYVAE_BACKEND=triton but the tensors are on {device.type}: move them to a CUDA device, "
            "or set TRITON_INTERPRET=1 before Python starts to interpret the kernels"
        )


@lru_cache(maxsize=1)
def _warn_slow() -> None:
    warnings.warn(
        "CUDA tensors but triton is not installed: pyvae runs its slow reference (pip install triton)"
    )
