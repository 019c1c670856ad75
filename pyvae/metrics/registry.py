"""The metrics by name."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from inspect import signature
from typing import Any, NamedTuple, get_args, get_type_hints

import numpy as np
from torch import Tensor

from pyvae.metrics.beta_vae import beta_vae, check_beta_vae
from pyvae.metrics.dci import check_dci, dci
from pyvae.metrics.factor_vae import check_factor_vae, factor_vae
from pyvae.metrics.irs import check_irs, irs
from pyvae.metrics.layout import Layout, Outline, check_count
from pyvae.metrics.mig import check_mig, mig
from pyvae.metrics.mig_chen import check_mig_chen, mig_chen
from pyvae.metrics.modularity import check_explicitness, check_modularity, explicitness, modularity
from pyvae.metrics.sap import check_sap, sap
from pyvae.metrics.table import CodeTable
from pyvae.metrics.total_correlation import check_total_correlation, total_correlation
from pyvae.metrics.unsupervised import check_unsupervised, unsupervised

_CHECKED: dict[Callable[..., Any], Callable[..., Any]] = {
    mig: check_mig,
    mig_chen: check_mig_chen,
    factor_vae: check_factor_vae,
    beta_vae: check_beta_vae,
    dci: check_dci,
    sap: check_sap,
    modularity: check_modularity,
    explicitness: check_explicitness,
    irs: check_irs,
    unsupervised: check_unsupervised,
    total_correlation: check_total_correlation,
}
METRICS: dict[str, Callable[..., Any]] = {f.__name__.replace("_", "-"): f for f in _CHECKED}
"""Metrics of one table, by the names of the command line."""
OF_GRID = frozenset({"mig-chen", "factor-vae", "beta-vae"})
"""Metrics that intervene on factors, and so need a code of every combination of classes."""
OF_VARIANCES = frozenset({"mig-chen", "total-correlation"})
"""Metrics that read the variance of a posterior, not only the mean of a code."""
WITHOUT_FACTORS = frozenset({"unsupervised", "total-correlation"})
"""Metrics that need no factors."""
_CHECKS = {name: _CHECKED[f] for name, f in METRICS.items()}

Options = Mapping[str, Mapping[str, Any]]


class Evaluation(NamedTuple):
    """What could be computed, as :func:`evaluate` gives it; of each other metric, the line that says why not."""

    scores: dict[str, Any]
    reasons: dict[str, str]


def evaluate(
    table: CodeTable,
    names: Iterable[str],
    *,
    seed: int = 0,
    options: Options | None = None,
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
        ValueError: an unknown name, and whatever a metric raises. TypeError: an option that a metric does not have.
    """
    names, options = check_names(names, options)
    return {name: _plain(METRICS[name](table, seed=seed, **options.get(name, {}))) for name in names}


def evaluate_possible(
    table: CodeTable,
    names: Iterable[str],
    *,
    seed: int = 0,
    options: Options | None = None,
) -> Evaluation:
    """As :func:`evaluate`, but a metric that cannot be computed of these codes leaves the others standing.

    Args:
        table: the codes.
        names: keys of `METRICS`.
        seed: of every metric.
        options: keyword arguments of a metric, by its name.

    Returns:
        ``scores`` of the metrics that could be computed, and ``reasons``: why the others could not, one line each.

    Raises:
        ValueError: an unknown name. TypeError: an option that a metric does not have, or of the wrong type.
    """
    names, options = check_names(names, options)
    found = Evaluation({}, {})
    for name in names:
        score, reason = _tried(METRICS[name], table, seed=seed, **options.get(name, {}))
        if reason is None:
            found.scores[name] = _plain(score)
        else:
            found.reasons[name] = reason
    return found


