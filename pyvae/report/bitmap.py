"""Images in 8 bits, pixel for pixel."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from PIL import Image


def bitmap(image: Tensor) -> Image.Image:
    """An image ``[C, H, W]`` in [0, 1], of 1 or 3 channels; what lies outside is cut off."""
    from PIL import Image

    pixels = (image.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    return Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)


def png(image: Tensor) -> bytes:
    """The content of a PNG file of an image ``[C, H, W]`` in [0, 1]."""
    content = io.BytesIO()
    bitmap(image).save(content, "PNG", optimize=True)
    return content.getvalue()
