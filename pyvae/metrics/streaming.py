"""Metrics of codes that come batch by batch, as in a validation loop."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pyvae.metrics.registry import METRICS, evaluate
from pyvae.metrics.table import CodeTable

_OF_POSTERIORS = {"mig-chen", "factor-vae", "unsupervised"}
"""Metrics that look at log-variances."""


class StreamedMetrics:
    """Any of :data:`pyvae.metrics.METRICS` with torchmetrics' three calls: ``update``, ``compute``, ``reset``.

    The results are those of :func:`pyvae.metrics.evaluate` on all codes at once. Batches may come in any order; when
    they have held every combination of factor classes, metrics that intervene on factors (mig-chen, factor-vae,
    beta-vae) work too, and what a distributed sampler repeated to fill its last batch counts once. Codes are kept on
    the CPU. In a distributed run every process computes from the codes of all.

    Args:
        names: of the metrics.
        factor_sizes: number of classes of each factor.
        factor_names: of the factors; by default factor0, factor1, ...
        seed: of what the metrics draw.
        options: keyword arguments of a metric, by its name.

    Raises:
        ValueError: unknown metric, no factor, or other numbers of names than of sizes.

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
        for name in names:
            if name not in METRICS:
                raise ValueError(f"unknown metric {name!r}; there are {', '.join(METRICS)}")
        if not factor_sizes:
            raise ValueError("factor_sizes: give the number of classes of each factor")
        self.names = tuple(names)
        self.factor_sizes = tuple(factor_sizes)
        self.factor_names = tuple(factor_names or (f"factor{f}" for f in range(len(self.factor_sizes))))
        if len(self.factor_names) != len(self.factor_sizes):
            raise ValueError(f"factor_names: {self.factor_names} does not fit the sizes {self.factor_sizes}")
        self._seed = seed
        self._options = options
        self.reset()

    def reset(self) -> None:
        """Forget all codes."""
        self._batches: list[tuple[Tensor, Tensor | None, Tensor]] = []

    def update(self, mu: Tensor, factors: Tensor, logvar: Tensor | None = None) -> None:
        """Take a batch.

        Args:
            mu: codes, the means of the posteriors: ``[B, D]`` or ``[B, D, 1, 1]``, any float dtype and device.
            factors: integer classes ``[B, F]``, each from 0 on.
            logvar: of the posteriors; mig-chen, factor-vae and unsupervised need it.

        Raises:
            ValueError: shapes that do not fit one another.
        """
        if mu.ndim > 2:
            mu = mu.flatten(1)
        logvar = logvar if logvar is None else logvar.reshape(mu.shape)
        if mu.ndim != 2 or factors.shape != (len(mu), len(self.factor_sizes)):
            raise ValueError(
                f"expected codes [B, D] and factors [B, {len(self.factor_sizes)}], got {list(mu.shape)} and "
                f"{list(factors.shape)}"
            )
        if self._batches and self._batches[0][0].shape[1] != mu.shape[1]:
            raise ValueError(f"mu: {mu.shape[1]} latents after batches of {self._batches[0][0].shape[1]}")
        missing = [name for name in self.names if name in _OF_POSTERIORS] if logvar is None else []
        if missing:
            raise ValueError(f"logvar: {', '.join(missing)} cannot do without")
        self._batches.append(
            (_kept(mu), None if logvar is None else _kept(logvar), factors.detach().cpu().long())
        )

    def compute(self) -> dict[str, dict[str, Any]]:
        """For each metric the fields of its result, as :func:`pyvae.metrics.evaluate` gives them.

        Raises:
            ValueError: no batch yet, and whatever a metric raises, as for codes that are not the full grid.
        """
        batches = _of_all_processes(self._batches)
        if not batches:
            raise ValueError("no codes yet: call update first")
        mu = torch.cat([batch[0] for batch in batches])
        given = [batch[1] for batch in batches if batch[1] is not None]
        logvar = torch.cat(given) if len(given) == len(batches) else torch.zeros_like(mu)
        table = self._table(mu, logvar, torch.cat([batch[2] for batch in batches]))
        return evaluate(table, self.names, seed=self._seed, options=self._options)

    def _table(self, mu: Tensor, logvar: Tensor, factors: Tensor) -> CodeTable:
        # checks the classes
        table = CodeTable(mu, logvar, self.factor_names, self.factor_sizes, factors)
        images = math.prod(self.factor_sizes)
        if len(table) < images:
            return table
        first = torch.full((images,), len(table)).scatter_reduce(
            0, (factors * table.strides).sum(1), torch.arange(len(table)), "amin"
        )
        if bool((first == len(table)).any()):
            return table
        return CodeTable(mu[first], logvar[first], self.factor_names, self.factor_sizes)


def _kept(x: Tensor) -> Tensor:
    return x.detach().float().cpu()


def _of_all_processes(batches: list[Any]) -> list[Any]:
    distributed = torch.distributed
    if not (distributed.is_available() and distributed.is_initialized()):
        return batches
    gathered: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(gathered, batches)
    return [batch for of_process in gathered for batch in of_process]
