"""The images of dSprites (Matthey et al. 2017) as a procedure.

Every image is one filled polygon on a 64x64 grid. Outlines, transform and raster rule were recovered from
genuine images; the rule is that of graphics hardware: vertices snapped to 1/256 pixel, a pixel lit when its
centre is inside, left and bottom edges inside.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

FACTOR_NAMES = ("shape", "scale", "orientation", "posX", "posY")
FACTOR_SIZES = (3, 6, 40, 32, 32)
ROW_BYTES = 512

_SIDE = 64
_RADIUS = 0.15 * _SIDE
_SUBPIXELS = 256
_FACTOR_RANGES = ((1.0, 3.0), (0.5, 1.0), (0.0, 2 * math.pi), (0.0, 1.0), (0.0, 1.0))


def factor_values() -> tuple[Array, ...]:
    """The values of each factor, float64 ``[size]``: bit-equal to ``latents_values`` of the genuine files.

    ``np.linspace`` evaluates in another order and misses the last bit of some.
    """
    return tuple(
        np.array([low + k * (high - low) / (size - 1) for k in range(size)])
        for (low, high), size in zip(_FACTOR_RANGES, FACTOR_SIZES, strict=True)
    )


def generate(sizes: Sequence[int] = FACTOR_SIZES) -> Iterator[Array]:
    """All images of the grid in the genuine order, one block per (shape, scale).

    ``sizes`` keeps the first classes of each factor. A block is uint8 ``[orientations * posX * posY, 512]``:
    eight pixels to a byte, little bit order, eight bytes to a row.
    """
    shapes, scales, orientations, columns, rows = sizes
    _, scale, theta, pos_x, pos_y = factor_values()
    for shape in range(shapes):
        for size in scale[:scales]:
            size = np.full(orientations, size)
            x, y = _place(shape, size, theta[:orientations], pos_x[None, :columns], pos_y[None, :rows])
            yield _fill(x, y).view(np.uint8).reshape(-1, ROW_BYTES)


def render(classes: npt.ArrayLike) -> Array:
    """The images of any factor classes, int ``[n, 5]``: uint8 ``[n, 512]``, packed as by `generate`."""
    classes = np.asarray(classes, dtype=np.int64)
    _, scale, theta, pos_x, pos_y = factor_values()
    images = np.zeros((len(classes), ROW_BYTES), np.uint8)
    for shape in np.unique(classes[:, 0]):
        chosen = classes[:, 0] == shape
        _, size, angle, column, row = classes[chosen].T
        x, y = _place(int(shape), scale[size], theta[angle], pos_x[column][:, None], pos_y[row][:, None])
        images[chosen] = _fill(x, y).view(np.uint8).reshape(-1, ROW_BYTES)
    return images


def _outline(shape: int) -> tuple[Array, Array]:
    """Vertices ``x [V], y [V]`` at scale 1 around the origin of the sprite, in pixels, y down."""
    if shape == 0:
        return _RADIUS * np.array([1.0, -1.0, -1.0, 1.0]), _RADIUS * np.array([1.0, 1.0, -1.0, -1.0])
    segments = 100 if shape == 1 else 150
    t = 2 * math.pi * np.arange(segments) / segments
    if shape == 1:
        return 1.33 * _RADIUS * np.cos(t), _RADIUS / 1.33 * np.sin(t)
    lobes = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return _RADIUS * np.sin(t) ** 3, -_RADIUS * (lobes / 14.5 + 0.15)


def _place(shape: int, scale: Array, theta: Array, pos_x: Array, pos_y: Array) -> tuple[Array, Array]:
    """Outlines for scale ``[A]``, theta ``[A]``, pos_x ``[A or 1, K]`` and pos_y ``[A or 1, P]``.

    Returns x ``[A, V, K]`` and y ``[A, P, V]``: whole numbers of 1/256 pixel held in float64.
    """
    x, y = _outline(shape)
    scale, cos, sin = scale[:, None], np.cos(theta)[:, None], np.sin(theta)[:, None]
    right, down = scale * (x * cos + y * sin), scale * (-x * sin + y * cos)
    x = 16 + 32 * pos_x[:, None, :] + right[:, :, None]
    y = 16 + 32 * pos_y[:, :, None] + down[:, None, :]
    return np.floor(_SUBPIXELS * x + 0.5), np.floor(_SUBPIXELS * y + 0.5)


def _fill(x: Array, y: Array) -> Array:
    """Even-odd fill of the outlines x ``[A, V, K]``, y ``[A, P, V]``: a uint64 per row, ``[A, K, P, 64]``."""
    a, p, v, row = _crossings(y)
    after = (v + 1) % y.shape[2]
    start, rise = y[a, p, v], y[a, p, after] - y[a, p, v]
    left, run = x[a, v], x[a, after] - x[a, v]
    half = _SUBPIXELS // 2
    # The quotient is below 2^7 and 2^-22 or more away from any whole number it does not equal: ceil is exact.
    along = (_SUBPIXELS * row + half - start)[:, None] * run + (left - half) * rise[:, None]
    column = np.ceil(along / (_SUBPIXELS * rise)[:, None])
    toggled = np.left_shift(np.uint64(2**_SIDE - 1), column.astype(np.uint64))
    line = (a * y.shape[1] + p) * _SIDE + row
    first = np.flatnonzero(np.diff(line, prepend=-1))
    image = np.zeros((len(x), x.shape[2], y.shape[1], _SIDE), "<u8")
    image[a[first], :, p[first], row[first]] = np.bitwise_xor.reduceat(toggled, first)
    return image


def _crossings(y: Array) -> tuple[Array, Array, Array, Array]:
    """Where the outlines cross the centres of pixel rows: outline, placement, edge, row, int64 ``[n]`` each.

    Sorted by outline, placement and row. An edge crosses a row when min(y) < centre <= max(y): bottom edges
    are inside.
    """
    level = np.floor((y - _SUBPIXELS // 2) / _SUBPIXELS).astype(np.int64)
    after = np.roll(level, -1, axis=2)
    lowest, count = np.minimum(level, after).ravel() + 1, np.abs(after - level).ravel()
    edge = np.repeat(np.arange(count.size), count)
    row = np.arange(edge.size) - np.repeat(np.cumsum(count) - count, count) + lowest[edge]
    line, edge = edge // y.shape[2], edge % y.shape[2]
    order = np.argsort(line * _SIDE + row, kind="stable")
    line, edge, row = line[order], edge[order], row[order]
    return line // y.shape[1], line % y.shape[1], edge, row
