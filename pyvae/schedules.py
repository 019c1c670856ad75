"""Schedules as functions of the step, on the device that holds it, in float64."""

import torch
from torch import Tensor


def linear(step: Tensor, start: float, stop: float, steps: int) -> Tensor:
    """``start + (stop - start) * min(step / steps, 1)``: ``start`` at step 0, ``stop`` from step ``steps`` on.

    Args:
        step: int64, any shape, counted from 0 (the value before the update, as disentanglement_lib counts).

    Returns:
        float64 of the shape of ``step``.
    """
    return start + (stop - start) * (step.to(torch.float64) / steps).clamp(0.0, 1.0)
