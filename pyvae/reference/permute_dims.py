"""``permute_dims`` and ``tc_batch``: samples of the product of the marginals."""

import torch
from torch import Tensor

from pyvae.base.checks import expand_key
from pyvae.random import Stream, bits, check_key, fresh_key


def permute_dims(z: Tensor, *, key: Tensor | None = None, stream: int = Stream.PERMUTATION) -> Tensor:
    """Specification of :func:`pyvae.permute_dims`: each dimension sorted by its own random words, ties by row."""
    return z.gather(-2, permutations(z, key, stream))


def permutations(z: Tensor, key: Tensor | None, stream: int) -> Tensor:
    """int64 [..., B, D]: which row each element of ``permute_dims(z)`` comes from."""
    key = fresh_key(z.device) if key is None else key
    check_key(key)
    expanded, sharing = expand_key(key, z.shape[:-2])
    words = bits(expanded, sharing * z.shape[-2], z.shape[-1], stream).reshape(z.shape)
    return words.argsort(stable=True, dim=-2)


def tc_batch(z: Tensor, z2: Tensor, *, key: Tensor | None = None) -> Tensor:
    """Specification of :func:`pyvae.tc_batch`: ``z`` above ``permute_dims(z2)``."""
    return torch.cat([z, permute_dims(z2, key=key)], -2)
