"""Bars that say how far something is, on a terminal, in a log and in a notebook."""

import sys
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tqdm import tqdm


def in_notebook() -> bool:
    """Whether a Jupyter kernel runs this."""
    # what nobody has imported is not running
    ipython: Any = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    return getattr(shell, "kernel", None) is not None


def bar_class() -> "type[tqdm[Any]]":
    """A widget in a notebook that has ipywidgets, else a line of text."""
    if in_notebook() and find_spec("ipywidgets") is not None:
        from tqdm.notebook import tqdm as bar
    else:
        from tqdm import tqdm as bar
    kind: type[tqdm[Any]] = bar
    return kind


def redrawn() -> bool:
    """Whether a bar takes the place of the one before it, so that it may be drawn often."""
    return sys.stderr.isatty() or in_notebook()
