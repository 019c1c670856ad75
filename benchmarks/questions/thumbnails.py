"""Small grey images that a result file can hold."""

import base64
import io

import torch
from torch import Tensor

SIDE = 32
_LEVELS = 16
Thumbnails = dict[str, int | str]
"""Rows, columns, and a PNG of 16 greys in base64, the images without gaps."""


def pack(images: Tensor) -> Thumbnails:
    """Images ``[rows, columns, 1, H, W]`` in [0, 1], H and W multiples of 32, averaged down to 32 x 32."""
    from PIL import Image

    rows, columns, _, height, width = images.shape
    small = torch.nn.functional.avg_pool2d(images.flatten(0, 1), (height // SIDE, width // SIDE))
    sheet = small.unflatten(0, (rows, columns)).squeeze(2).movedim(1, 2).reshape(rows * SIDE, columns * SIDE)
    levels = (sheet.clamp(0, 1) * (_LEVELS - 1)).round().to(torch.uint8)
    picture = Image.frombytes("P", (columns * SIDE, rows * SIDE), levels.numpy().tobytes())
    picture.putpalette([grey for level in range(_LEVELS) for grey in [level * 255 // (_LEVELS - 1)] * 3])
    content = io.BytesIO()
    picture.save(content, "PNG", bits=4, optimize=True)
    return {"rows": rows, "columns": columns, "png": base64.b64encode(content.getvalue()).decode()}


def unpack(packed: Thumbnails) -> Tensor:
    """The images again, ``[rows, columns, 1, 32, 32]`` in [0, 1]."""
    import numpy as np
    from PIL import Image

    rows, columns = int(packed["rows"]), int(packed["columns"])
    with Image.open(io.BytesIO(base64.b64decode(str(packed["png"])))) as opened:
        pixels = torch.from_numpy(np.array(opened.convert("L"))).float() / 255
    return pixels.view(rows, SIDE, columns, SIDE).movedim(1, 2).unsqueeze(2)
