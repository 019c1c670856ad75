"""Numbers on a device, made once: to fill one in every step is a launch of its own."""

import torch
from torch import Tensor

_made: dict[tuple[float, torch.dtype, torch.device], Tensor] = {}


def constant(value: float, like: Tensor) -> Tensor:
    """``value`` in the shape, the dtype and on the device of ``like``; to be read, never written to."""
    key = (value, like.dtype, like.device)
    # what is made under a transformation, a mode or a graph is good there alone
    passing = (
        torch.compiler.is_compiling()
        or type(like) is not Tensor
        or torch._C._are_functorch_transforms_active()
        or torch.is_inference_mode_enabled()
        or (key not in _made and like.is_cuda and torch.cuda.is_current_stream_capturing())
    )
    if passing:
        return like.new_full(like.shape, value)
    if key not in _made:
        _made[key] = torch.full((), value, dtype=like.dtype, device=like.device)
    return _made[key].expand(like.shape)
