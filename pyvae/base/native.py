"""The compiled operators ``torch.ops.pyvae_native``: loaded if they were built, done without if not."""

from functools import lru_cache
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import torch

BUILD = "in a checkout of pyvae, pip install .   or   python setup.py build_ext --inplace"


@lru_cache(maxsize=1)
def load() -> str | None:
    """Load the extension.

    Returns:
        None if its operators are there, else what is missing and the command that adds it.
    """
    found = [p for suffix in EXTENSION_SUFFIXES if (p := Path(__file__).parents[1] / f"_C{suffix}").is_file()]
    if not found:
        return f"the compiled operators of pyvae are not built: {BUILD}"
    try:
        torch.ops.load_library(str(found[0]))
    except OSError as e:
        return f"{found[0].name} does not load into torch {torch.__version__} ({e}): {BUILD}"
    return None


@lru_cache(maxsize=64)
def missing(op: str, device_type: str) -> str | None:
    """None if ``torch.ops.pyvae_native.<op>`` runs on this type of device, else why not and what adds it."""
    reason = load()
    if reason is not None:
        return reason
    key = {"cpu": "CPU", "cuda": "CUDA"}.get(device_type)
    if key is None:
        return f"no compiled operator runs on {device_type}: move the tensors to cpu or cuda"
    if not hasattr(torch.ops.pyvae_native, op):
        return f"the compiled operators of pyvae are older than pyvae, {op} is not among them: {BUILD}"
    if not torch._C._dispatch_has_kernel_for_dispatch_key(f"pyvae_native::{op}", key):
        return f"{op} was built without CUDA: with nvcc and a torch that has CUDA, {BUILD}"
    return None
