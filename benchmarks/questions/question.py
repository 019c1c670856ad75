"""What a question is made of."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyvae

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Result = dict[str, Any]
"""The file of a run."""


@dataclass(frozen=True)
class Question:
    """One page of docs/findings."""

    arms: tuple[str, ...]
    """Methods of its study, in the order of tables and pictures."""
    pictures: Callable[[Sequence[Result]], Mapping[str, "Figure | bytes"]]
    """By the name of the file."""
    tables: Mapping[str, Callable[[Sequence[Result]], str]]
    """By the name in the page, in Markdown."""
    measure: Callable[[pyvae.Run], Result] | None = None
    """What is kept of a finished run."""
    compute: Callable[[], Result] | None = None
    """What is kept of a question that is answered without runs; its one arm is named so, and the seed is 0."""


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """In Markdown; the first column is words, the others numbers."""
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
    return "\n".join(
        f"|{'|'.join(line)}|" if line is lines[1] else f"| {' | '.join(line)} |" for line in lines
    )
