"""The metrics by name."""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from pyvae.metrics.beta_vae import beta_vae
from pyvae.metrics.dci import dci
from pyvae.metrics.factor_vae import factor_vae
from pyvae.metrics.irs import irs
from pyvae.metrics.mig import mig
from pyvae.metrics.mig_chen import mig_chen
from pyvae.metrics.modularity import explicitness, modularity
from pyvae.metrics.sap import sap
from pyvae.metrics.table import CodeTable
from pyvae.metrics.unsupervised import unsupervised

METRICS: dict[str, Callable[..., Any]] = {
    f.__name__.replace("_", "-"): f
    for f in (
        mig,
        mig_chen,
        factor_vae,
        beta_vae,
        dci,
        sap,
        modularity,
        explicitness,
        irs,
        unsupervised,
    )
}
"""Metrics of one table, by the names of the command line."""


def evaluate(
    table: CodeTable,
    names: Iterable[str],
    *,
    seed: int = 0,
    options: Mapping[str, Mapping[str, Any]] | None = None,
) -> dict[str, Any]:
    """Metrics as what JSON can hold.

    Args:
        table: the codes.
        names: keys of `METRICS`.
        seed: of every metric.
        options: keyword arguments of a metric, by its name.

    Returns:
        for each name a dict of the fields of its result; arrays are nested lists, NaN and infinity are None.

    Raises:
        ValueError: an unknown name, and whatever a metric raises.
    """
    names, options = list(names), options or {}
    for name in (*names, *options):
        if name not in METRICS:
            raise ValueError(f"unknown metric {name!r}; there are {', '.join(METRICS)}")
    return {name: _plain(METRICS[name](table, seed=seed, **options.get(name, {}))) for name in names}


def _plain(value: Any) -> Any:
    if hasattr(value, "_asdict"):
        return {key: _plain(part) for key, part in value._asdict().items()}
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist())
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
