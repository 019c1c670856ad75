"""What a step of a generator against a critic draws, all at once."""

from typing import NamedTuple

import torch
from torch import Tensor

from pyvae.backend import device_of, takes_triton
from pyvae.objectives import InfoGAN
from pyvae.objectives.infogan import Codes
from pyvae.ops.library import next_power_of_two
from pyvae.random import Stream, check_counters, uniform

_TILE = 512
_MOST_COLUMNS = 128


class Draws(NamedTuple):
    """Draws of some rows."""

    inputs: Tensor
    """float32 ``[rows, N + C + K]``, as :meth:`InfoGAN.generator_input` makes them."""
    codes: Codes
    points: Tensor
    """float32 ``[at most rows]``: where between a made image and a real one a penalty is taken, uniform in (0, 1)."""

    def rows(self, start: int, count: int) -> "Draws":
        """Those of ``count`` rows from ``start`` on; there may be fewer points."""
        part = slice(start, start + count)
        return Draws(self.inputs[part], Codes(*(x[part] for x in self.codes)), self.points[part])


def draw(objective: InfoGAN, key: Tensor, rows: int, points: int) -> Draws:
    """Codes of ``rows`` images, ``points`` at most as many, of a key int64 ``[2]``; one kernel where Triton runs."""
    if takes_triton(key.device):
        return _launch(objective, key, rows, points)
    codes = objective.draw(key, rows)
    at = uniform(key, points, 1, Stream.INTERPOLATION)[:, 0] if points else key.new_empty(0).float()
    return Draws(objective.generator_input(codes), codes, at)


def _launch(objective: InfoGAN, key: Tensor, rows: int, points: int) -> Draws:
    from pyvae.kernels.draw import draw_kernel

    noise, continuous, categories = objective.noise, objective.continuous, objective.categories
    widest = max(4, noise, continuous, categories)
    check_counters(rows * -(-widest // 4))
    columns = min(next_power_of_two(widest), _MOST_COLUMNS)
    block = _TILE // columns
    inputs = torch.empty((rows, noise + continuous + categories), device=key.device)
    category = torch.empty(rows, dtype=torch.int64, device=key.device)
    at = torch.empty(points, device=key.device)
    with device_of(key):
        draw_kernel[(-(-rows // block), -(-widest // columns))](
            key.contiguous(), inputs, category, at, rows, points, noise, continuous, categories,
            NOISE=int(Stream.NOISE), CODE=int(Stream.CODE), CATEGORY=int(Stream.CATEGORY),
            POINT=int(Stream.INTERPOLATION), HAS_NOISE=noise > 0, HAS_CONTINUOUS=continuous > 0,
            ROWS=block, COLUMNS=columns,
        )  # fmt: skip
    codes = Codes(inputs[:, :noise], inputs[:, noise : noise + continuous], category)
    return Draws(inputs, codes, at)
