"""The finished models of a study on one data set, as arrays."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import numpy.typing as npt

from pyvae.engine.run import RunDirectory
from pyvae.errors import RunError
from pyvae.report.glossary import TERMS
from pyvae.studies.analysis import LEAST_PAIRS, differ
from pyvae.studies.plan import Model, StudyPlan
from pyvae.studies.results import Row

Column = npt.NDArray[np.float64]
Setting = tuple[tuple[str, Any], ...]
"""Swept hyperparameters of a model, (name, value) each."""

_CHECKS_OF_FITS = ("train", "evaluation", "error")
"""Parts of a metric that say how well its own classifier was fitted or how sure it is, and nothing of a model."""
_LOWEST = ("recon", "kl", "unsupervised", "total-correlation")
AS_IT_IS = "as the recipe has it"
"""The setting of a method without hyperparameters that are swept."""


@dataclass(frozen=True)
class Cohort:
    """N models on one data set."""

    data: str
    """What the data set is called on the page."""
    models: Sequence[Model]
    columns: Mapping[str, Column]
    """"recon", "kl", then scores, ``[N]`` each; NaN where not known."""

    @cached_property
    def methods(self) -> list[str]:
        """Of each model."""
        return [model.method for model in self.models]

    @cached_property
    def settings(self) -> list[Setting]:
        """Of each model."""
        return [setting_of(model) for model in self.models]

    @cached_property
    def scores(self) -> dict[str, Column]:
        """Columns that are neither the loss nor parts of it."""
        return {name: column for name, column in self.columns.items() if name not in ("recon", "kl")}

    @cached_property
    def rows(self) -> dict[str, npt.NDArray[np.int64]]:
        """Models of each method, in the order of the plan."""
        found: dict[str, list[int]] = {}
        for i, model in enumerate(self.models):
            found.setdefault(model.method, []).append(i)
        return {method: np.array(at) for method, at in found.items()}

    @cached_property
    def cells(self) -> dict[tuple[str, Setting], list[int]]:
        """Models of each method and setting, by their seed."""
        found: dict[tuple[str, Setting], list[int]] = {}
        for i in sorted(range(len(self.models)), key=lambda i: self.models[i].recipe.seed):
            found.setdefault((self.methods[i], self.settings[i]), []).append(i)
        return found

    def with_column(self, name: str, column: Column) -> Cohort:
        """The same with one column more, where it has a value at all."""
        if not np.isfinite(column).any():
            return self
        return Cohort(self.data, self.models, {**self.columns, name: column})


def cohorts_of(plan: StudyPlan, rows: Iterable[Row]) -> list[Cohort]:
    """Models that are through, of each data set, in the order of the plan; data sets without one are left out."""
    done = {row.model: row for row in rows if is_through(row)}
    labels = labels_of(model.recipe.data for model in plan.models)
    there: dict[str, list[Model]] = {}
    for model in plan.models:
        if model.name in done:
            there.setdefault(model.recipe.data, []).append(model)
    return [_cohort(labels[data], models, done, plan.metrics) for data, models in there.items()]


def _cohort(label: str, models: Sequence[Model], done: Mapping[str, Row], metrics: Sequence[str]) -> Cohort:
    found = [done[model.name] for model in models]
    # the first metric of the plan comes first, then what else was scored
    there = dict.fromkeys(name for row in found for name in row.scores if _is_of_model(name))
    order = sorted(there, key=lambda name: (_place(name, metrics), list(there).index(name)))
    columns = {"recon": _column(r.recon for r in found), "kl": _column(r.kl for r in found)}
    columns |= {name: _column(r.scores.get(name) for r in found) for name in order}
    return Cohort(label, models, {name: c for name, c in columns.items() if np.isfinite(c).any()})


def _is_of_model(name: str) -> bool:
    part = name.partition(".")[2]
    return not any(word in _CHECKS_OF_FITS for word in part.split("_"))


def _place(name: str, metrics: Sequence[str]) -> int:
    """Of the metric that a score is of, or a part of."""
    return next((i for i, metric in enumerate(metrics) if name.split(".")[0] == metric), len(metrics))


def _column(values: Iterable[float | None]) -> Column:
    found = np.array([np.nan if value is None else value for value in values], dtype=np.float64)
    return np.where(np.isfinite(found), found, np.nan)


def is_through(row: Row) -> bool:
    """Whether a model was trained to its end, and nothing went wrong."""
    return not row.failure


def open_run(out: Path, model: Model) -> RunDirectory:
    """The run of a model.

    Raises:
        RunError: it is gone, or no run.
    """
    path = out / model.name
    if not path.exists():
        raise RunError("the runs are not beside results.csv any more")
    return RunDirectory.open(path)


def labels_of(names: Iterable[str]) -> dict[str, str]:
    """The last part of each path, where that names it alone."""
    there = list(dict.fromkeys(names))
    short = {name: PurePath(name).name or name for name in there}
    return {name: short[name] if list(short.values()).count(short[name]) == 1 else name for name in there}


def setting_of(model: Model) -> Setting:
    """The swept hyperparameters of a model, as a key."""
    return tuple((name, _hashable(value)) for name, value in model.settings.items())


def _hashable(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def describe(setting: Iterable[tuple[str, Any]]) -> str:
    """ "beta 4, lr 0.0001"."""
    return ", ".join(f"{name.replace('_', ' ')} {show(value)}" for name, value in setting) or AS_IT_IS


def show(value: Any) -> str:
    """A value of a hyperparameter."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def title_of(score: str) -> str:
    """What a column is called in figures and tables."""
    if (found := TERMS.get(score)) is not None:
        return f"{found.name}, {found.unit}" if found.unit else found.name
    return score.replace("_", " ").replace(".", " ")


def lower_is_better(score: str) -> bool:
    """Whether the least is the best: losses, and how far latents are from independent."""
    return score.split(".")[0] in _LOWEST


def is_supervised(score: str) -> bool:
    """Whether it is computed from the factors."""
    return score.split(".")[0] not in (*_LOWEST, "udr")


def enough(column: Column) -> bool:
    """Whether there are values to rank, and they differ."""
    known = column[np.isfinite(column)]
    return len(known) >= LEAST_PAIRS and differ(known)
