"""Every op in plain torch, on any device and in any float dtype: the specification that the kernels are tested
against, and what runs where no kernel does. float64 inputs are computed in float64, all others in float32."""

import math
from collections.abc import Callable, Sequence
from numbers import Integral
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from pyvae.base.checks import (
    accumulation_dtype,
    check_aggregate,
    check_device,
    check_finite,
    check_float,
    check_latents,
    expand_key,
    flatten_importance,
    flatten_pixels,
    importance_layout,
    pixel_layout,
    value_checks,
)
from pyvae.base.transforms import is_known, refuse, refuse_gradients
from pyvae.random import Stream, bits, check_key, fresh_key, normal
from pyvae.reference.panels import mixture_entropies


def posterior_noise(shape: torch.Size, key: Tensor, stream: int, dtype: torch.dtype) -> Tensor:
    """Standard normal noise of shape [..., B, D]; rows count on through the dimensions that share a key."""
    check_key(key)
    expanded, sharing = expand_key(key, shape[:-2])
    rows = sharing * shape[-2]
    return normal(expanded, rows, shape[-1], stream, dtype).reshape(shape)


def reparameterize_kl(
    mu: Tensor, logvar: Tensor, *, key: Tensor | None = None, stream: int = Stream.POSTERIOR
) -> tuple[Tensor, Tensor]:
    """Specification of :func:`pyvae.reparameterize_kl`."""
    check_latents(mu, logvar)
    check_finite(mu, logvar)
    key = fresh_key(mu.device) if key is None else key
    dtype = accumulation_dtype(mu.dtype)
    m, lv = mu.to(dtype), logvar.to(dtype)
    z = m + torch.exp(0.5 * lv) * posterior_noise(mu.shape, key, stream, dtype)
    # e^lv - 1 - lv cancels near lv = 0, where collapsed dimensions live
    kl = 0.5 * (m.square() + (torch.expm1(lv) - lv))
    return z.to(mu.dtype), kl.mean(-2)


def reparameterize_kl_backward(
    grad_z: Tensor | None, grad_kl: Tensor | None, mu: Tensor, logvar: Tensor, key: Tensor, stream: int
) -> tuple[Tensor, Tensor]:
    """Gradients of ``z`` and ``kl`` with respect to mu and logvar, with the noise drawn again from the key."""
    dtype = accumulation_dtype(mu.dtype)
    m, lv = mu.to(dtype), logvar.to(dtype)
    grad_mu, grad_logvar = torch.zeros_like(m), torch.zeros_like(lv)
    if grad_z is not None:
        noise = posterior_noise(mu.shape, key, stream, dtype)
        grad_mu = grad_mu + grad_z
        grad_logvar = grad_logvar + 0.5 * grad_z * torch.exp(0.5 * lv) * noise
    if grad_kl is not None:
        per_row = grad_kl.unsqueeze(-2) / mu.shape[-2]
        grad_mu = grad_mu + per_row * m
        grad_logvar = grad_logvar + 0.5 * per_row * torch.expm1(lv)
    return grad_mu.to(mu.dtype), grad_logvar.to(mu.dtype)


def unpack_bits(packed: Tensor, pixels: int) -> Tensor:
    """Bits [..., ceil(pixels / 8)] (uint8, little bit order) to uint8 pixels [..., pixels] of 0 and 1."""
    bit = torch.arange(8, dtype=torch.uint8, device=packed.device)
    return ((packed.unsqueeze(-1) >> bit) & 1).flatten(-2)[..., :pixels]


def pack_bits(pixels: Tensor) -> Tensor:
    """Pixels [..., n] (zero or not) to packed bits [..., ceil(n / 8)] (uint8, little bit order)."""
    lit = F.pad((pixels != 0).to(torch.uint8), (0, -pixels.shape[-1] % 8)).unflatten(-1, (-1, 8))
    bit = torch.arange(8, dtype=torch.uint8, device=pixels.device)
    return (lit << bit).sum(-1, dtype=torch.uint8)


IMAGE_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.uint8)


