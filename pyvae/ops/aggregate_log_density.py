"""``aggregate_log_density``: log-densities of a minibatch's samples under the aggregate posterior."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyvae import reference
from pyvae.backend import device_of, take
from pyvae.base.checks import accumulation_dtype, check_aggregate
from pyvae.base.transforms import compiled
from pyvae.ops.library import Operator, as_dtype, detour, next_power_of_two, register_differentiable
from pyvae.reference import Weights, check_weighting, log_weights_of

_BLOCK = 32
_TILE = 4, 32
_ROW_SPANS = 64
_COLUMN_SPANS = 32


class Spans(NamedTuple):
    """How the pairs of samples (rows) and posteriors (columns) are shared out among the programs of the backward."""

    rows: int
    """Samples of a tile."""
    columns: int
    """Posteriors of a tile."""
    row_spans: int
    column_spans: int
    row_span: int
    """Samples of a program, some tiles of them."""
    column_span: int


def tile(batch: int) -> tuple[int, int]:
    """Samples and posteriors of a tile of the forward: four pairs a thread."""
    side = next_power_of_two(max(batch, 2))
    return min(side, 8), min(side, 64)


def spans(batch: int) -> Spans:
    """Tiles of four pairs a thread of one warp, in which no sum over samples leaves its thread; with more pairs,
    128 registers run out. Of large batches a program takes several tiles, so that partial sums stay few."""
    side = next_power_of_two(max(batch, 2))
    rows, columns = (min(side, most) for most in _TILE)
    row_span = rows * -(-batch // (rows * _ROW_SPANS))
    column_span = columns * -(-batch // (columns * _COLUMN_SPANS))
    return Spans(rows, columns, -(-batch // row_span), -(-batch // column_span), row_span, column_span)


def _flat(*tensors: Tensor) -> tuple[list[Tensor], list[int]]:
    """Tensors ``[members, B, D]`` and the strides of all."""
    flat = [x.reshape(-1, *x.shape[-2:]) for x in tensors]
    # offsets of rows of a tile, and of columns, are of 32 bits
    flat = [x if max(x.stride(1) * 64, x.stride(2) * x.shape[2]) < 2**31 else x.contiguous() for x in flat]
    return flat, [stride for x in flat for stride in x.stride()]


def _launch_forward(z: Tensor, mu: Tensor, logvar: Tensor, weights: Weights) -> Tensor:
    from pyvae.kernels.aggregate_log_density import aggregate_log_density_fwd_kernel

    *lead, batch, latents = z.shape
    rows, columns = tile(batch)
    inputs, strides = _flat(z, mu, logvar)
    log_q = torch.empty((*lead, batch, latents + 1), dtype=torch.float32, device=z.device)
    with device_of(z):
        aggregate_log_density_fwd_kernel[(math.prod(lead) * -(-batch // rows) * (latents + 1),)](
            *inputs, log_q, batch, latents, *weights, *strides, ROWS=rows, COLUMNS=columns
        )
    return log_q


def _launch_backward(
    grad: Tensor, z: Tensor, mu: Tensor, logvar: Tensor, log_q: Tensor, weights: Weights
) -> tuple[Tensor, Tensor, Tensor]:
    from pyvae.kernels import aggregate_log_density as kernels

    *lead, batch, latents = z.shape
    members = math.prod(lead)
    rows, columns, row_spans, column_spans, *extent = spans(batch)
    inputs, strides = _flat(z, mu, logvar)
    grads = [torch.empty(z.shape, dtype=z.dtype, device=z.device) for _ in range(3)]
    of_samples, of_posteriors = (
        torch.empty((members, count, latents, batch), dtype=torch.float32, device=z.device)
        for count in (column_spans, 2 * row_spans)
    )
    with device_of(z):
        kernels.aggregate_log_density_bwd_pairs_kernel[(members * row_spans * column_spans,)](
            *inputs, log_q, grad.contiguous(), of_samples, of_posteriors, batch, latents, *weights,
            row_spans, column_spans, *extent, *strides, ROWS=rows, COLUMNS=columns, num_warps=1, maxnreg=128,
        )  # fmt: skip
        kernels.aggregate_log_density_bwd_sum_kernel[(members * latents * -(-batch // _BLOCK),)](
            of_samples, of_posteriors, *grads, batch, latents, row_spans, column_spans,
            ROW_SPANS=next_power_of_two(row_spans), COLUMN_SPANS=next_power_of_two(column_spans), BLOCK=_BLOCK,
        )  # fmt: skip
    grad_z, grad_mu, grad_logvar = grads
    return grad_z, grad_mu, grad_logvar


def _backend(z: Tensor, *others: Tensor) -> str:
    return take("aggregate_log_density", z, *others) if z.numel() else "reference"


def _forward(z: Tensor, mu: Tensor, logvar: Tensor, dataset_size: int, weighting: str) -> Tensor:
    check_weighting(z.shape[-2], dataset_size, weighting)  # which torch.compile could not, of an open size
    backend, weights = _backend(z, mu, logvar), log_weights_of(z, dataset_size, weighting)
    if backend == "reference":
        return reference.aggregate_log_density_table(z, mu, logvar, weights)
    if backend == "native":
        table: Tensor = torch.ops.pyvae_native.aggregate_log_density_fwd.default(
            as_dtype(z), as_dtype(mu), as_dtype(logvar), *weights
        )
        return table
    return _launch_forward(z, mu, logvar, weights)


def _backward(
    grad: Tensor, z: Tensor, mu: Tensor, logvar: Tensor, log_q: Tensor, dataset_size: int, weighting: str
) -> tuple[Tensor, Tensor, Tensor]:
    backend, weights = _backend(z), log_weights_of(z, dataset_size, weighting)
    if backend == "reference":
        return reference.aggregate_log_density_backward(grad, z, mu, logvar, log_q, weights)
    if backend == "native":
        one, two, three = torch.ops.pyvae_native.aggregate_log_density_bwd.default(
            grad, as_dtype(z), as_dtype(mu), as_dtype(logvar), log_q, *weights
        )
        return as_dtype(one, z.dtype), as_dtype(two, z.dtype), as_dtype(three, z.dtype)
    return _launch_backward(grad, z, mu, logvar, log_q, weights)


def _plain_backward(
    grad: Tensor, z: Tensor, mu: Tensor, logvar: Tensor, log_q: Tensor, dataset_size: int, weighting: str
) -> tuple[Tensor, Tensor, Tensor]:
    weights = log_weights_of(z, dataset_size, weighting)
    return reference.aggregate_log_density_backward(grad, z, mu, logvar, log_q, weights)


def _fake(z: Tensor, mu: Tensor, logvar: Tensor, dataset_size: int, weighting: str) -> Tensor:
    shape = (*z.shape[:-1], z.shape[-1] + 1)
    return torch.empty(shape, dtype=accumulation_dtype(z.dtype), device=z.device)


def _fake_backward(
    grad: Tensor, z: Tensor, mu: Tensor, logvar: Tensor, log_q: Tensor, dataset_size: int, weighting: str
) -> tuple[Tensor, Tensor, Tensor]:
    one, two, three = (torch.empty(z.shape, dtype=z.dtype, device=z.device) for _ in range(3))
    return one, two, three


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    z, mu, logvar, *ctx.options = inputs
    ctx.save_for_backward(z, mu, logvar, output)


def _gradient(
    op: Callable[..., tuple[Tensor, Tensor, Tensor]], ctx: Any, grad: Tensor
) -> tuple[Tensor | None, ...]:
    gradients = op(grad, *ctx.saved_tensors, *ctx.options)
    needed = zip(gradients, ctx.needs_input_grad[:3], strict=True)
    return *(g if need else None for g, need in needed), None, None


# not the weights, which are numbers made of the batch size: each would be compiled anew
_OPTIONS = "SymInt dataset_size, str weighting"
register_differentiable(
    "aggregate_log_density",
    Operator(f"(Tensor z, Tensor mu, Tensor logvar, {_OPTIONS}) -> Tensor", _forward, _fake),
    Operator(
        f"(Tensor grad, Tensor z, Tensor mu, Tensor logvar, Tensor log_q, {_OPTIONS}) -> (Tensor, Tensor, Tensor)",
        _backward,
        _fake_backward,
    ),
    _plain_backward,
    _setup_context,
    _gradient,
)


def _split(table: Tensor) -> tuple[Tensor, Tensor]:
    return table[..., -1], table[..., :-1].sum(-1)


class _AggregateLogDensity(torch.autograd.Function):
    """In eager mode, of both results at once: every slice of the table would be a node of the graph and a kernel."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, Tensor]:
        table = _forward(*inputs)
        _setup_context(ctx, inputs, table)
        ctx.latents = inputs[0].shape[-1]
        return _split(table)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        joint, product = (grad.unsqueeze(-1) for grad in grads)
        # what torch.utils.checkpoint saves can be read once
        table = torch.cat([product.expand(*joint.shape[:-1], ctx.latents), joint], -1)
        other = detour(torch.ops.pyvae.aggregate_log_density_backward, _plain_backward, (table,))
        return _gradient(other or _backward, ctx, table)


