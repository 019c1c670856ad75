"""Rates of the fused engine on the one card where they were measured: how large groups should be, and how long a study
takes on a card that is not at hand. They are those of benchmarks/results/gpu-h100-80gb-hbm3-2026-11-28."""

from math import log2

from pyvae.engine.fused.supports import network_for
from pyvae.engine.recipe import Recipe

NAME = "NVIDIA H100 80GB HBM3"
MEMORY = 80_000_000_000
"""Bytes, as its name has them."""
MEMBERS: dict[int, float] = {
    1: 7673.9,
    2: 10158.0,
    4: 13475.0,
    8: 16039.0,
    16: 18058.0,
    32: 19652.0,
    64: 20734.0,
}
"""Steps of all members in a second, by their number: beta-VAE of the burgess network, batches of 64, fp16."""
SLOWER = {"fp16": 1.0, "bf16": 1.0, "tf32": 18058.0 / 7076.3}
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
