"""Fused kernels and a training engine for variational autoencoders.

The ops are in :mod:`pyvae.functional`; :mod:`pyvae.reference` specifies each in plain torch. :func:`pyvae.train` and
:func:`pyvae.open` make runs and open them; all that is named here is imported when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.2.0"
# what it is called when it is installed, since pyvae is another project's; pyvae_engine looks for this line
DISTRIBUTION = "pyvae-engine"

if TYPE_CHECKING:
    from pyvae import bounds as bounds
    from pyvae import control as control
    from pyvae import data as data
    from pyvae import engine as engine
    from pyvae import errors as errors
    from pyvae import evaluation as evaluation
    from pyvae import functional as functional
    from pyvae import integrations as integrations
    from pyvae import metrics as metrics
    from pyvae import modules as modules
    from pyvae import nets as nets
    from pyvae import objectives as objectives
    from pyvae import ops as ops
    from pyvae import random as random
    from pyvae import recipes as recipes
    from pyvae import reference as reference
    from pyvae import report as report
    from pyvae import runs as runs
    from pyvae import schedules as schedules
    from pyvae import studies as studies
    from pyvae.engine.recipe import Recipe as Recipe
    from pyvae.errors import PyvaeError as PyvaeError
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
    from pyvae.runs import Run as Run
    from pyvae.runs import compare as compare
    from pyvae.runs import open as open
    from pyvae.runs import train as train

# the ops alone: a star should not take Python's own open
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
_MODULES = (
    *("bounds", "control", "data", "engine", "errors", "evaluation", "functional", "integrations", "metrics"),
    *(
        "modules",
        "nets",
        "objectives",
        "ops",
        "random",
        "recipes",
        "reference",
        "report",
        "runs",
        "schedules",
    ),
    "studies",
)
_PLACES = {
    **dict.fromkeys(__all__, "pyvae.functional"),
    **dict.fromkeys(("Run", "compare", "open", "train"), "pyvae.runs"),
    "PyvaeError": "pyvae.errors",
    "Recipe": "pyvae.engine.recipe",
}


def __getattr__(name: str) -> object:
    if name in _PLACES:
        return getattr(import_module(_PLACES[name]), name)
    if name in _MODULES:
        return import_module(f"pyvae.{name}")
    raise AttributeError(f"module 'pyvae' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_PLACES, *_MODULES})
