"""Metrics of codes that come batch by batch, as in a validation loop."""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Mapping, Sequence
from itertools import chain, zip_longest
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyvae.base.checks import check_float
from pyvae.metrics.layout import Outline, TooFewCodes, check_factors
from pyvae.metrics.registry import OF_GRID, check, check_names, evaluate, fitted, numbers, reads_variances
from pyvae.metrics.table import CodeTable, check_classes, check_codes

_SAME = 1e-2
"""Codes of one image, encoded in other batches, differ by rounding: far less than this share of their spread."""
_MANY = 100_000
_ROUNDING = 2.0**-8
"""Of bfloat16, relative to the code: all that is left of the spread where an encoder has collapsed."""


class _Batch(NamedTuple):
    mu: Tensor
    logvar: Tensor | None
    factors: Tensor
    rows: Tensor | None


class StreamedMetrics:
    """Any of :data:`pyvae.metrics.METRICS` with torchmetrics' three calls: ``update``, ``compute``, ``reset``.

    The results are those of :func:`pyvae.metrics.evaluate` on the table of all codes that were fed, in the order of
    feeding, or in that of the grid where every combination of factor classes came exactly once. Nothing is left out:
    without ``reset`` a second epoch is added to the first. Only who gives ``update`` the ``rows`` of the images has
    each of them counted once, with its newest code: so what a distributed sampler repeats to fill its last batch adds
    nothing, and a second epoch replaces the first.

    mig-chen, factor-vae and beta-vae intervene on factors. They need a code of every combination of classes, and of
    each only one: codes that agree up to rounding, as those of repeated images, are taken for one; others are refused.

    Codes are kept on the CPU. In a distributed run every process computes from the codes of all.

    Args:
        names: of the metrics.
        factor_sizes: number of classes of each factor.
        factor_names: of the factors; by default factor0, factor1, ...
        seed: of what the metrics draw.
        options: keyword arguments of a metric, by its name.

    Raises:
        ValueError: unknown metric, no factor, other numbers of names than of sizes, an option that cannot be.
        TypeError: an option that a metric does not have, or of the wrong type.

    >>> import torch
    >>> classes = torch.cartesian_prod(torch.arange(4), torch.arange(5))
    >>> metrics = StreamedMetrics(["mig"], (4, 5), options={"mig": {"points": None}})
    >>> for batch in classes.split(7):
    ...     metrics.update(batch.float(), batch)  # codes that are the factors
    >>> round(metrics.compute()["mig"]["score"], 3)
    1.0
    """

    def __init__(
        self,
        names: Sequence[str],
        factor_sizes: Sequence[int],
        factor_names: Sequence[str] | None = None,
        *,
        seed: int = 0,
        options: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        known, given = check_names(names, options)
        self.names = tuple(known)
        self._options = {name: dict(given.get(name, {})) for name in self.names}
        if not len(factor_sizes):  # an array has no truth value
            raise ValueError("factor_sizes: give the number of classes of each factor")
        self.factor_sizes = tuple(size.item() if hasattr(size, "item") else size for size in factor_sizes)
        self.factor_names = tuple(factor_names or (f"factor{f}" for f in range(len(self.factor_sizes))))
        check_factors(self.factor_names, self.factor_sizes)
        self._seed = seed
        self._of_variances = [name for name in self.names if reads_variances(name, self._options[name])]
        self._warned: set[str] = set()
        self._check(latents=2)
        self.reset()

    def reset(self) -> None:
        """Forget all codes."""
        self._batches: list[_Batch] = []

    def update(
        self, mu: Tensor, factors: Tensor, logvar: Tensor | None = None, *, rows: Tensor | None = None
    ) -> None:
        """Take a batch.

        Args:
            mu: codes, the means of the posteriors: ``[B, D]`` or ``[B, D, 1, 1]``, any float dtype and device.
            factors: classes ``[B, F]`` of any integer dtype or bool, each from 0 on; not the values of the factors.
            logvar: of the posteriors, of the shape of ``mu``; mig-chen needs it, and factor-vae with ``prune="kl"``.
            rows: which image of the data set each code is of, integers ``[B]``: an image that comes twice counts once,
                with its newest code. The number of its combination of classes makes each combination count once. To be
                given with every batch or with none.

        Raises:
            ValueError: shapes that do not fit one another, NaN or infinity, a class out of range, no ``logvar`` for a
                metric that reads it, fewer latents than a metric compares.
            TypeError: codes that are no floats, factors or rows that are no integers.
        """
        mu = _columns("mu", mu)
        if logvar is not None and (logvar := _columns("logvar", logvar)).shape != mu.shape:
            raise ValueError(f"logvar: expected the shape of mu {list(mu.shape)}, got {list(logvar.shape)}")
        if logvar is None and self._of_variances:
            raise ValueError(f"logvar: {', '.join(self._of_variances)} cannot do without")
        factors = _integers(
            "factors",
            factors,
            "these are classes, numbered from 0 on; of values, take torch.unique(column, return_inverse=True)[1]",
        )
        check_classes(factors, len(mu), self.factor_names, self.factor_sizes)
        if rows is not None:
            rows = _integers("rows", rows, "the position of each image in the data set")
            if rows.shape != (len(mu),):
                raise ValueError(f"rows: expected shape {[len(mu)]}, got {list(rows.shape)}")
        if self._batches:
            _check_alike(self._batches[0], mu, rows)
        else:
            self._check(latents=mu.shape[1])
        if len(mu):
            self._batches.append(_Batch(mu, logvar if self._of_variances else None, factors, rows))

    def compute(self) -> dict[str, dict[str, Any]]:
        """For each metric the fields of its result, as :func:`pyvae.metrics.evaluate` gives them.

        Of fewer codes than a metric draws points, all are taken; of fewer than it trains and tests on, the same shares.
        A metric that needs codes which have not come yet, as in the two batches of Lightning's sanity check, or that
        cannot be computed of these, as one that intervenes on factors where a combination of classes has several
        codes, has NaN for each of its numbers and a "reason". A warning says either, once for each metric.

        Raises:
            ValueError: no batch yet, one of ``rows`` with two combinations of classes; none of the metrics can be
                computed, not for want of codes.
        """
        batches = _of_all_processes(self._batches)
        if not batches:
            raise ValueError("no codes yet: call update first")
        for batch in batches:
            _check_alike(batches[0], batch.mu, batch.rows)
        table = self._table(batches)
        failed: dict[str, ValueError] = {}
        results = {name: self._result(name, table, failed) for name in self.names}
        if failed and len(failed) == len(self.names):
            raise next(iter(failed.values()))
        return results

    def _check(self, latents: int) -> None:
        """Raise what no further codes would mend."""
        # of rows that are no grid, few and many; what they are not enough for is said when results are asked for
        for rows in (4, _MANY):
            layout = Outline(rows, latents, self.factor_names, self.factor_sizes, full=False)
            for name in self.names:
                with contextlib.suppress(TooFewCodes):
                    check(name, layout, self._seed, self._options[name])

    def _table(self, batches: list[_Batch]) -> CodeTable:
        mu = torch.cat([batch.mu for batch in batches])
        factors = torch.cat([batch.factors for batch in batches])
        given = [batch.logvar for batch in batches if batch.logvar is not None]
        logvar = torch.cat(given) if given else torch.zeros_like(mu)
        rows = [batch.rows for batch in batches if batch.rows is not None]
        if rows:
            newest = _newest(torch.cat(rows), factors)
            mu, logvar, factors = mu[newest], logvar[newest], factors[newest]
        table = CodeTable(mu, logvar, self.factor_names, self.factor_sizes, factors)
        if len(table) == math.prod(self.factor_sizes):
            point = (factors * table.strides).sum(1)
            order = point.argsort()
            if bool((point[order] == torch.arange(len(table))).all()):
                return CodeTable(mu[order], logvar[order], self.factor_names, self.factor_sizes)
        return table

    def _result(self, name: str, table: CodeTable, failed: dict[str, ValueError]) -> dict[str, Any]:
        try:
            if name in OF_GRID:
                table = _grid(name, table)
            options = fitted(name, self._options[name], len(table))
            found: dict[str, Any] = evaluate(table, [name], seed=self._seed, options={name: options})[name]
        except TooFewCodes as error:
            self._warn(name, f"not yet: {error}")
            return {**dict.fromkeys(numbers(name), math.nan), "reason": str(error)}
        except ValueError as error:
            failed[name] = error
            self._warn(name, f"not computed: {error}")
            return {**dict.fromkeys(numbers(name), math.nan), "reason": str(error)}
        if options != self._options[name]:
            self._warn(name, f"of {len(table)} codes, fewer than it takes: its points are fewer too")
        return found

    def _warn(self, name: str, message: str) -> None:
        if name not in self._warned:
            self._warned.add(name)
            warnings.warn(f"{name}, {message}", stacklevel=4)


def _columns(name: str, x: Tensor) -> Tensor:
    """A copy float32 ``[B, D]`` on the CPU, for a loop may write into its tensors again."""
    check_float(name, x)
    if x.ndim < 2 or x.shape[1] == 0 or math.prod(x.shape[2:]) != 1:
        raise ValueError(f"{name}: expected shape [B, D] or [B, D, 1, 1], got {list(x.shape)}")
    kept = x.detach().flatten(1).to("cpu", torch.float32, copy=True)
    check_codes(name, kept)
    return kept


def _integers(name: str, x: Tensor, meaning: str) -> Tensor:
    """A copy int64 on the CPU."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{name}: expected a tensor, got {type(x).__name__}")
    if x.is_floating_point() or x.is_complex():
        raise TypeError(f"{name}: expected integers, got {x.dtype}: {meaning}")
    return x.detach().to("cpu", torch.int64, copy=True)


def _check_alike(first: _Batch, mu: Tensor, rows: Tensor | None) -> None:
    """Raise unless a batch has the latents of the first, and rows if that has."""
    if first.mu.shape[1] != mu.shape[1]:
        raise ValueError(f"mu: {mu.shape[1]} latents after batches of {first.mu.shape[1]}")
    if (first.rows is None) != (rows is None):
        raise ValueError("rows: given with some batches and not with others")


def _newest(rows: Tensor, factors: Tensor) -> Tensor:
    """Positions of the last code of each row, in the order of the rows."""
    known, own = rows.unique(return_inverse=True)
    newest = torch.zeros_like(known).scatter_reduce(0, own, torch.arange(len(rows)), "amax")
    other = (factors != factors[newest][own]).any(1)
    if bool(other.any()):
        raise ValueError(f"rows: row {int(rows[other][0])} came with two combinations of factor classes")
    return newest


def _grid(name: str, table: CodeTable) -> CodeTable:
    """The full grid of codes, one of each combination of classes."""
    if table.grid:
        return table
    assert table.factors is not None
    images = math.prod(table.factor_sizes)
    if images < 2**63:
        known, own = (table.factors * table.strides).sum(1).unique(return_inverse=True)
    else:
        known, own = table.factors.unique(dim=0, return_inverse=True)
    last = len(table)
    first = torch.full((len(known),), last).scatter_reduce(0, own, torch.arange(last), "amin")
    differs = torch.zeros(last, dtype=torch.bool)
    for codes in (table.mu.double(), table.logvar.double()):
        spread = codes.var(0, unbiased=False).sum()
        rounding = _ROUNDING**2 * codes.square().sum(1)
        differs |= (codes - codes[first][own]).square().sum(1) > _SAME**2 * spread + rounding
    if bool(differs.any()):
        raise ValueError(
            f"{name} needs one code of each combination of factor classes, and {len(own[differs].unique())} came with "
            "several that differ: call reset() between epochs, or give update the rows of the images; data with "
            "several images of a combination it cannot score"
        )
    if len(known) < images:
        raise TooFewCodes(
            f"{name} intervenes on factors: it needs the codes of the full grid, and {images - len(known)} of its "
            f"{images} combinations of classes have not come"
        )
    return CodeTable(table.mu[first], table.logvar[first], table.factor_names, table.factor_sizes)


def _of_all_processes(batches: list[_Batch]) -> list[_Batch]:
    """Those of every process, in the order in which they came."""
    distributed = torch.distributed
    if not (distributed.is_available() and distributed.is_initialized()):
        return batches
    gathered: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(gathered, batches)
    return [batch for batch in chain(*zip_longest(*gathered)) if batch is not None]
