"""Randomness as a pure function of (seed, stream, step, index).

``draw = Philox4x32-10(key=seed, counter=(index, stream, step_lo, step_hi))`` (Salmon et al. 2011, "Parallel random
numbers: as easy as 1, 2, 3"). A *key* is an int64 tensor ``[..., 2]`` holding (seed, step), on the device that draws.
Element ``(row, d)`` of a ``[rows, D]`` array takes word ``d % 4`` of counter ``index = row * ceil(D / 4) + d // 4``, so
what a row draws depends neither on the batch it stands in nor on the backend. ``pyvae.kernels.philox`` draws the same
integers inside Triton kernels.
"""

import math
import operator
from enum import IntEnum
from functools import lru_cache

import torch
from torch import Tensor

from pyvae.base.checks import expand_key
from pyvae.base.transforms import is_known
from pyvae.errors import SeedError

_MASK32 = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_FEISTEL_ROUNDS = 8
_FEISTEL_LEAST_SIDE = 8


class Stream(IntEnum):
    """What a draw is for. The numbers are part of the contract: changing one changes every published run."""

    POSTERIOR = 0
    PERMUTATION = 1
    DATA_ORDER = 2
    SECOND_BATCH = 3
    PRIOR = 4
    METRIC = 5
    SECOND_POSTERIOR = 6
    BINARISATION = 7
    SECOND_BINARISATION = 8
    NOISE = 9
    CODE = 10
    CATEGORY = 11
    INTERPOLATION = 12


def make_key(seed: int, step: int = 0, device: torch.device | str | None = None) -> Tensor:
    """Key ``[2]`` (int64) of a seed and a step, each of 64 bits: from -2**63 to 2**64 - 1, as torch.manual_seed takes
    them; -1 and 2**64 - 1 are one.

    Raises:
        TypeError: no integer. SeedError: outside of that range.
    """
    words = [word(seed), word(step, "step")]
    return torch.tensor(words, dtype=torch.int64, device=device)


def word(value: int, name: str = "seed") -> int:
    """The 64 bits of a seed or a step as int64 tensors hold them.

    Raises:
        TypeError: no integer. SeedError: it has more than 64 bits.
    """
    try:
        value = operator.index(value)
    except TypeError:
        raise TypeError(f"{name}: expected an integer, got {type(value).__name__}") from None
    if not -(2**63) <= value < 2**64:
        raise SeedError(f"{name}: expected -2**63 to 2**64 - 1, got {value}")
    return value - 2**64 if value >= 2**63 else value


def fresh_key(device: torch.device | str | None = None) -> Tensor:
    """Key ``[2]`` whose seed and step come from torch's default generator of the device, without a synchronisation.

    ``torch.manual_seed`` therefore governs it, and a captured CUDA graph gets a new key at every replay.
    """
    return torch.randint(2**63 - 1, (2,), device=device)


