"""What is known of a table of codes before anything is encoded: its size and its factors."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor


class TooFewCodes(ValueError):
    """More codes of the same kind would do: fewer rows than asked for, a grid with gaps, a class not seen yet."""


class Layout:
    """Rows, latents and factors of a table: what every metric checks before it reads a code.

    Attributes:
        factor_names: F names; none for data whose factors are not known.
        factor_sizes: number of classes of each factor.
        factors: int64 ``[N, F]``, classes of each row; None for the full grid, and where they are not known yet.
    """

    factor_names: tuple[str, ...]
    factor_sizes: tuple[int, ...]
    factors: Tensor | None

    def __len__(self) -> int:
        raise NotImplementedError

    @property
    def latents(self) -> int:
        """D."""
        raise NotImplementedError

    @property
    def grid(self) -> bool:
        """Whether the rows are the full grid of the factors, in mixed-radix order with the last the fastest."""
        return self.factors is None

    @property
    def knows_classes(self) -> bool:
        """Whether :meth:`classes` has an answer."""
        return bool(self.factor_names) and (self.grid or self.factors is not None)

    @cached_property
    def strides(self) -> Tensor:
        """int64 ``[F]``: how many rows of the full grid apart two neighbouring classes of a factor are."""
        sizes = self.factor_sizes
        return torch.tensor([math.prod(sizes[f + 1 :]) for f in range(len(sizes))])

    def classes(self, rows: Tensor | None = None) -> Tensor:
        """int64 ``[len(rows), F]``: factor classes of rows, of all rows by default."""
        if self.factors is not None:
            return self.factors if rows is None else self.factors[rows]
        rows = torch.arange(len(self)) if rows is None else rows
        return rows[:, None] // self.strides % torch.tensor(self.factor_sizes)

    def class_of(self, rows: Tensor, factor: Tensor) -> Tensor:
        """int64: the class of one factor for each row of the full grid; ``rows`` and ``factor`` broadcast."""
        return rows // self.strides[factor] % torch.tensor(self.factor_sizes)[factor]

    def with_class(self, rows: Tensor, factor: Tensor, classes: Tensor) -> Tensor:
        """int64: the rows of the full grid that differ from ``rows`` in the class of one factor alone."""
        return rows + (classes - self.class_of(rows, factor)) * self.strides[factor]

    def kept(self, without: Collection[str]) -> list[int]:
        """Positions of the factors that are not left out.

        Raises:
            ValueError: no factors are known, a name that is no factor, or none is kept.
        """
        if not self.factor_names:
            raise ValueError("the factors behind these codes are not known, and this metric needs them")
        if isinstance(without, str):
            without = (without,)
        for name in without:
            if name not in self.factor_names:
                raise ValueError(f"without: no factor {name!r}; there are {', '.join(self.factor_names)}")
        kept = [f for f, name in enumerate(self.factor_names) if name not in without]
        if not kept:
            raise ValueError("without: every factor is left out")
        return kept

    def names(self, kept: list[int]) -> tuple[str, ...]:
        """Names of the factors at these positions."""
        return tuple(self.factor_names[f] for f in kept)

    def sizes(self, kept: list[int]) -> tuple[int, ...]:
        """Sizes of the factors at these positions."""
        return tuple(self.factor_sizes[f] for f in kept)

    def require_grid(self, metric: str) -> None:
        """Raise ValueError unless this is the full grid."""
        if not self.grid:
            raise TooFewCodes(f"{metric} intervenes on factors: it needs the codes of the full grid")

    def require_latents(self, metric: str) -> None:
        """Raise ValueError unless there are two latents to compare."""
        if self.latents < 2:
            raise ValueError(f"{metric} compares latents: it needs at least 2, got {self.latents}")

    def require_factors(self, metric: str, kept: list[int]) -> None:
        """Raise ValueError unless two factors are kept to compare."""
        if len(kept) < 2:
            raise ValueError(
                f"{metric} compares factors: it needs at least 2, got {', '.join(self.names(kept))}"
            )

    def require_sizes(self, kept: list[int]) -> None:
        """Raise ValueError unless every kept factor has two classes."""
        for name, size in zip(self.names(kept), self.sizes(kept), strict=True):
            if size < 2:
                raise ValueError(f"factor {name} has one class: leave it out with without={name!r}")

    def require_varied(self, rows: Tensor, kept: list[int]) -> None:
        """Raise ValueError unless every kept factor takes two classes at least in these rows, where that is known."""
        self.require_sizes(kept)
        if not self.knows_classes:
            return
        classes = self.classes(rows)[:, kept]
        for f, constant in zip(kept, (classes == classes[:1]).all(0).tolist(), strict=True):
            if constant:
                name = self.factor_names[f]
                raise TooFewCodes(
                    f"factor {name} has one class among the points: leave it out with without={name!r}"
                )


@dataclass(frozen=True, eq=False)
class Outline(Layout):
    """A table that has not been encoded yet.

    Attributes:
        rows: how many images it will have.
        columns: how many latents.
        factor_names: names of the factors, none where they are not known.
        factor_sizes: number of classes of each.
        full: whether the rows are the full grid of the factors.
        factors: classes of each row, where they are known and the rows are not the grid.
    """

    rows: int
    columns: int
    factor_names: tuple[str, ...] = ()
    factor_sizes: tuple[int, ...] = ()
    full: bool = True
    factors: Tensor | None = None

    def __post_init__(self) -> None:
        check_factors(self.factor_names, self.factor_sizes)
        if self.full and self.factor_names and self.rows != math.prod(self.factor_sizes):
            raise ValueError(
                f"rows: {self.rows} are not the full grid of {self.factor_sizes}, which has "
                f"{math.prod(self.factor_sizes)}"
            )

    def __len__(self) -> int:
        return self.rows

    @property
    def latents(self) -> int:
        """D."""
        return self.columns

    @property
    def grid(self) -> bool:
        """Whether the rows will be the full grid of the factors."""
        return self.full


def check_layout(table: object) -> None:
    """Raise TypeError unless this is a table of codes, or the outline of one."""
    if not isinstance(table, Layout):
        raise TypeError(f"table: expected a CodeTable, got {type(table).__name__}")


def check_factors(names: Sequence[str], sizes: Sequence[int]) -> None:
    """Raise unless every factor has a name of its own and a whole number of classes, at least one."""
    if isinstance(names, str):
        raise TypeError(f"factor_names: expected strings, got the one string {names!r}")
    if len(names) != len(sizes):
        raise ValueError(f"factor_sizes: {tuple(sizes)} does not fit the names {tuple(names)}")
    for name in names:
        if not isinstance(name, str):
            raise TypeError(f"factor_names: expected strings, got {name!r}")
    if len(set(names)) < len(names):
        raise ValueError(f"factor_names: a name stands twice in {', '.join(map(repr, names))}")
    for size in sizes:
        check_count("factor_sizes", size, 1)


def check_count(option: str, value: Any, least: int) -> None:
    """Raise TypeError unless an option is a whole number, ValueError unless it is large enough."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{option}: expected a whole number, got {value!r}")
    if int(value) < least:
        raise ValueError(f"{option}: at least {least} needed, got {value}")


def check_number(option: str, value: Any) -> None:
    """Raise unless an option is a finite number."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{option}: expected a number, got {value!r}")
    if not math.isfinite(value):
        raise ValueError(f"{option}: expected a finite number, got {value}")


def check_tolerance(tol: Any) -> None:
    """Raise unless the tolerance of a quadrature is a finite number above 0."""
    check_number("tol", tol)
    if tol <= 0:
        raise ValueError(f"tol: expected more than 0, got {tol}")
