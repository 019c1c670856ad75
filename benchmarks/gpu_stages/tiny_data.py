"""The tests' small data set, with bits to lie on the device."""

import torch

from pyvae import reference
from tiny import TinyData


def packed_data() -> TinyData:
    """Bright squares, 120 of them, as bits."""
    data = TinyData()
    data.bits = reference.pack_bits(data.images(torch.arange(len(data))).flatten(1))
    return data
