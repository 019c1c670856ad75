"""Does continuous pressure on the bottleneck matter? ControlVAE with linear and adaptive capacity."""

from collections.abc import Sequence

import pyvae
from questions.question import Question, Result


def measure(run: pyvae.Run) -> Result:
    """To come."""
    raise NotImplementedError


def pictures(found: Sequence[Result]) -> dict[str, bytes]:
    """To come."""
    return {}


QUESTION = Question(
    arms=("linear", "linear-stretched", "adaptive", "adaptive-26k", "adaptive-smoothed"),
    measure=measure,
    pictures=pictures,
    tables={},
)
