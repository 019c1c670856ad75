"""Weight gradients of convolution pairs by boxes: what tensor descriptors see of their maps, and the table of tiles.

See kernels/descriptor_gradients.py for how windows become boxes.
"""

from itertools import product
from typing import NamedTuple

from pyvae.engine.fused.network import SIDE, Pair

SIDES = (16, 8, 4)
"""Of small maps, in the order of the kernel's descriptors."""


class Descriptor(NamedTuple):
    """Boxes of ``block`` numbers of an array that each member has at ``offset`` of a buffer; in front of its
    dimensions is that of members, of which a box has one. Outside the array are zeros."""

    buffer: str
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    block: tuple[int, ...]


class BoxTile(NamedTuple):
    """Of a weight gradient; see kernels/descriptor_gradients.py."""

    out: int
    out_row: int
    image: int
    first: int
    blocks: int
    """Of positions, from ``first`` on."""
    row: int
    column_0: int
    channel_0: int
    column_1: int
    channel_1: int
    channel: int
    begins: int
    ends: int
    side: int
    """Of the small maps; no kernel reads this."""
    unused_0: int = 0
    unused_1: int = 0


def edge(side: int) -> int:
    """Columns of zeros at either end of a row of maps: none where dense layers are beside them."""
    return int(side > SIDE)


def maps(side: int, channels: int) -> int:
    """Numbers of the maps of an image, with their columns of zeros."""
    return side * (side + 2 * edge(side)) * channels


def descriptors(pair: Pair, *, big: int, small: int, images: int, block: int) -> list[Descriptor]:
    """Of the maps of two pairs that are alike, the encoder's and behind it the decoder's, in boxes of ``block``
    positions; ``big`` and ``small`` are offsets of activations."""
    side = pair.side
    rows = min(side, block // side)
    at_once = block // (rows * side)
    if images % at_once:
        raise ValueError(f"boxes of {at_once} images do not make up a batch of {images}")
    of_big, of_small = maps(2 * side, pair.big), maps(side, pair.small)
    return [
        Descriptor(
            "activations",
            big,
            (2 * images, side, 2 * (side + 1), 2 * pair.big),
            (of_big, of_big // side, 2 * pair.big, 1),
            (at_once, rows, side, 64),
        ),
        Descriptor(
            "activations",
            small + edge(side) * pair.small,
            (2 * images, side, side, pair.small),
            (of_small, of_small // side, pair.small, 1),
            (at_once, rows, side, 32),
        ),
    ]


def box_tiles(pair: Pair, *, out: int, image: int, first: int, positions: int, block: int) -> list[BoxTile]:
    """Of a part of a weight gradient, at ``out`` of the gradients, over positions from ``first`` on, in whole boxes
    of ``block``; ``image`` is the first of the batch in the descriptors."""
    assert first % block == positions % block == 0
    taps, units = pair.taps, pair.big // 32
    # 2 x 2 taps are the middle of 4 x 4; in units of 32 channels a run of them begins and ends here
    beside = (4 - taps) // 2
    begins, ends = beside * units, (beside + taps) * units
    tiles = []
    for kh in range(taps):
        row, odd = divmod(kh + beside - 1, 2)
        # boxes begin at an even unit
        for unit, channel in product(range(begins - begins % 2, ends, 4), range(0, pair.small, 32)):
            # of a half that is not stored nothing is read but what is there anyway
            halves = unit, unit + 2 if unit + 2 < ends else unit
            (column_0, channel_0), (column_1, channel_1) = (divmod(32 * at, 2 * pair.big) for at in halves)
            tile = BoxTile(
                out=out + (kh * taps * pair.big + 32 * (unit - begins)) * pair.small + channel,
                out_row=pair.small,
                image=image,
                first=first // block,
                blocks=positions // block,
                row=row,
                column_0=odd * (pair.side + 1) + column_0,
                channel_0=channel_0,
                column_1=odd * (pair.side + 1) + column_1,
                channel_1=channel_1,
                channel=channel,
                begins=begins - unit,
                ends=ends - unit,
                side=pair.side,
            )
            tiles.append(tile)
    return tiles
