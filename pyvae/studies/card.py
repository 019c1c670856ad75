"""Rates of the fused engine on the one card where they were measured: how large groups should be, and how long a study
takes on a card that is not at hand. They are those of benchmarks/results/gpu-h100-80gb-hbm3-2026-11-28."""

from math import log2

from pyvae.engine.fused.supports import network_for
from pyvae.engine.recipe import Recipe

NAME = "NVIDIA H100 80GB HBM3"
MEMORY = 80_000_000_000
"""Bytes, as its name has them."""
MEMBERS: dict[int, float] = {
    1: 7926.2,
    2: 11583.0,
    4: 14528.0,
    8: 17078.0,
    16: 19405.0,
    32: 21043.0,
    64: 21947.0,
}
"""Steps of all members in a second, by their number: beta-VAE of the burgess network, batches of 64, fp16."""
SLOWER = {"fp16": 1.0, "bf16": 1.0, "tf32": 19405.0 / 6956.5}
"""How many times as long a step takes in other operands, of 16 members for tf32 and of one for bf16."""


def relative_rate(members: int) -> float:
    """Steps of all members in a second over those of one alone."""
    if members in MEMBERS:
        return MEMBERS[members] / MEMBERS[1]
    below = max(n for n in MEMBERS if n <= members)
    above = min((n for n in MEMBERS if n > members), default=None)
    if above is None:
        return MEMBERS[below] / MEMBERS[1]
    part = (log2(members) - log2(below)) / (log2(above) - log2(below))
    return (MEMBERS[below] + part * (MEMBERS[above] - MEMBERS[below])) / MEMBERS[1]


def rate(recipe: Recipe, members: int, channels: int) -> float:
    """Steps of all members in a second that a recipe would make there: as measured, and in proportion to the batch.

    Raises:
        UnknownNetworkError: the fused engine does not know the network.
    """
    network_for(recipe, channels)
    return MEMBERS[1] * relative_rate(members) / SLOWER[recipe.precision] * 64 / recipe.batch_size