def check_gather(store: Tensor, index: Tensor, pixels: int | None, dtype: torch.dtype) -> int:
    """The pixels of an image; raise unless the arguments fit :func:`gather_bits`."""
    for name, x, want in (("store", store, torch.uint8), ("index", index, torch.int64)):
        if not isinstance(x, Tensor):
            raise TypeError(f"{name}: expected a tensor, got {type(x).__name__}")
        if x.dtype != want:
            raise TypeError(f"{name}: expected {want}, got {x.dtype}")
    if dtype not in IMAGE_DTYPES:
        raise TypeError(f"dtype: expected float32, bfloat16, float16 or uint8, got {dtype}")
    if store.ndim != 2 or store.shape[1] == 0:
        raise ValueError(f"store: expected shape [images, bytes of an image], got {list(store.shape)}")
    check_device("index", index, "store", store)
    most = 8 * store.shape[1]
    pixels = most if pixels is None else pixels
    if not most - 8 < pixels <= most:
        raise ValueError(
            f"pixels: expected {most - 7} to {most} for {store.shape[1]} bytes an image, got {pixels}"
        )
    if value_checks(index) and index.numel():
        low, high = (int(x) for x in index.aminmax())
        if low < 0 or high >= len(store):
            raise IndexError(
                f"index: values must lie in 0 to {len(store) - 1}, the images of store, got {low} to {high}"
            )
    return pixels


