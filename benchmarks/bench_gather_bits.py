"""gather_bits: a store of a byte per pixel, indexed and converted; torch.compile of index and unpacking; pyvae."""

import pytest
import torch

import pyvae
from pyvae.reference import unpack_bits

IMAGES = 2**17
SIZES = [(64, 4096), (1024, 4096)]


def popular(store, index):
    return (store[index].float(),)


def gathered(store, index):
    bits = store.index_select(0, index)
    return unpack_bits(bits, 8 * store.shape[1]).float(), bits


PROVIDERS = {"eager": popular, "compile": torch.compile(gathered), "pyvae": pyvae.gather_bits}


@pytest.fixture(scope="module")
def stores():
    """Bits, and the same images as a byte per pixel."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    generator = torch.Generator(device).manual_seed(0)
    shape = (IMAGES, SIZES[0][1] // 8)
    bits = torch.randint(256, shape, dtype=torch.uint8, device=device, generator=generator)
    return bits, unpack_bits(bits, SIZES[0][1])


@pytest.mark.parametrize("size", SIZES, ids=lambda s: "x".join(map(str, s)))
@pytest.mark.parametrize("provider", PROVIDERS)
def test_gather_bits(timed, device, stores, provider, size):
    bits, bytes_ = stores
    generator = torch.Generator(device).manual_seed(1)
    index = torch.randint(IMAGES, size[:1], device=device, generator=generator)
    store = bytes_ if provider == "eager" else bits
    expected = [bytes_[index].float()]
    if provider != "eager":
        expected.append(bits[index])
    batch, pixels = size
    # the images written once, the rows of the store read, and those of bits written too
    moved = batch * (4 * pixels + (pixels if provider == "eager" else 2 * pixels // 8))
    timed(
        lambda: PROVIDERS[provider](store, index),
        lambda *outputs: list(outputs),
        expected,
        group=f"gather_bits {batch}x{pixels}",
        moved_bytes=moved,
    )