def aggregate_log_density(
    z: Tensor, mu: Tensor, logvar: Tensor, *, dataset_size: int, weighting: str = "mws"
) -> tuple[Tensor, Tensor]:
    """log q(z) and log prod_j q(z_j) of a minibatch's samples under the aggregate posterior of the data set.

    Chen et al. 2018, "Isolating sources of disentanglement in VAEs", appendix C: ``log q(z_i) = log sum_m W_im
    q(z_i | x_m)`` and ``log prod_j q(z_ij) = sum_j log sum_m W_im q(z_ij | x_m)``, over the B x B pairs, which are
    reduced on the fly on a GPU. With ``log q(z|x)`` they split the KL: MI = E[log q(z|x) - log q(z)],
    TC = E[log q(z) - log prod q(z_j)], dimension-wise KL = E[log prod q(z_j) - log p(z)].

    Args:
        z: ``[..., B, D]`` samples, ``z[i]`` of the posterior of image i.
        mu: ``[..., B, D]``.
        logvar: ``[..., B, D]``, log sigma^2.
        dataset_size: N, the number of images that B are drawn from.
        weighting: "mws", minibatch-weighted: W = 1 / (N B). "mss", minibatch-stratified, whose exponential is
            unbiased: 1 / N for the image itself, (N - M) / (N M) for the one after it, 1 / M for the others, with
            M = B - 1: each row sums to 1. (The popular code puts the first two into columns instead.)

    Returns:
        two tensors ``[..., B]`` in nats, float32 (float64 for float64).

    Raises:
        TypeError: wrong dtype. ValueError: wrong shape, device, weighting, or a batch larger than the data set.

    >>> import torch
    >>> z = torch.tensor([[0.0], [1.0]])
    >>> log_q, _ = aggregate_log_density(z, torch.zeros(2, 1), torch.zeros(2, 1), dataset_size=2)
    >>> (log_q - torch.distributions.Normal(0, 1).log_prob(z[:, 0])).tolist()  # 2 pairs of weight 1 / (2 * 2)
    [-0.693..., -0.693...]
    """
    check_aggregate(z, mu, logvar)
    check_weighting(z.shape[-2], dataset_size, weighting)
    inputs = (z, mu, logvar, dataset_size, weighting)
    if compiled():
        table = torch.ops.pyvae.aggregate_log_density(*inputs)
    elif _backend(z, mu, logvar) == "reference":
        weights = log_weights_of(z, dataset_size, weighting)
        table = reference.aggregate_log_density_table(z, mu, logvar, weights)
    elif torch.is_grad_enabled() and (z.requires_grad or mu.requires_grad or logvar.requires_grad):
        joint, product = _AggregateLogDensity.apply(*inputs)
        return joint, product
    else:
        table = _forward(*inputs)
    return _split(table)
