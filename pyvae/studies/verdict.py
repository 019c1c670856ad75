"""Whether a published number was met."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from pyvae.studies.analysis import Mean, average
from pyvae.studies.published import LIKELIHOODS, Published, Quantity

CONFIDENCE = 0.95
_NATS = ("recon", "kl", *LIKELIHOODS)


class Verdict(NamedTuple):
    """Ours against a published number."""

    difference: float
    """Ours minus the published value or the nearer end of the published range, 0 within it."""
    error: float | None
    """Standard error of the difference; None where it is not known."""
    agrees: bool | None
    """None where no error is known."""
    text: str


def judge(values: Sequence[float], published: Published) -> Verdict:
    """Compare the mean over seeds with a published number.

    They agree when the difference, less what the source cannot resolve, is within the 95% interval of Student's t for
    that many seeds. A published number without an error, of a known number of runs, is taken to scatter as ours do;
    one of unknown runs is taken as exact.
    """
    mean = average(values)
    low, high = published.value, published.value if published.high is None else published.high
    difference = mean.value - min(max(mean.value, low), high)
    shown = signed(published.quantity, difference)
    if mean.error is None:
        return Verdict(difference, None, None, f"no verdict: {shown}; one seed, so no error of ours is known")
    error = math.hypot(mean.error, _error(mean, published))
    excess = max(abs(difference) - published.resolution, 0.0)
    agrees = excess <= _quantile(mean.seeds) * error
    word = "agrees" if agrees else "differs"
    size = f"{abs(difference) / error:.1f} standard errors" if error else "no error: all seeds are equal"
    return Verdict(difference, error, agrees, f"{word}: {shown}, {size}")


def _error(mean: Mean, published: Published) -> float:
    if published.error is not None:
        return published.error
    if published.runs is None or mean.error is None:
        return 0.0
    return mean.error * math.sqrt(mean.seeds / published.runs)


def _quantile(seeds: int) -> float:
    from scipy.special import stdtrit

    return float(stdtrit(seeds - 1, (1 + CONFIDENCE) / 2))


def plain(quantity: Quantity, value: float) -> str:
    """A value as it is printed: nats with two decimals, scores with four."""
    return f"{value:.2f}" if quantity in _NATS else f"{value:.4f}"


def signed(quantity: Quantity, difference: float) -> str:
    """A difference as it is printed, with its unit."""
    return f"{difference:+.2f} nats" if quantity in _NATS else f"{difference:+.4f}"
