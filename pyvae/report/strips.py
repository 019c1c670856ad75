"""Rows of small images behind their names."""

import io
from collections.abc import Sequence

import torch
from torch import Tensor

from pyvae.report.figures import tile
from pyvae.report.markup import image

_SIDE = 48
"""Pixels of an image of a row."""


def strips(rows: Sequence[str]) -> str:
    """A table of rows of :func:`strip`."""
    return f'<div class="scroll"><table class="strips">{"".join(rows)}</table></div>'


def strip(name: str, images: Tensor, alt: str) -> str:
    """Images ``[n, C, H, W]`` in a row behind their name, which is HTML."""
    picture = image("png", _png(images), alt, width=len(images) * _SIDE)
    return f'<tr><th scope="row">{name}</th><td>{picture}</td></tr>'


def _png(images: Tensor) -> bytes:
    from PIL import Image

    pixels = (tile(images.unsqueeze(0)) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    content = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(content, "PNG", optimize=True)
    return content.getvalue()
