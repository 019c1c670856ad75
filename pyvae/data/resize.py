"""Images of one size made smaller, as disentanglement_lib makes those of Cars3D and SmallNORB."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

Array = npt.NDArray[Any]


def lanczos(image: Array, side: int) -> Array:
    """uint8 ``[side, side]`` or ``[side, side, 3]`` of a square of bytes, by Pillow's Lanczos filter."""
    picture = Image.fromarray(np.ascontiguousarray(image))
    return np.asarray(picture.resize((side, side), Image.Resampling.LANCZOS))
