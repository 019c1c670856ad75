"""gather_bits: a store of a byte per pixel, indexed and converted; torch.compile of index and unpacking; pyvae."""

import functools

import torch

import pyvae
from interleaved import Case, each
from pyvae.reference import unpack_bits

IMAGES, PIXELS = 2**17, 4096


@functools.cache
def stores(device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Bits, and the same images as a byte per pixel."""
    generator = torch.Generator(device).manual_seed(0)
    bits = torch.randint(256, (IMAGES, PIXELS // 8), dtype=torch.uint8, device=device, generator=generator)
    return bits, unpack_bits(bits, PIXELS)


def popular(index, bits, bytes_):
    return (bytes_[index].float(),)


def unpacked(index, bits, bytes_):
    rows = bits.index_select(0, index)
    return unpack_bits(rows, PIXELS).float(), rows


def case(batch: int) -> Case:
    def make(device, generator):
        return torch.randint(IMAGES, (batch,), device=device, generator=generator), *stores(device)

    def derive(inputs, outputs):
        index, bits, _ = inputs
        # the eager form gives images alone
        return [*outputs] if len(outputs) == 2 else [*outputs, bits[index]]

    # the images written once, the rows of the store read, and those of bits written too
    of_bytes, of_bits = batch * 5 * PIXELS, batch * (4 * PIXELS + 2 * PIXELS // 8)
    return Case(
        op="gather_bits",
        what="a batch",
        size=(batch, PIXELS),
        make=make,
        functions={
            "eager": popular,
            "eager, bits": unpacked,
            "pyvae": lambda index, bits, bytes_: pyvae.gather_bits(bits, index),
        },
        compiled="eager, bits",
        autotuned=batch == 64,
        derive=derive,
        expect=lambda index, bits, bytes_: [bytes_[index], bits[index]],
        moved={"eager": of_bytes, "eager, bits": of_bits, "pyvae": of_bits},
        # other rows of the store every time, as in training
        sets=64,
    )


CASES = [case(64), case(1024)]


@each(CASES)
def test_gather_bits(timed, case, function):
    timed(case, function)
