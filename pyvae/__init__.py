"""Fused kernels and a training engine for variational autoencoders.

The ops are :func:`reparameterize_kl` and :func:`bernoulli_nll`; :mod:`pyvae.reference` specifies them in plain torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from pyvae.functional import bernoulli_nll, reparameterize_kl

__all__ = ["bernoulli_nll", "reparameterize_kl"]


def __getattr__(name: str) -> object:
    if name in __all__:
        return getattr(import_module("pyvae.functional"), name)
    raise AttributeError(f"module 'pyvae' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
