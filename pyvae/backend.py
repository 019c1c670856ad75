"""Which implementation an op takes: the reference in plain torch, a Triton kernel, or a compiled operator.

``PYVAE_BACKEND=auto|reference|triton|native`` overrides the choice. ``auto`` takes Triton for CUDA tensors, where the
op has a Triton kernel, and compiled operators elsewhere; the reference takes what is left, float64 among it.
"""

import os
import warnings
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from importlib.util import find_spec
from typing import NamedTuple

import torch
from torch import Tensor

from pyvae.base.native import missing
from pyvae.base.transforms import transform
from pyvae.errors import BackendError

BACKENDS = ("auto", "reference", "triton", "native")


class Kernels(NamedTuple):
    """What an op has beside its reference."""

    triton: bool = False
    """Triton kernels, for CUDA; its compiled operator, if any, is then for CPUs alone."""
    native: str | None = None
    """Operator of torch.ops.pyvae_native."""
    float64: bool = False
    """Whether that takes float64."""


OPS = {
    "aggregate_log_density": Kernels(triton=True, native="aggregate_log_density_fwd"),
    "bernoulli_nll": Kernels(triton=True, native="bernoulli_nll_fwd"),
    "code_histogram": Kernels(native="code_histogram"),
    "gather_bits": Kernels(triton=True, native="gather_bits"),
    "importance_log_weight": Kernels(triton=True, native="importance_log_weight_fwd"),
    "permute_dims": Kernels(native="permute_dims", float64=True),
    "posterior_entropy": Kernels(native="posterior_density"),
    "reparameterize_kl": Kernels(triton=True, native="reparameterize_kl_fwd_keeping"),
}


class Choice(NamedTuple):
    """A backend and why it was taken."""

    backend: str
    reason: str
    slow: bool = False
    """Whether a faster one is missing, which is worth a warning."""


def choose(op: str, device: torch.device, dtype: torch.dtype) -> Choice:
    """The backend of an op of ``OPS`` for tensors of this device and dtype.

    An op that lacks what PYVAE_BACKEND asks for takes what ``auto`` would.

    Raises:
        BackendError: PYVAE_BACKEND holds an unknown name, or asks for what cannot run here; the message says what
            would help.
    """
    wanted = wanted_backend()
    if wanted == "reference":
        return Choice("reference", "PYVAE_BACKEND=reference")
    return _choose(OPS[op], device.type, dtype, wanted)


def wanted_backend() -> str:
    """What PYVAE_BACKEND asks for.

    Raises:
        BackendError: an unknown name.
    """
    wanted = os.environ.get("PYVAE_BACKEND", "auto")
    if wanted not in BACKENDS:
        raise BackendError(f"PYVAE_BACKEND={wanted!r}: expected one of {', '.join(BACKENDS)}")
    return wanted


@lru_cache(maxsize=256)
def _choose(has: Kernels, device_type: str, dtype: torch.dtype, wanted: str) -> Choice:
    if wanted == "triton" and has.triton:
        _require_triton(device_type, dtype)
        return Choice("triton", "PYVAE_BACKEND=triton")
    native = has.native if device_type == "cpu" or not has.triton else None
    reason = missing(native, device_type) if native else None
    if wanted == "native" and native and reason:
        raise BackendError(f"PYVAE_BACKEND=native but {reason}")
    if dtype == torch.float64 and not has.float64:
        return Choice("reference", "float64 is computed by the reference")
    if native:
        return Choice("reference", reason, slow=True) if reason else Choice("native", "compiled")
    if device_type != "cuda":
        return Choice("reference", f"{device_type} tensors: the Triton kernels need a CUDA device")
    if not has_triton():
        return Choice("reference", "triton is not installed: pip install triton", slow=True)
    return Choice("triton", "CUDA tensors")


def take(op: str, x: Tensor, *others: Tensor | None) -> str:
    """The backend of an op of ``x``, whose dtype decides, and ``others``; what makes it slower than it could be is
    said once. Inside transforms of torch it is the reference (:mod:`pyvae.base.transforms`)."""
    around = transform(x, *others)
    if around is not None:
        if not torch.compiler.is_compiling() and wanted_backend() != "reference":
            _say(f"plain torch alone goes through {around}")
        return "reference"
    choice = choose(op, x.device, x.dtype)
    if choice.slow:
        _say(choice.reason)
    return choice.backend


def takes_triton(device: torch.device) -> bool:
    """Whether work of the engine's own, which no op of ``OPS`` is, takes its Triton kernel."""
    return _choose(Kernels(triton=True), device.type, torch.float32, wanted_backend()).backend == "triton"


def takes_native(op: str, device: torch.device) -> bool:
    """Whether such work takes the compiled operator ``op``, which is for CPUs alone."""
    wanted = wanted_backend()
    if device.type != "cpu" or wanted == "reference":
        return False
    return _choose(Kernels(native=op), "cpu", torch.float32, wanted).backend == "native"


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


def _require_triton(device_type: str, dtype: torch.dtype) -> None:
    if not has_triton():
        raise BackendError("PYVAE_BACKEND=triton but triton is not installed: pip install triton")
    if dtype == torch.float64:
        raise BackendError("PYVAE_BACKEND=triton but the kernels do not take float64: use PYVAE_BACKEND=auto")
    if device_type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        raise BackendError(
            f"PYVAE_BACKEND=triton but the tensors are on {device_type}: move them to a CUDA device, "
            "or set TRITON_INTERPRET=1 before Python starts to interpret the kernels"
        )


@lru_cache(maxsize=16)
def _say(reason: str) -> None:
    warnings.warn(f"pyvae runs its slower reference: {reason}", stacklevel=4)
