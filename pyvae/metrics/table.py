"""The codes of a data set, encoded once, from which every metric is computed."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from pyvae.base.allocator import keep_large_buffers
from pyvae.base.progress import bar_class
from pyvae.metrics.layout import Layout, check_count, check_factors
from pyvae.nets import Autoencoder
from pyvae.nets.adversarial import AdversarialPair

if TYPE_CHECKING:
    from pyvae.data.dataset import Dataset, FactorDataset, Index


@dataclass(frozen=True, eq=False)
class CodeTable(Layout):
    """Posterior parameters of N images, and the factors that made the images.

    Attributes:
        mu: float32 ``[N, D]`` on the CPU, means of q(z|x).
        logvar: float32 ``[N, D]`` on the CPU, log-variances of q(z|x).
        factor_names: F names; none for data whose factors are not known, which serves metrics that need none.
        factor_sizes: number of classes of each factor.
        factors: int64 ``[N, F]``, classes of each row; None for the full grid: one row for every combination of
            classes, in mixed-radix order with the last factor the fastest, where the row number says them all.

    Raises:
        ValueError: shapes that do not fit one another, codes that are NaN or infinite, classes out of range, a factor
            without a class or of the name of another.
        TypeError: anything but float32 codes and int64 factors on the CPU.
    """

    mu: Tensor
    logvar: Tensor
    factor_names: tuple[str, ...]
    factor_sizes: tuple[int, ...]
    factors: Tensor | None = None

    def __post_init__(self) -> None:
        check_factors(self.factor_names, self.factor_sizes)
        object.__setattr__(self, "factor_names", tuple(self.factor_names))
        object.__setattr__(self, "factor_sizes", tuple(int(size) for size in self.factor_sizes))
        for name in ("mu", "logvar"):
            check_tensor(name, x := getattr(self, name), torch.float32)
            # numpy takes no tensor that is part of a graph
            object.__setattr__(self, name, x.detach() if x.requires_grad else x)
        if self.mu.ndim != 2 or self.mu.numel() == 0:
            raise ValueError(f"mu: expected shape [N, D], got {list(self.mu.shape)}")
        if self.logvar.shape != self.mu.shape:
            raise ValueError(
                f"logvar: expected the shape of mu {list(self.mu.shape)}, got {list(self.logvar.shape)}"
            )
        check_codes("mu", self.mu)
        check_codes("logvar", self.logvar)
        if self.factors is None:
            if self.factor_sizes and len(self) != math.prod(self.factor_sizes):
                raise ValueError(
                    f"mu: {len(self)} rows are not the full grid of {self.factor_sizes}, which has "
                    f"{math.prod(self.factor_sizes)}: give the factors of each row"
                )
        else:
            check_tensor("factors", self.factors, torch.int64)
            check_classes(self.factors, len(self), self.factor_names, self.factor_sizes)

    def __len__(self) -> int:
        return len(self.mu)

    @property
    def latents(self) -> int:
        """D."""
        return self.mu.shape[1]

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
        net: moved to ``device``, its convolutions' weights to channels last, which is quicker; of generator and critic,
            the information head encodes; its training mode is left as it was.
        dataset: images, on the full grid of their factors where these are known.
        device: where the encoder runs.
        batch_size: of the encoder; results may differ in the last bits between batch sizes. None: 1024, and 256 on a
            CPU.
        index: images to encode, ``[N]``, instead of all; the table then holds the factor classes of each row.
        images: gives the images of an int64 index on the device; ``dataset.images``, copied there, by default.
        progress: whether to show a progress bar.

    Raises:
        ValueError: the encoder gives NaN or infinity; batch_size below 1; an index that is empty or not a list.
        TypeError: an index of other than whole numbers.
        IndexError: ``index`` out of range.
    """
    if batch_size is None:
        batch_size = 256 if torch.device(device).type == "cpu" else 1024
    check_count("batch_size", batch_size, 1)
    known = cast("FactorDataset", dataset) if hasattr(dataset, "factor_names") else None
    rows = torch.arange(len(dataset)) if index is None else torch.as_tensor(index)
    if rows.is_floating_point() or rows.is_complex() or rows.dtype == torch.bool:
        raise TypeError(f"index: expected whole numbers, got {rows.dtype}")
    rows = rows.long()
    load = images or (lambda i: dataset.images(i).to(device, non_blocking=True))
    if rows.ndim != 1 or len(rows) == 0:
        raise ValueError(f"index: expected shape [N] with N at least 1, got {list(rows.shape)}")
    factors = None if index is None or known is None else known.factor_classes(rows)
    training = net.training
    if torch.device(device).type == "cpu":
        keep_large_buffers()
    net.to(device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
    try:
        batches = bar_class()(rows.split(batch_size), desc="encode", unit="batch", disable=not progress)
        with torch.inference_mode():
            codes = [net.encoder(_channels_last(load(batch))) for batch in batches]
    finally:
        net.train(training)
    mu, logvar = (torch.cat(parts).float().cpu() for parts in zip(*codes, strict=True))
    if known is None:
        return CodeTable(mu, logvar, (), ())
    return CodeTable(mu, logvar, known.factor_names, known.factor_sizes, factors)


def _channels_last(x: Tensor) -> Tensor:
    """Images so; numbers of factors, which some networks encode, as they are."""
    return x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x


def check_tensor(name: str, x: object, dtype: torch.dtype) -> None:
    """Raise TypeError unless x is a plain tensor of this dtype on the CPU."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{name}: expected a tensor, got {type(x).__name__}")
    if x.dtype != dtype or x.device.type != "cpu" or x.layout != torch.strided:
        kind = "" if x.layout == torch.strided else f", {x.layout}"
        raise TypeError(f"{name}: expected {dtype} on the CPU, got {x.dtype} on {x.device}{kind}")


def check_codes(name: str, codes: Tensor) -> None:
    """Raise ValueError unless codes ``[N, D]`` are finite."""
    finite = torch.isfinite(codes).all(0)
    if not bool(finite.all()):
        column = int((~finite).nonzero()[0])
        raise ValueError(f"{name}: latent {column} holds NaN or infinity: has the training diverged?")


def check_classes(
    factors: Tensor, rows: int, factor_names: Sequence[str], factor_sizes: Sequence[int]
) -> None:
    """Raise ValueError unless integer factors are of shape ``[rows, F]`` and each class is one of its factor."""
    if factors.shape != (rows, len(factor_sizes)):
        raise ValueError(f"factors: expected shape {[rows, len(factor_sizes)]}, got {list(factors.shape)}")
    wrong = ((factors < 0) | (factors >= torch.tensor(factor_sizes))).any(0)
    if bool(wrong.any()):
        factor = int(wrong.nonzero()[0])
        raise ValueError(f"factors: a class of {factor_names[factor]} is not in [0, {factor_sizes[factor]})")
