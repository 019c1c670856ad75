"""``gather_bits``: a batch out of a bit-packed store that stays on the device."""

import re

import torch
from torch import Tensor

from pyvae import reference
from pyvae.backend import device_of, take
from pyvae.base.transforms import compiled
from pyvae.ops.library import LIBRARY, next_power_of_two


def block(pixels: int) -> int:
    """Pixels of one program: eight for each thread of four warps; more programs hide the wait for the index."""
    return min(max(next_power_of_two(pixels), 16), 1024)


def _empty(store: Tensor, index: Tensor, pixels: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    images = torch.empty((*index.shape, pixels), dtype=dtype, device=store.device)
    return images, torch.empty((*index.shape, store.shape[1]), dtype=torch.uint8, device=store.device)


def _launch(store: Tensor, index: Tensor, pixels: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    from pyvae.kernels.gather_bits import gather_bits_fwd_kernel

    images, bits = _empty(store, index, pixels, dtype)
    size = block(pixels)
    with device_of(store):
        gather_bits_fwd_kernel[(index.numel() * -(-pixels // size),)](
            store, index.contiguous(), images, bits, pixels, store.shape[1], *store.stride(), BLOCK=size
        )
    return images, bits


def _forward(store: Tensor, index: Tensor, pixels: int | None, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    pixels = reference.check_gather(store, index, pixels, dtype)
    backend = take("gather_bits", store, index) if index.numel() else "reference"
    if backend == "native":
        return _native(store, index, pixels, dtype)
    if backend == "reference":
        return reference.gather_bits(store, index, pixels=pixels, dtype=dtype)
    return _launch(store, index, pixels, dtype)


def _native(store: Tensor, index: Tensor, pixels: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    try:
        found: tuple[Tensor, Tensor] = torch.ops.pyvae_native.gather_bits.default(store, index, pixels, dtype)
    except RuntimeError as error:
        # operators of the stable ABI have one kind of error, which names the line of C++ first
        reason = re.search("index: values .*", str(error))
        if reason is None:
            raise
        raise IndexError(reason.group()) from None
    return found


LIBRARY.define("gather_bits(Tensor store, Tensor index, SymInt pixels, ScalarType dtype) -> (Tensor, Tensor)")
LIBRARY.impl("gather_bits", _forward, "CompositeExplicitAutograd")
torch.library.register_fake("pyvae::gather_bits", _empty, lib=LIBRARY)


def gather_bits(
    store: Tensor, index: Tensor, *, pixels: int | None = None, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    """The images of a bit-packed store at an index, unpacked, and their bits.

    Nothing waits for the device. An index out of range is the caller's error, which a GPU need not notice: it reads
    other memory. ``PYVAE_CHECK=1`` finds it.

    Args:
        store: uint8 ``[N, ceil(pixels / 8)]``, eight pixels to a byte in little bit order
            (:func:`pyvae.reference.pack_bits`); it may be larger than 2^31 bytes.
        index: int64 of any shape, from 0 to N - 1, on the device of ``store``.
        pixels: of an image. ``None``: all bits of a row.
        dtype: of the images: float32, bfloat16, float16 or uint8.

    Returns:
        images ``[*index.shape, pixels]`` of 0 and 1, and their rows of the store, uint8
        ``[*index.shape, ceil(pixels / 8)]``, a target of :func:`pyvae.bernoulli_nll`. Neither has a gradient.

    Raises:
        TypeError: wrong dtype. ValueError: wrong shape, device or number of pixels. IndexError: under
        ``PYVAE_CHECK=1``, and always on a CPU, an index out of range.

    >>> import torch
    >>> store = torch.tensor([[0b0101], [0b0010]], dtype=torch.uint8)
    >>> gather_bits(store, torch.tensor([1, 0]), pixels=4)[0]
    tensor([[0., 1., 0., 0.],
            [1., 0., 1., 0.]])
    """
    if compiled():
        pixels = reference.check_gather(store, index, pixels, dtype)
        return torch.ops.pyvae.gather_bits(store, index, pixels, dtype)
    return _forward(store, index, pixels, dtype)
