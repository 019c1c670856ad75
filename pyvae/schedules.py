"""Schedules as functions of the step, on the device that holds it, in float64."""

import math

import torch
from torch import Tensor

_STAGES = 8


def linear(step: Tensor, start: float, stop: float, steps: int) -> Tensor:
    """``start + (stop - start) * min(step / steps, 1)``: ``start`` at step 0, ``stop`` from step ``steps`` on.

    Args:
        step: int64, any shape, counted from 0 (the value before the update, as disentanglement_lib counts).

    Returns:
        float64 of the shape of ``step``.

    Raises:
        ValueError: ``steps`` below 1.
    """
    _at_least_one(steps=steps)
    return start + (stop - start) * (step.to(torch.float64) / steps).clamp(0.0, 1.0)


def geometric(step: Tensor, start: float, stop: float, steps: int) -> Tensor:
    """``start * (stop / start)^min(step / steps, 1)``: :func:`linear` of the logarithms.

    Args:
        step: int64, any shape, counted from 0.
        start, stop: above 0.

    Returns:
        float64 of the shape of ``step``.

    Raises:
        ValueError: ``steps`` below 1, or ``start`` or ``stop`` not above 0.
    """
    if not (start > 0 and stop > 0):
        raise ValueError(f"start, stop: expected numbers above 0, got {start} and {stop}")
    return linear(step, math.log(start), math.log(stop), steps).exp()


def stepwise(step: Tensor, start: float, stop: float, increment: float, period: int) -> Tensor:
    """``min(start + increment * floor(t / period), stop)`` of the iteration ``t = step + 1``, as ControlVAE's code
    counts: its 0.5 and 0.15 every 5,000 iterations give 16 from iteration 520,000 on and 18 from 585,000.

    Args:
        step: int64, any shape, counted from 0.

    Returns:
        float64 of the shape of ``step``.

    Raises:
        ValueError: ``period`` below 1.
    """
    _at_least_one(period=period)
    # an integer tensor times a Python number would be float32
    raised = (step + 1).div(period, rounding_mode="floor").to(torch.float64)
    return (raised * increment + start).clamp(max=stop)


def logistic(step: Tensor, steps: int) -> Tensor:
    """``sigmoid((step - steps / 2) / (steps / 10))``, from 0.0067 to 0.9933, and 1 from step ``steps`` on.

    The curve is that of Bowman et al. 2016, "Generating sentences from a continuous space", figure 2, the constants
    are those of ControlVAE's code.

    Args:
        step: int64, any shape, counted from 0.

    Returns:
        float64 of the shape of ``step``.

    Raises:
        ValueError: ``steps`` below 1.
    """
    _at_least_one(steps=steps)
    at = (step.to(torch.float64) - steps / 2) / (steps / 10)
    return ((-at).exp() + 1.0).reciprocal().masked_fill(step >= steps, 1.0)


def cyclical(step: Tensor, steps: int, cycles: int, proportion: float) -> Tensor:
    """``min(tau / proportion, 1)``, tau the part of its cycle that ``step`` has come, and 1 from step ``steps`` on.

    Fu et al. 2019, "Cyclical annealing schedule: a simple approach to mitigating KL vanishing".

    Args:
        step: int64, any shape, counted from 0 (t - 1 in the paper).
        steps: T, length of all cycles; the run's in the paper.
        cycles: M.
        proportion: R, part of a cycle in which the value rises from 0 to 1.

    Returns:
        float64 of the shape of ``step``.

    Raises:
        ValueError: ``steps`` or ``cycles`` below 1, or ``proportion`` not in (0, 1].
    """
    _at_least_one(steps=steps, cycles=cycles)
    if not 0 < proportion <= 1:
        raise ValueError(f"proportion: expected a number in (0, 1], got {proportion}")
    tau = step.remainder(math.ceil(steps / cycles)).to(torch.float64) / (steps / cycles)
    return (tau / proportion).clamp(max=1.0).masked_fill(step >= steps, 1.0)


def staged(step: Tensor, first: int) -> Tensor:
    """``10^(-i / 7)`` in stage i = 0, ..., 7, which lasts ``3^i * first`` steps; the last goes on for ever.

    The learning rate of Burda et al. 2016, "Importance weighted autoencoders", section 5, over 0.001; ``first`` is an
    epoch there. Their code (yburda/iwae, experiments.py) rounds it to two digits: 0.72 in the second stage for .7197.

    Args:
        step: int64, any shape, counted from 0.
        first: steps of stage 0.

    Returns:
        float64 of the shape of ``step``.

    Raises:
        ValueError: ``first`` below 1.
    """
    _at_least_one(first=first)
    # stage i ends with step (3^(i + 1) - 1) / 2 * first
    powers = 3 ** torch.arange(1, _STAGES, device=step.device)
    stage = ((2 * step + first).unsqueeze(-1) >= powers * first).sum(-1)
    return 10 ** (stage.to(torch.float64) / (1 - _STAGES))


def _at_least_one(**lengths: int) -> None:
    for name, length in lengths.items():
        if not length >= 1:
            raise ValueError(f"{name}: at least 1 needed, got {length}")
