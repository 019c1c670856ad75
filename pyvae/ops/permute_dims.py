"""``permute_dims`` and ``tc_batch``: samples of the product of the marginals, for the discriminator of FactorVAE."""

from typing import Any

import torch
from torch import Tensor

from pyvae import reference
from pyvae.backend import take
from pyvae.base.checks import check_columns, check_device, expand_key
from pyvae.base.transforms import compiled, transform, transform_of_gradients
from pyvae.ops.library import LIBRARY
from pyvae.random import Stream, check_draw, check_key, fresh_key

# a block of the CUDA kernel ranks a dimension of the batch by counting, in shared memory
MOST_ROWS_CUDA = 4096


def _native(z: Tensor, *others: Tensor | None) -> bool:
    if z.is_cuda and z.shape[-2] > MOST_ROWS_CUDA:
        return False
    return z.numel() > 0 and take("permute_dims", z, *others) == "native"


def _join(first: Tensor | None, permuted: Tensor) -> Tensor:
    return permuted if first is None else torch.cat([first, permuted], -2)


def _forward(first: Tensor | None, z: Tensor, key: Tensor, stream: int) -> tuple[Tensor, Tensor]:
    """The permuted batch, behind ``first`` if it is given, and the order that makes it."""
    if not _native(z, first, key):
        order = reference.permutations(z, key, stream)
        return _join(first, z.gather(-2, order)), order
    key, _ = expand_key(key, z.shape[:-2])
    return torch.ops.pyvae_native.permute_dims.default(first, z, key, stream)


def _run(first: Tensor | None, z: Tensor, key: Tensor, stream: int) -> tuple[Tensor, Tensor]:
    check_draw(key, z.shape)  # which torch.compile could not, of a size that it leaves open
    return _forward(first, z, key, stream)


LIBRARY.define("permute_dims(Tensor? first, Tensor z, Tensor key, int stream) -> (Tensor, Tensor)")
LIBRARY.impl("permute_dims", _run, "CompositeExplicitAutograd")


@torch.library.register_fake("pyvae::permute_dims")
def _(first: Tensor | None, z: Tensor, key: Tensor, stream: int) -> tuple[Tensor, Tensor]:
    rows = z.shape[-2] if first is None else 2 * z.shape[-2]
    out = torch.empty((*z.shape[:-2], rows, z.shape[-1]), dtype=z.dtype, device=z.device)
    return out, torch.empty(z.shape, dtype=torch.int64, device=z.device)


def _setup_context(
    ctx: Any, inputs: tuple[Tensor | None, Tensor, Tensor, int], output: tuple[Tensor, Tensor]
) -> None:
    ctx.has_first = inputs[0] is not None
    ctx.save_for_backward(output[1])
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
    grad = grads[0]
    if grad is None:
        return None, None, None, None
    (order,) = ctx.saved_tensors
    first, permuted = grad.split(order.shape[-2], -2) if ctx.has_first else (None, grad)
    if transform_of_gradients(grad) is not None:
        return first, permuted.gather(-2, order.argsort(-2)), None, None
    # every element is written once: unlike the backward of gather, no sum whose order could vary
    return first, torch.empty_like(permuted).scatter_(-2, order, permuted), None, None


torch.library.register_autograd("pyvae::permute_dims", _backward, setup_context=_setup_context, lib=LIBRARY)


class _PermuteDims(torch.autograd.Function):
    """The order is no output here, as it must be of an operator: a second output costs as much as the kernel."""

    backward = staticmethod(_backward)

    @staticmethod
    def forward(ctx: Any, first: Tensor | None, z: Tensor, key: Tensor, stream: int) -> Tensor:
        out, order = _forward(first, z, key, stream)
        _setup_context(ctx, (first, z, key, stream), (out, order))
        return out


def _apply(first: Tensor | None, z: Tensor, key: Tensor | None, stream: int) -> Tensor:
    stream = int(stream)
    if key is None:
        key = fresh_key(z.device)
    else:
        check_key(key)
        check_device("key", key, "z", z)
    check_draw(key, z.shape)
    if compiled():
        return torch.ops.pyvae.permute_dims(first, z, key, stream)[0]
    needed = torch.is_grad_enabled() and (z.requires_grad or (first is not None and first.requires_grad))
    # the reference, which those go through, is differentiable any way
    if needed and transform(first, z, key) is None:
        if z.is_cuda:
            return _PermuteDims.apply(first, z, key, stream)
        # torch's nodes cost less time than one in Python, and more kernels, which count on a GPU
        _, order = _forward(None, z.detach(), key, stream)
        return _join(first, z.gather(-2, order))
    return _forward(first, z, key, stream)[0]


def permute_dims(z: Tensor, *, key: Tensor | None = None, stream: int = Stream.PERMUTATION) -> Tensor:
    """Permute each latent dimension over the batch by itself.

    ``out[i, d] = z[order[i, d], d]``, where ``order[:, d]`` is the stable argsort of random words of dimension d: from
    samples of q(z), samples of about the product of its marginals (Kim & Mnih 2018, algorithm 1).

    Args:
        z: ``[..., B, D]``, float32, bfloat16, float16 or float64, any strides. Leading dimensions are ensemble members,
            each permuted by itself.
        key: int64 ``[2]`` of (seed, step), or one for each member, ``[members, 2]``. Rows of members that share a key
            count on. ``None`` takes a seed from torch's default generator.
        stream: which of the independent streams of the key to draw from.

    Returns:
        the shape and dtype of ``z``. Its gradient goes back by the inverse permutation, equal bit for bit from run
        to run.

    Raises:
        TypeError: wrong dtype. ValueError: wrong shape or device.

    >>> import torch
    >>> z = torch.arange(6.0).reshape(3, 2)
    >>> permute_dims(z).sort(dim=0).values.equal(z)
    True
    """
    check_columns("z", z)
    return _apply(None, z, key, stream)


def tc_batch(z: Tensor, z2: Tensor, *, key: Tensor | None = None) -> Tensor:
    """Batch of the discriminator of FactorVAE: ``z``, then ``permute_dims(z2)`` (Kim & Mnih 2018, algorithm 1).

    Args:
        z: samples of q(z), ``[..., B, D]``, as :func:`permute_dims` takes them.
        z2: samples for another batch of images, of the shape, dtype and device of ``z``; not ``z`` itself, whose
            permutation would share samples with the first half.
        key: of the permutation, as that of :func:`permute_dims`.

    Returns:
        ``[..., 2 B, D]``; gradients go to both.

    Raises:
        TypeError: wrong dtype. ValueError: wrong shape or device.

    >>> import torch
    >>> tc_batch(torch.zeros(3, 2), torch.ones(3, 2)).mean(-1)
    tensor([0., 0., 0., 1., 1., 1.])
    """
    check_columns("z", z)
    check_columns("z2", z2)
    if z2.shape != z.shape:
        raise ValueError(f"z2: expected the shape of z {list(z.shape)}, got {list(z2.shape)}")
    if z2.dtype != z.dtype:
        raise TypeError(f"z2: expected the dtype of z {z.dtype}, got {z2.dtype}")
    check_device("z2", z2, "z", z)
    return _apply(z, z2, key, Stream.PERMUTATION)