def philox(
    seed: Tensor, counter: tuple[Tensor, Tensor, Tensor, Tensor]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Philox4x32-10.

    Args:
        seed: int64; its 64 bits are the Philox key, low word first.
        counter: four int64 tensors holding 32-bit unsigned words; all five broadcast.

    Returns:
        four int64 tensors holding 32-bit unsigned words.
    """
    k0, k1 = seed & _MASK32, (seed >> 32) & _MASK32
    c0, c1, c2, c3 = counter
    for _ in range(10):
        # int64 products wrap modulo 2**64, so both halves of the unsigned 64-bit product are exact
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (
            ((p1 >> 32) & _MASK32) ^ c1 ^ k0,
            p1 & _MASK32,
            ((p0 >> 32) & _MASK32) ^ c3 ^ k1,
            p0 & _MASK32,
        )
        k0, k1 = (k0 + _WEYL[0]) & _MASK32, (k1 + _WEYL[1]) & _MASK32
    return torch.broadcast_tensors(c0, c1, c2, c3)


def bits(key: Tensor, rows: int, columns: int, stream: int) -> Tensor:
    """Random 32-bit words.

    Args:
        key: int64 ``[..., 2]``.

    Returns:
        int64 ``[..., rows, columns]`` in [0, 2**32).

    Raises:
        ValueError: the key is not int64 ``[..., 2]``, or more than 2**32 counters are asked for.
    """
    check_key(key)
    quads = -(-columns // 4)
    check_counters(rows * quads)
    seed, step = key[..., 0, None], key[..., 1, None]
    index = torch.arange(rows * quads, device=key.device, dtype=torch.int64)
    words = philox(seed, (index, torch.full_like(index, int(stream)), step & _MASK32, (step >> 32) & _MASK32))
    return torch.stack(words, -1).reshape(*key.shape[:-1], rows, quads * 4)[..., :columns]


def uniform_from_bits(words: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """``((x >> 9) + 0.5) * 2**-23``: uniform on 2**23 points of the open interval (0, 1), exact in fp32."""
    return ((words >> 9).to(dtype) + 0.5) * 2.0**-23


def uniform(key: Tensor, rows: int, columns: int, stream: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Uniform draws ``[..., rows, columns]`` in the open interval (0, 1)."""
    return uniform_from_bits(bits(key, rows, columns, stream), dtype)


def normal(key: Tensor, rows: int, columns: int, stream: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Standard normal draws ``[..., rows, columns]``: Box-Muller on words (0, 1) and (2, 3) of each counter.

    The largest magnitude is sqrt(2 * 24 * ln 2) = 5.77: a standard normal exceeds it once in 1.3e8 draws.
    """
    padded = -(-columns // 4) * 4
    u = uniform(key, rows, padded, stream, dtype)
    radius = torch.sqrt(-2.0 * torch.log(u[..., 0::2]))
    angle = (2.0 * math.pi) * u[..., 1::2]
    pairs = torch.stack([radius * torch.cos(angle), radius * torch.sin(angle)], -1)
    return pairs.reshape(*u.shape)[..., :columns]


@lru_cache(maxsize=64)
def feistel_domain(n: int) -> tuple[int, int]:
    """Factors (a, b), a <= b, of the smallest product a * b >= n with a > sqrt(n) / 2; ties go to the squarest.

    737,280 gives 768 x 960 and needs no cycle walking; no n above 2,500 needs a domain more than 2 % larger.
    Both factors are at least 8: a network over a smaller square would reach few of the permutations.
    """
    root = max(math.isqrt(n), _FEISTEL_LEAST_SIDE)
    return min(
        ((a, max(-(-n // a), a)) for a in range(root, max(root // 2, _FEISTEL_LEAST_SIDE - 1), -1)),
        key=lambda ab: ab[0] * ab[1],
    )


def data_order(key: Tensor, position: Tensor, n: int, *, stream: int = Stream.DATA_ORDER) -> Tensor:
    """A keyed permutation of [0, n): a generalised Feistel network over Z_a x Z_b with cycle walking.

    Args:
        key: int64 ``[..., 2]`` holding (seed, epoch); its leading dimensions broadcast against ``position``.
        position: int64 tensor of positions in [0, n), any shape.
        n: size of the permuted range, at least 1 and below 2**31.
        stream: which of the independent streams of the key to take the permutation from.

    Returns:
        int64 tensor of the broadcast shape: for every key a bijection of [0, n).
    """
    check_key(key)
    if not 1 <= n < 2**31:
        raise ValueError(f"data_order: n must be in [1, 2**31), got {n}")
    a, b = feistel_domain(n)
    round_keys = bits(key, 1, _FEISTEL_ROUNDS, stream).squeeze(-2).unbind(-1)
    x = _feistel(position, a, b, round_keys)
    for _ in range(_walks(n, a * b)):
        outside = x >= n
        # free on a CPU; elsewhere it would wait for the device
        if not x.is_cuda and not bool(outside.any()):
            break
        x = torch.where(outside, _feistel(x, a, b, round_keys), x)
    return x


@lru_cache(maxsize=64)
def _walks(n: int, domain: int) -> int:
    """Steps of cycle walking that bring every position of the domain back into [0, n), but for a chance of 2**-100."""
    outside = domain - n
    return outside and min(outside, math.ceil(100 / math.log2(domain / outside)))


def _feistel(x: Tensor, a: int, b: int, round_keys: tuple[Tensor, ...]) -> Tensor:
    left, right = x // b, x % b
    for r, round_key in enumerate(round_keys):
        if r % 2 == 0:
            left = (left + _mix32(right ^ round_key) % a) % a
        else:
            right = (right + _mix32(left ^ round_key) % b) % b
    return left * b + right


def _mix32(x: Tensor) -> Tensor:
    """Wellons' lowbias32: an invertible 32-bit hash of words held in int64."""
    x = x ^ (x >> 16)
    x = (x * 0x7FEB352D) & _MASK32
    x = x ^ (x >> 15)
    x = (x * 0x846CA68B) & _MASK32
    return x ^ (x >> 16)


def check_key(key: Tensor) -> None:
    """Raise unless ``key`` is an int64 tensor ``[..., 2]``."""
    if not isinstance(key, Tensor) or key.dtype != torch.int64:
        got = key.dtype if isinstance(key, Tensor) else type(key).__name__
        raise TypeError(f"key: expected an int64 tensor [..., 2] (see pyvae.random.make_key), got {got}")
    if key.ndim < 1 or key.shape[-1] != 2:
        raise ValueError(f"key: expected shape [..., 2] of (seed, step), got {list(key.shape)}")


def check_draw(key: Tensor, shape: torch.Size) -> None:
    """Raise unless the key fits noise of shape ``[..., rows, columns]`` and has counters for it."""
    _, sharing = expand_key(key, shape[:-2])
    check_counters(sharing * shape[-2] * -(-shape[-1] // 4))


def check_counters(count: int) -> None:
    """Raise when a draw would use up the 32-bit index of the counter and repeat itself."""
    if is_known(count) and count > 2**32:
        raise ValueError(
            f"one key draws at most 2**32 counters of four values, got {count}: use a key per slice"
        )