def gather_bits(
    store: Tensor, index: Tensor, *, pixels: int | None = None, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    """Specification of :func:`pyvae.gather_bits`."""
    pixels = check_gather(store, index, pixels, dtype)
    rows = store.index_select(0, index.flatten()).view(*index.shape, store.shape[1])
    return unpack_bits(rows, pixels).to(dtype).contiguous(), rows


def pixel_nll(logits: Tensor, x: Tensor) -> Tensor:
    """softplus(l) - l x of each pixel. An infinite logit is a certain answer: it costs nothing if it is right, else
    infinitely much, where torch's function and its derivatives are NaN."""
    certain = logits.isinf()
    nll = F.binary_cross_entropy_with_logits(logits.masked_fill(certain, 0.0), x, reduction="none")
    missed = (logits > 0).to(x.dtype) - x
    # 0 where nothing is missed, as the limit is; infinity times 0 is NaN
    cost = (logits * missed).masked_fill(certain & (missed == 0), 0.0)
    return torch.where(certain, cost, nll)


def bernoulli_nll(
    logits: Tensor,
    target: Tensor,
    *,
    reduction: str = "batchmean",
    event_dims: int | None = None,
    target_max: int | None = None,
) -> Tensor:
    """Specification of :func:`pyvae.bernoulli_nll`."""
    layout = pixel_layout(logits, target, reduction, event_dims, target_max)
    flat_logits, flat_target = flatten_pixels(logits, target, layout)
    dtype = accumulation_dtype(logits.dtype)
    x = unpack_bits(flat_target, layout.pixels) if layout.packed else flat_target
    x = x.to(dtype) / layout.target_max
    per_image = pixel_nll(flat_logits.to(dtype), x).sum(-1)
    if reduction == "none":
        return per_image.reshape(*layout.lead, layout.batch)
    total = per_image.mean(-1) if reduction == "batchmean" else per_image.sum(-1)
    return total.reshape(layout.lead)


def bernoulli_nll_backward(
    grad_loss: Tensor, logits: Tensor, target: Tensor, reduction: str, event_dims: int, target_max: int | None
) -> Tensor:
    """Gradient with respect to the logits: (sigmoid(logits) - target) times the gradient of each image's loss."""
    layout = pixel_layout(logits, target, reduction, event_dims, target_max)
    flat_logits, flat_target = flatten_pixels(logits, target, layout)
    dtype = accumulation_dtype(logits.dtype)
    x = unpack_bits(flat_target, layout.pixels) if layout.packed else flat_target
    per_image = grad_loss.reshape(layout.members, -1, 1).to(dtype)
    if reduction == "batchmean":
        per_image = per_image / layout.batch
    grad = (torch.sigmoid(flat_logits.to(dtype)) - x.to(dtype) / layout.target_max) * per_image
    return grad.to(logits.dtype).reshape(logits.shape)


Weights = tuple[float | Tensor, float | Tensor, float | Tensor]
"""log W of the image itself, of the one after it, and of each other image of the batch."""


def check_weighting(batch: int, dataset_size: int, weighting: str) -> None:
    """Raise unless the batch, where its size is known, can be weighted so."""
    if weighting not in ("mws", "mss"):
        raise ValueError(f"weighting: expected 'mws' or 'mss', got {weighting!r}")
    if not is_known(batch):
        return
    if dataset_size < max(batch, 1):
        raise ValueError(f"dataset_size: {dataset_size} is smaller than the batch of {batch}")
    if weighting == "mss" and batch < 2:
        raise ValueError(f"weighting: 'mss' needs a batch of at least 2, got {batch}")


def aggregate_log_weights(batch: int, dataset_size: int, weighting: str) -> tuple[float, float, float]:
    """:data:`Weights` of a batch whose size is known."""
    check_weighting(batch, dataset_size, weighting)
    if weighting == "mws":
        uniform_weight = -math.log(dataset_size * max(batch, 1))
        return uniform_weight, uniform_weight, uniform_weight
    others = batch - 1
    successor = (dataset_size - others) / (dataset_size * others)
    return -math.log(dataset_size), math.log(successor), -math.log(others)


def log_weights_of(z: Tensor, dataset_size: int, weighting: str) -> Weights:
    """:data:`Weights` for samples ``[..., B, D]``: numbers, or tensors in a trace that leaves B open."""
    if is_known(z.shape[-2]):
        return aggregate_log_weights(z.shape[-2], dataset_size, weighting)
    batch = torch.ones(z.shape[-2], dtype=accumulation_dtype(z.dtype), device=z.device).sum()
    if weighting == "mws":
        uniform_weight = -torch.log(dataset_size * batch)
        return uniform_weight, uniform_weight, uniform_weight
    others = batch - 1
    successor = torch.log((dataset_size - others) / (dataset_size * others))
    return -math.log(dataset_size), successor, -torch.log(others)


def _pairs(z: Tensor, mu: Tensor, logvar: Tensor, weights: Weights) -> tuple[Tensor, Tensor, Tensor]:
    """log N(z_ij; mu_mj, exp(logvar_mj)) and (z - mu) / sigma, [..., B, B, D], and log W [B, B]."""
    dtype = accumulation_dtype(z.dtype)
    m, lv = mu.to(dtype).unsqueeze(-3), logvar.to(dtype).unsqueeze(-3)
    distance = (z.to(dtype).unsqueeze(-2) - m) * torch.exp(-0.5 * lv)
    density = -0.5 * (math.log(2 * math.pi) + lv + distance.square())
    index = torch.arange(z.shape[-2], device=z.device)
    own, successor, other = (torch.as_tensor(w, dtype=dtype, device=z.device) for w in weights)
    is_own, is_successor = (index == x.unsqueeze(-1) for x in (index, index.roll(-1)))
    log_weight = torch.where(is_own, own, torch.where(is_successor, successor, other))
    return density, distance, log_weight


def aggregate_log_density_table(z: Tensor, mu: Tensor, logvar: Tensor, weights: Weights) -> Tensor:
    """log q(z_ij) of each dimension and, in the last column, log q(z_i): [..., B, D + 1]."""
    density, _, log_weight = _pairs(z, mu, logvar, weights)
    terms = torch.cat([density, density.sum(-1, keepdim=True)], -1)
    return torch.logsumexp(terms + log_weight.unsqueeze(-1), -2)


def aggregate_log_density(
    z: Tensor, mu: Tensor, logvar: Tensor, *, dataset_size: int, weighting: str = "mws"
) -> tuple[Tensor, Tensor]:
    """Specification of :func:`pyvae.aggregate_log_density`."""
    check_aggregate(z, mu, logvar)
    check_weighting(z.shape[-2], dataset_size, weighting)
    table = aggregate_log_density_table(z, mu, logvar, log_weights_of(z, dataset_size, weighting))
    return table[..., -1], table[..., :-1].sum(-1)


def aggregate_log_density_backward(
    grad: Tensor, z: Tensor, mu: Tensor, logvar: Tensor, log_q: Tensor, weights: Weights
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of the table with respect to z, mu and logvar."""
    density, distance, log_weight = _pairs(z, mu, logvar, weights)
    w = log_weight.unsqueeze(-1)
    joint = torch.exp(density.sum(-1, keepdim=True) + w - log_q[..., -1:].unsqueeze(-2))
    each = torch.exp(density + w - log_q[..., :-1].unsqueeze(-2))
    share = grad[..., -1:].unsqueeze(-2) * joint + grad[..., :-1].unsqueeze(-2) * each
    pull = share * distance * torch.exp(-0.5 * logvar.to(share.dtype)).unsqueeze(-3)
    grad_logvar = (share * (0.5 * distance.square() - 0.5)).sum(-3)
    return (-pull.sum(-2)).to(z.dtype), pull.sum(-3).to(z.dtype), grad_logvar.to(z.dtype)


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


def check_columns(name: str, x: Tensor) -> None:
    """Raise unless ``x`` is a float tensor [..., rows, columns] with a column."""
    check_float(name, x)
    if x.ndim < 2 or x.shape[-1] == 0:
        raise ValueError(f"{name}: expected shape [..., rows, columns], got {list(x.shape)}")


class CodeHistogram(NamedTuple):
    """Ends of the bins of each code, float64 ``[D]``, and counts int64 ``[D, bins, sum(factor_sizes)]``."""

    low: Tensor
    high: Tensor
    counts: Tensor


def check_whole(name: str, value: object) -> None:
    """Raise TypeError unless an argument is a whole number."""
    if isinstance(value, bool) or not isinstance(value, Integral | torch.SymInt):
        raise TypeError(f"{name}: expected a whole number, got {value!r}")


def check_histogram(codes: Tensor, factors: Tensor | None, factor_sizes: Sequence[int], bins: int) -> None:
    """Raise unless the factors fit the codes; reads the factors, so waits for the device."""
    check_columns("codes", codes)
    if codes.ndim != 2 or len(codes) == 0:
        raise ValueError(f"codes: expected shape [N, D] with N at least 1, got {list(codes.shape)}")
    check_factor_sizes(factor_sizes)
    check_whole("bins", bins)
    if bins < 1:
        raise ValueError(f"bins: expected at least 1, got {bins}")
    if factors is None:
        points = math.prod(factor_sizes)
        if len(codes) != points:
            raise ValueError(
                f"codes: expected [{points}, D], the grid of {tuple(factor_sizes)}, got {list(codes.shape)}"
            )
        return
    if not isinstance(factors, Tensor):
        raise TypeError(f"factors: expected a tensor, got {type(factors).__name__}")
    if factors.dtype != torch.int64:
        raise TypeError(f"factors: expected int64, got {factors.dtype}")
    if factors.shape != (len(codes), len(factor_sizes)):
        want = [len(codes), len(factor_sizes)]
        raise ValueError(f"factors: expected shape {want}, got {list(factors.shape)}")
    check_device("factors", factors, "codes", codes)
    low, high = torch.aminmax(factors, dim=0)
    for f, (least, most) in enumerate(zip(low.tolist(), high.tolist(), strict=True)):
        if least < 0 or most >= factor_sizes[f]:
            raise ValueError(f"factors: classes of factor {f} must lie in [0, {factor_sizes[f]})")


def check_factor_sizes(factor_sizes: Sequence[int]) -> None:
    """Raise unless there is a factor and each has a class."""
    for size in factor_sizes:
        check_whole("factor_sizes", size)
    if not factor_sizes or min(factor_sizes) < 1:
        raise ValueError(f"factor_sizes: expected positive sizes, got {list(factor_sizes)}")


def bin_edges(codes: Tensor, bins: int) -> Tensor:
    """numpy.histogram's edges float64 [D, bins + 1], bit for bit: those of numpy.linspace from least to largest code.

    Raises:
        ValueError: a code is not finite.
    """
    low, high = (end.double() for end in torch.aminmax(codes, dim=0))
    finite = torch.isfinite(low) & torch.isfinite(high)
    if not bool(finite.all()):
        raise ValueError(f"codes: NaN or infinity in dimensions {(~finite).nonzero().flatten().tolist()}")
    constant = low == high
    low, high = torch.where(constant, low - 0.5, low), torch.where(constant, high + 0.5, high)
    width = (high - low).unsqueeze(-1)
    index = torch.arange(bins + 1, dtype=torch.float64, device=codes.device)
    step = width / bins
    # a range of few denormals has a step of zero
    edges = torch.where(step == 0, index / bins * width, index * step) + low.unsqueeze(-1)
    edges[:, -1] = high
    return edges


def factor_classes(rows: int, factor_sizes: Sequence[int], device: torch.device) -> Tensor:
    """Classes int64 [rows, F] of the points of the grid; the last factor runs fastest."""
    index, columns = torch.arange(rows, device=device), []
    stride = math.prod(factor_sizes)
    for size in factor_sizes:
        stride //= size
        columns.append(index // stride % size)
    return torch.stack(columns, -1)


def code_histogram(
    codes: Tensor, factors: Tensor | None, factor_sizes: Sequence[int], *, bins: int = 20
) -> CodeHistogram:
    """Specification of :func:`pyvae.code_histogram`."""
    refuse("code_histogram", codes)
    check_histogram(codes, factors, factor_sizes, bins)
    edges = bin_edges(codes, bins)
    # on an edge to the right, on the last one to the left
    binned = (
        torch.searchsorted(edges, codes.double().mT.contiguous(), right=True).sub_(1).clamp_(max=bins - 1)
    )
    if factors is None:
        factors = factor_classes(len(codes), factor_sizes, codes.device)
    tables = []
    for f, size in enumerate(factor_sizes):
        cells = [torch.bincount(b * size + factors[:, f], minlength=bins * size) for b in binned]
        tables.append(torch.stack(cells).unflatten(-1, (bins, size)))
    return CodeHistogram(edges[:, 0].clone(), edges[:, -1].clone(), torch.cat(tables, -1))


class PosteriorEntropy(NamedTuple):
    """Entropies in nats, float64: ``marginal [D]``, one ``[D, size]`` for each factor, and ``error [D]``."""

    marginal: Tensor
    conditional: tuple[Tensor, ...]
    error: Tensor


_REACH = 8.0  # standard deviations; beyond lies 1e-15 of a Gaussian
_MOST_NODES = 1 << 16
Density = Callable[[Tensor, Tensor, Tensor, Tensor, list[int], int], Tensor]


def quadrature_grid(mu: Tensor, logvar: Tensor, nodes: int) -> tuple[Tensor, Tensor]:
    """First node and step, float64 [D], of grids over all posteriors [D, N] of each latent.

    Every node is a float32: on a sharp posterior a rounded one would be off by a good part of a standard deviation.
    """
    reach = _REACH * torch.exp(0.5 * logvar)
    low, high = (mu - reach).amin(-1).double(), (mu + reach).amax(-1).double()
    exponent = torch.floor(torch.log2(torch.maximum(low.abs(), high.abs()))) - 22
    quantum = torch.exp2(exponent)
    first = torch.floor(low / quantum) * quantum
    return first, torch.ceil((high - first) / (nodes - 1) / quantum) * quantum


def posterior_density(
    mu: Tensor, logvar: Tensor, low: Tensor, step: Tensor, factor_sizes: list[int], nodes: int
) -> Tensor:
    """Density of each latent given each class of each factor on its grid, float64 [D, sum(factor_sizes), nodes]."""
    latents, rows = mu.shape
    total = torch.zeros((latents, sum(factor_sizes), nodes), dtype=torch.float64, device=mu.device)
    z = low.unsqueeze(-1) + torch.arange(nodes, device=mu.device) * step.unsqueeze(-1)
    classes = factor_classes(rows, factor_sizes, mu.device)
    share = torch.cat(
        [
            F.one_hot(c, size).double() * (size / rows)
            for c, size in zip(classes.mT, factor_sizes, strict=True)
        ],
        -1,
    )
    chunk = max(1, (1 << 22) // nodes)
    for d in range(latents):
        for start in range(0, rows, chunk):
            part = slice(start, start + chunk)
            m, lv = mu[d, part, None].double(), logvar[d, part, None].double()
            log_density = -0.5 * ((z[d] - m).square() * torch.exp(-lv) + lv + math.log(2 * math.pi))
            total[d] += share[part].mT @ torch.exp(log_density)
    return total


def check_posteriors(mu: Tensor, logvar: Tensor, factor_sizes: Sequence[int], nodes: int, tol: float) -> None:
    """Raise unless the posteriors are finite and one for each point of the grid; waits for the device."""
    check_latents(mu, logvar)
    check_factor_sizes(factor_sizes)
    points = math.prod(factor_sizes)
    if mu.ndim != 2 or len(mu) != points:
        raise ValueError(
            f"mu: expected [{points}, D], the grid of {tuple(factor_sizes)}, got {list(mu.shape)}"
        )
    check_whole("nodes", nodes)
    if nodes < 4:
        raise ValueError(f"nodes: at least 4 are needed, got {nodes}")
    if not tol > 0:
        raise ValueError(f"tol: expected more than 0, got {tol}")
    check_magnitudes(mu, logvar)


def check_magnitudes(mu: Tensor, logvar: Tensor) -> None:
    """Raise unless posteriors [N, D] are finite, of a density that float32 holds; waits for the device."""
    for name, x, limit in (("mu", mu, 1e30), ("logvar", logvar, 100.0)):
        bad = ~(x.abs() <= limit).all(0)
        if bool(bad.any()):
            dims = bad.nonzero().flatten().tolist()
            raise ValueError(f"{name}: NaN or a magnitude above {limit:g} in dimensions {dims}")


def refined_entropy(
    density: Density, mu: Tensor, logvar: Tensor, factor_sizes: Sequence[int], nodes: int, tol: float
) -> PosteriorEntropy:
    """Entropies from densities on grids of ``nodes``, doubled for each latent until its error is at most ``tol``.

    A latent whose posteriors no grid resolves, be they too sharp for the range of their means or for float32 nodes, has
    panels of its own: :func:`pyvae.reference.panels.mixture_entropies`.
    """
    sizes = [int(size) for size in factor_sizes]
    m, lv = mu.detach().mT.contiguous(), logvar.detach().mT.contiguous()
    entropy = torch.zeros((len(m), 1 + sum(sizes)), dtype=torch.float64, device=mu.device)
    error = torch.zeros(len(m), dtype=torch.float64, device=mu.device)
    _, finest = quadrature_grid(m, lv, _MOST_NODES)
    sharp = finest > torch.exp(0.5 * lv.double().amin(-1))
    left = (~sharp).nonzero().flatten()
    nodes += nodes % 2
    while len(left):
        low, step = quadrature_grid(m[left], lv[left], nodes)
        q = density(m[left], lv[left], low, step, sizes, nodes)
        q = torch.cat([q[:, : sizes[0]].mean(1, keepdim=True), q], 1)
        surprise = -torch.special.xlogy(q, q)
        # the even nodes are a grid of twice the step
        full = surprise.sum(-1) * step.unsqueeze(-1)
        half = surprise[..., ::2].sum(-1) * (2 * step.unsqueeze(-1))
        # a grid that steps over all posteriors agrees with itself
        lost = (q.sum(-1) * step.unsqueeze(-1) - 1).abs()
        entropy[left], error[left] = full, torch.maximum((full - half).abs(), lost).amax(-1)
        left = left[error[left] > tol]
        if nodes >= _MOST_NODES:
            sharp[left] = True
            break
        nodes *= 2
    for d in sharp.nonzero().flatten().tolist():
        entropy[d], error[d] = _entropy_by_panels(m[d], lv[d], sizes, tol)
        if float(error[d]) > tol:
            raise ValueError(
                f"posterior_entropy: an error of {float(error[d]):.1e} nats is left in latent {d}, more than {tol:g}: "
                "ask for a larger tol"
            )
    return PosteriorEntropy(entropy[:, 0], entropy[:, 1:].split(sizes, -1), error)


def _entropy_by_panels(mu: Tensor, logvar: Tensor, sizes: list[int], tol: float) -> tuple[Tensor, Tensor]:
    """Entropies float64 [1 + sum(sizes)] of one latent, of all posteriors and of each class, and the largest error."""
    # on the CPU, where sums over scattered panels have one order
    m, sigma = mu.double().cpu(), torch.exp(0.5 * logvar.double()).cpu()
    classes = torch.cat(
        [torch.zeros(len(m), 1, dtype=torch.int64), factor_classes(len(m), sizes, m.device)], -1
    )
    found = [
        mixture_entropies(m, sigma, group, groups, tol)
        for group, groups in zip(classes.unbind(-1), [1, *sizes], strict=True)
    ]
    entropy, error = (torch.cat(parts) for parts in zip(*found, strict=True))
    return entropy.to(mu.device), error.amax().to(mu.device)


def posterior_entropy(
    mu: Tensor, logvar: Tensor, factor_sizes: Sequence[int], *, nodes: int = 512, tol: float = 1e-5
) -> PosteriorEntropy:
    """Specification of :func:`pyvae.posterior_entropy`."""
    refuse("posterior_entropy", mu, logvar)
    refuse_gradients("posterior_entropy", mu, logvar)
    check_posteriors(mu, logvar, factor_sizes, nodes, tol)
    return refined_entropy(posterior_density, mu, logvar, factor_sizes, nodes, tol)


def _standardised(z: Tensor, mu: Tensor, logvar: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """z, (z - mu) / sigma, logvar and 1 / sigma in the accumulation dtype, [..., B, M, K, D] and [..., B, 1, 1, D]."""
    dtype = accumulation_dtype(z.dtype)
    m, lv = (x.to(dtype).unsqueeze(-2).unsqueeze(-2) for x in (mu, logvar))
    precise = torch.exp(-0.5 * lv)
    return z.to(dtype), (z.to(dtype) - m) * precise, lv, precise


def _importance_pixels(
    logits: Tensor, target: Tensor, z: Tensor, mu: Tensor, logvar: Tensor, target_max: int | None
) -> tuple[Tensor, Tensor]:
    """Logits [members, B, M K, pixels] and targets [members, B, 1, pixels] in the accumulation dtype."""
    layout = importance_layout(logits, target, z, mu, logvar, target_max)
    flat_logits, flat_target = flatten_importance(logits, target, z, layout)
    x = unpack_bits(flat_target, layout.pixels) if layout.packed else flat_target
    dtype = accumulation_dtype(logits.dtype)
    return flat_logits.to(dtype), x.unsqueeze(-2).to(dtype) / layout.target_max


def importance_log_parts(
    logits: Tensor, target: Tensor, z: Tensor, mu: Tensor, logvar: Tensor, *, target_max: int | None = None
) -> tuple[Tensor, Tensor]:
    """log p(x|z) and log p(z) - log q(z|x), each [..., B, M, K]: what :func:`importance_log_weight` adds up."""
    flat, x = _importance_pixels(logits, target, z, mu, logvar, target_max)
    log_likelihood = -pixel_nll(flat, x.expand_as(flat)).sum(-1)
    value, distance, lv, _ = _standardised(z, mu, logvar)
    # as a product, a difference of squares keeps its digits where posterior and prior are almost one
    log_ratio = 0.5 * ((distance - value) * (distance + value) + lv).sum(-1)
    return log_likelihood.reshape(z.shape[:-1]), log_ratio


def importance_log_weight(
    logits: Tensor, target: Tensor, z: Tensor, mu: Tensor, logvar: Tensor, *, target_max: int | None = None
) -> Tensor:
    """Specification of :func:`pyvae.importance_log_weight`."""
    log_likelihood, log_ratio = importance_log_parts(logits, target, z, mu, logvar, target_max=target_max)
    return log_likelihood + log_ratio


def importance_log_weight_backward(
    grad_likelihood: Tensor,
    grad_ratio: Tensor,
    logits: Tensor,
    target: Tensor,
    z: Tensor,
    mu: Tensor,
    logvar: Tensor,
    target_max: int | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of the two parts with respect to logits, z, mu and logvar."""
    flat, x = _importance_pixels(logits, target, z, mu, logvar, target_max)
    grad_logits = (x - torch.sigmoid(flat)) * grad_likelihood.reshape(*flat.shape[:-1], 1).to(flat.dtype)
    value, distance, _, precise = _standardised(z, mu, logvar)
    grad = grad_ratio.unsqueeze(-1).to(value.dtype)
    pull = grad * distance * precise
    grad_logvar = (grad * (0.5 - 0.5 * distance.square())).sum((-3, -2))
    return (
        grad_logits.to(logits.dtype).reshape(logits.shape),
        (pull - grad * value).to(z.dtype),
        -pull.sum((-3, -2)).to(mu.dtype),
        grad_logvar.to(logvar.dtype),
    )
