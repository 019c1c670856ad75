"""Rows of small images behind their names."""

from collections.abc import Sequence

from torch import Tensor

from pyvae.report.bitmap import png
from pyvae.report.figures import tile
from pyvae.report.markup import image

_SIDE = 48
"""Pixels of an image of a row."""


def strips(rows: Sequence[str]) -> str:
    """A table of rows of :func:`strip`."""
    return f'<div class="scroll"><table class="strips">{"".join(rows)}</table></div>'


def strip(name: str, images: Tensor, alt: str) -> str:
    """Images ``[n, C, H, W]`` in a row behind their name, which is HTML."""
    picture = image("png", png(tile(images.unsqueeze(0))), alt, width=len(images) * _SIDE)
    return f'<tr><th scope="row">{name}</th><td>{picture}</td></tr>'
