"""What the processor of this machine is called, and whether it has instructions for bfloat16."""

import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

_CPUINFO = Path("/proc/cpuinfo")
_X86 = ("x86_64", "amd64")
_BFLOAT16 = ("avx512_bf16", "amx_bf16")
"""By these names in torch's capabilities and among Linux's flags alike."""


def bfloat16() -> bool | None:
    """Whether there are instructions for products of bfloat16; without them such products are slower than those of
    float32. ``None``: not known, as on processors other than x86."""
    if platform.machine().lower() not in _X86:
        return None
    known = _capabilities()
    if any(flag in known for flag in _BFLOAT16):
        return any(known.get(flag) is True for flag in _BFLOAT16)
    flags = _said("flags").split()
    return any(flag in flags for flag in _BFLOAT16) if flags else None


def tiles() -> bool:
    """Whether there are products of tiles of bfloat16 (AMX), many times as fast as those of single registers."""
    known = _capabilities()
    return known.get("amx_bf16") is True if "amx_bf16" in known else "amx_bf16" in _said("flags").split()


def name() -> str:
    """The processor's name, or its kind where nothing names it."""
    named = _capabilities().get("cpu_name")
    return (
        (named if isinstance(named, str) else "")
        or _said("model name")
        or platform.processor()
        or platform.machine()
    )


def _capabilities() -> Mapping[str, Any]:
    """What torch says of the processor: nothing, in versions that cannot."""
    ask = getattr(torch.cpu, "get_capabilities", None)
    try:
        return {} if ask is None else ask()
    except (RuntimeError, AttributeError):  # where its build cannot ask the processor
        return {}


def _said(key: str) -> str:
    """What Linux says of the first processor."""
    try:
        lines = _CPUINFO.read_text(errors="replace").splitlines()
    except OSError:
        return ""
    pairs = (line.partition(":") for line in lines)
    return next((value.strip() for label, _, value in pairs if label.strip() == key), "")
