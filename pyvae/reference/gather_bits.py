"""``gather_bits``: images of a packed data set, by their indices."""

import torch
from torch import Tensor

from pyvae.base.checks import check_device, value_checks
from pyvae.reference.pixels import unpack_bits

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
