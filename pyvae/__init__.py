"""Fused kernels and a training engine for variational autoencoders.

The ops are in :mod:`pyvae.functional`; :mod:`pyvae.reference` specifies each in plain torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from pyvae.functional import (
        aggregate_log_density,
        bernoulli_nll,
        code_histogram,
        gather_bits,
        importance_log_weight,
        permute_dims,
        posterior_entropy,
        reparameterize_kl,
        tc_batch,
    )

__all__ = [
    "aggregate_log_density",
    "bernoulli_nll",
    "code_histogram",
    "gather_bits",
    "importance_log_weight",
    "permute_dims",
    "posterior_entropy",
    "reparameterize_kl",
    "tc_batch",
]


def __getattr__(name: str) -> object:
    if name in __all__:
        return getattr(import_module("pyvae.functional"), name)
    raise AttributeError(f"module 'pyvae' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
