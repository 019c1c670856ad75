"""Which factors move which latents."""

import torch
from torch import Tensor

from pyvae.data.dataset import FactorDataset
from pyvae.metrics import CodeTable


def siblings(dataset: FactorDataset, factor: int, groups: int, seed: int = 0) -> Tensor:
    """Indices int64 ``[groups, classes]`` of images that differ in this factor alone, the others drawn at random."""
    generator = torch.Generator().manual_seed(seed)
    drawn = [torch.randint(size, (groups,), generator=generator) for size in dataset.factor_sizes]
    size = dataset.factor_sizes[factor]
    classes = torch.stack(drawn, -1).unsqueeze(1).repeat(1, size, 1)
    classes[..., factor] = torch.arange(size)
    return dataset.index(classes)


def total_effects(codes: list[Tensor]) -> Tensor:
    """Sobol's total effect of each factor on each latent, float64 ``[D, F]`` in [0, 1] but for the error of so many
    groups (Homma & Saltelli 1996): the share of a latent's variance that is left when all other factors are known.

    A correlation ratio sees what a factor does on the average over the others, and so misses orientation, which every
    shape repeats after another angle. The total effect has what a factor does in each image.

    Args:
        codes: float32 ``[groups, classes, D]`` for each factor, means of the posteriors of its :func:`siblings`.
    """
    left = torch.stack([mu.double().var(1, correction=0).mean(0) for mu in codes], -1)
    every = torch.cat([mu.flatten(0, 1) for mu in codes]).double()
    variance = every.var(0, correction=0).unsqueeze(-1)
    return torch.where(variance > 0, left / variance, 0.0)


def grid_effects(table: CodeTable) -> Tensor:
    """The same of a table of the full grid, exactly."""
    codes = table.mu.double().unflatten(0, table.factor_sizes)
    left = [codes.var(k, correction=0).flatten(0, -2).mean(0) for k in range(len(table.factor_sizes))]
    variance = table.mu.double().var(0, correction=0).unsqueeze(-1)
    return torch.where(variance > 0, torch.stack(left, -1) / variance, 0.0)
