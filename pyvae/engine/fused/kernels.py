"""Kernels by name, each with the same key in Triton's cache whichever process asks for it first.

Triton hashes into the key of a kernel the global constants of those functions it calls that have a key already. So the
key would depend on which kernels a process has launched before, and what one process has compiled another one would
compile again.
"""

from functools import cache
from importlib import import_module
from types import ModuleType
from typing import Any

_MODULES = (
    "conv_pair",
    "conv_ends",
    "dense",
    "latents",
    "weight_gradients",
    "descriptor_gradients",
    "flat_adam",
    "kl_weight",
    "member_rows",
)
"""Of the kernels of a step, in the order in which their functions get their keys."""


def kernel_of(module: str, name: str) -> Any:
    """A kernel of :mod:`pyvae.kernels`."""
    _give_keys()
    return getattr(import_module(f"pyvae.kernels.{module}"), name)


@cache
def _give_keys() -> None:
    for name in _MODULES:
        _give_keys_of(import_module(f"pyvae.kernels.{name}"))


@cache
def _give_keys_of(module: ModuleType) -> None:
    """To functions as they stand in the module, what it imports first."""
    from triton.runtime.jit import JITFunction

    for function in list(vars(module).values()):
        if isinstance(function, JITFunction):
            if function.__module__ != module.__name__:
                _give_keys_of(import_module(function.__module__))
            _ = function.cache_key
