"""The codes of a data set, encoded once, from which every metric is computed."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from pyvae.adversarial_nets import AdversarialPair
from pyvae.allocator import keep_large_buffers
from pyvae.nets import Autoencoder

if TYPE_CHECKING:
    from pyvae.data.dataset import Dataset, FactorDataset, Index


@dataclass(frozen=True, eq=False)
class CodeTable:
    """Posterior parameters of N images, and the factors that made the images.

    Attributes:
        mu: float32 ``[N, D]`` on the CPU, means of q(z|x).
        logvar: float32 ``[N, D]`` on the CPU, log-variances of q(z|x).
        factor_names: F names; none for data whose factors are not known, which serves metrics that need none.
        factor_sizes: number of classes of each factor.
        factors: int64 ``[N, F]``, classes of each row; None for the full grid: one row for every combination of
            classes, in mixed-radix order with the last factor the fastest, where the row number says them all.

    Raises:
        ValueError: shapes that do not fit one another, codes that are NaN or infinite, classes out of range.
        TypeError: anything but float32 codes and int64 factors on the CPU.
    """

    mu: Tensor
    logvar: Tensor
    factor_names: tuple[str, ...]
    factor_sizes: tuple[int, ...]
    factors: Tensor | None = None

    def __post_init__(self) -> None:
        if len(self.factor_names) != len(self.factor_sizes):
            raise ValueError(f"factor_sizes: {self.factor_sizes} does not fit the names {self.factor_names}")
        if self.mu.ndim != 2 or self.mu.numel() == 0:
            raise ValueError(f"mu: expected shape [N, D], got {list(self.mu.shape)}")
        if self.logvar.shape != self.mu.shape:
            raise ValueError(
                f"logvar: expected the shape of mu {list(self.mu.shape)}, got {list(self.logvar.shape)}"
            )
        for name, x in (("mu", self.mu), ("logvar", self.logvar)):
            _check_dtype(name, x, torch.float32)
            if not bool(torch.isfinite(x).all()):
                column = int((~torch.isfinite(x)).any(0).nonzero()[0])
                raise ValueError(f"{name}: latent {column} holds NaN or infinity: has the training diverged?")
        if self.factors is None:
            if self.factor_sizes and len(self) != math.prod(self.factor_sizes):
                raise ValueError(
                    f"mu: {len(self)} rows are not the full grid of {self.factor_sizes}, which has "
                    f"{math.prod(self.factor_sizes)}: give the factors of each row"
                )
        else:
            self._check_factors(self.factors)

    def _check_factors(self, factors: Tensor) -> None:
        _check_dtype("factors", factors, torch.int64)
        if factors.shape != (len(self), len(self.factor_sizes)):
            raise ValueError(
                f"factors: expected shape {[len(self), len(self.factor_sizes)]}, got {list(factors.shape)}"
            )
        wrong = ((factors < 0) | (factors >= torch.tensor(self.factor_sizes))).any(0)
        if bool(wrong.any()):
            factor = int(wrong.nonzero()[0])
            raise ValueError(
                f"factors: a class of {self.factor_names[factor]} is not in [0, {self.factor_sizes[factor]})"
            )

    def __len__(self) -> int:
        return len(self.mu)

    @property
    def latents(self) -> int:
        """D."""
        return self.mu.shape[1]

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
        if self.factors is not None:
            raise ValueError(f"{metric} intervenes on factors: it needs the codes of the full grid")

    def require_latents(self, metric: str) -> None:
        """Raise ValueError unless there are two latents to compare."""
        if self.latents < 2:
            raise ValueError(f"{metric} compares latents: it needs at least 2, got {self.latents}")

    def mean_kl(self, rows: Tensor | None = None) -> Tensor:
        """float64 ``[D]``: KL(q(z_j|x) || N(0, 1)) in nats, averaged over rows, over all by default."""
        mu, logvar = (x.double() if rows is None else x[rows].double() for x in (self.mu, self.logvar))
        return 0.5 * (mu.square() + logvar.exp() - logvar - 1).mean(0)


def encode(
    net: Autoencoder | AdversarialPair,
    dataset: Dataset,
    *,
    device: torch.device | str,
    batch_size: int | None = None,
    index: Index | None = None,
    images: Callable[[Tensor], Tensor] | None = None,
    progress: bool = True,
) -> CodeTable:
    """Encode a data set, in its order.

    Args:
        net: moved to ``device``; of generator and critic, the information head encodes; its training mode is left as
            it was.
        dataset: images, on the full grid of their factors where these are known.
        device: where the encoder runs.
        batch_size: of the encoder; results may differ in the last bits between batch sizes. None: 1024, and 256 on a
            CPU.
        index: images to encode, ``[N]``, instead of all; the table then holds the factor classes of each row.
        images: gives the images of an int64 index on the device; ``dataset.images``, copied there, by default.
        progress: whether to show a progress bar.

    Raises:
        ValueError: the encoder gives NaN or infinity; batch_size below 1; an index that is not a list.
        IndexError: ``index`` out of range.
    """
    from tqdm import tqdm

    if batch_size is None:
        batch_size = 256 if torch.device(device).type == "cpu" else 1024
    if batch_size < 1:
        raise ValueError(f"batch_size: expected at least 1, got {batch_size}")
    known = cast("FactorDataset", dataset) if hasattr(dataset, "factor_names") else None
    factors = None if index is None or known is None else known.factor_classes(index)
    rows = torch.arange(len(dataset)) if index is None else torch.as_tensor(index, dtype=torch.int64)
    load = images or (lambda i: dataset.images(i).to(device, non_blocking=True))
    if rows.ndim != 1:
        raise ValueError(f"index: expected shape [N], got {list(rows.shape)}")
    training = net.training
    if torch.device(device).type == "cpu":
        keep_large_buffers()
    net.to(device).eval()
    try:
        batches = tqdm(rows.split(batch_size), desc="encode", unit="batch", disable=not progress)
        with torch.inference_mode():
            codes = [net.encoder(load(batch)) for batch in batches]
    finally:
        net.train(training)
    mu, logvar = (torch.cat(parts).float().cpu() for parts in zip(*codes, strict=True))
    if known is None:
        return CodeTable(mu, logvar, (), ())
    return CodeTable(mu, logvar, known.factor_names, known.factor_sizes, factors)


def _check_dtype(name: str, x: Tensor, dtype: torch.dtype) -> None:
    if x.dtype != dtype or x.device.type != "cpu":
        raise TypeError(f"{name}: expected {dtype} on the CPU, got {x.dtype} on {x.device}")