def unavailable(
    names: Iterable[str],
    *,
    latents: int,
    rows: int | None = None,
    factor_names: Sequence[str] = (),
    factor_sizes: Sequence[int] = (),
    grid: bool = True,
    factors: Tensor | None = None,
    seed: int = 0,
    options: Options | None = None,
) -> dict[str, str]:
    """Which metrics cannot be computed, and why, before anything is encoded.

    A metric not named here may still fail on the codes themselves, as NaN does.

    Args:
        names: keys of `METRICS`.
        latents: D, of the codes to come.
        rows: how many images there will be; by default those of the full grid.
        factor_names: of the factors; none for data whose factors are not known.
        factor_sizes: number of classes of each factor.
        grid: whether the images are the full grid of the factors, in order.
        factors: classes int64 ``[N, F]`` of images that are not the grid, if they are known.
        seed: of every metric; it says which points are drawn, and so which classes are among them.
        options: keyword arguments of a metric, by its name.

    Returns:
        for each metric that cannot be computed the line that it would raise; empty if all can be.

    Raises:
        ValueError: an unknown name, factors that do not fit one another, no number of rows.
        TypeError: an option that a metric does not have, or of the wrong type.

    >>> unavailable(["mig", "irs"], latents=1, factor_names=["a", "b"], factor_sizes=[300, 400])
    {'mig': 'mig compares latents: it needs at least 2, got 1'}
    """
    names, options = check_names(names, options)
    check_count("latents", latents, 1)
    grid = grid and factors is None
    if rows is None:
        if not (grid and factor_sizes) and factors is None:
            raise ValueError("rows: say how many images there will be")
        rows = math.prod(factor_sizes) if factors is None else len(factors)
    check_count("rows", rows, 1)
    layout = Outline(rows, latents, tuple(factor_names), tuple(factor_sizes), grid, factors)
    found = {name: _tried(check, name, layout, seed, options.get(name, {}))[1] for name in names}
    return {name: reason for name, reason in found.items() if reason is not None}


def check(name: str, layout: Layout, seed: int, options: Mapping[str, Any]) -> None:
    """Raise ValueError, as the metric would, if it cannot be computed of a table of this layout."""
    values = {**defaults(name), **options, "seed": seed}
    _CHECKS[name](layout, **{k: values[k] for k in signature(_CHECKS[name]).parameters if k in values})


def defaults(name: str) -> dict[str, Any]:
    """The options of a metric, and what each is by default."""
    parameters = [p for p in signature(METRICS[name]).parameters.values() if p.kind is p.KEYWORD_ONLY]
    return {p.name: p.default for p in parameters if p.name != "seed"}


def reads_variances(name: str, options: Mapping[str, Any] | None = None) -> bool:
    """Whether a metric, with these options, reads the log-variances of the posteriors beside their means."""
    return name in OF_VARIANCES or {**defaults(name), **(options or {})}.get("prune") == "kl"


def fitted(name: str, options: Mapping[str, Any], rows: int) -> dict[str, Any]:
    """Options with which a metric does with so many rows: all of them for points, the same shares to train and test."""
    fits, values = dict(options), {**defaults(name), **options}
    for option in ("points", "variance_points"):
        if values.get(option) is not None and values[option] > rows:
            fits[option] = None
    if "test" in values and values["train"] + values["test"] > rows:
        fits["train"] = max(rows * values["train"] // (values["train"] + values["test"]), 2)
        fits["test"] = max(rows - fits["train"], 2)
    return fits


def numbers(name: str) -> list[str]:
    """Which fields of a metric's result are single numbers."""
    kinds = get_type_hints(get_type_hints(METRICS[name])["return"])
    return [field for field, kind in kinds.items() if kind is float or float in get_args(kind)]


def check_names(names: Iterable[str], options: Options | None) -> tuple[list[str], Options]:
    """The names as a list, and the options; raise unless both are of known metrics."""
    if isinstance(names, str):
        names = [names]
    names, options = list(names), options or {}
    for name in (*names, *options):
        if name not in METRICS:
            raise ValueError(f"unknown metric {name!r}; there are {', '.join(METRICS)}")
    for name, given in options.items():
        if strange := [option for option in given if option not in defaults(name)]:
            raise TypeError(f"{name} has no option {strange[0]!r}; there are {', '.join(defaults(name))}")
    return names, options


def _tried(f: Callable[..., Any], *args: Any, **options: Any) -> tuple[Any, str | None]:
    """What a function gives, or on one line the ValueError that it raises; those of other libraries have several."""
    try:
        return f(*args, **options), None
    except ValueError as error:
        return None, " ".join(str(error).split()) or type(error).__name__


def _plain(value: Any) -> Any:
    if hasattr(value, "_asdict"):
        return {key: _plain(part) for key, part in value._asdict().items()}
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist())
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
