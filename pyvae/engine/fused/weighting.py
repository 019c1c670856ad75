"""How objectives weigh the KL, for the kernel that does so for all members of an ensemble."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from pyvae.control import Control
from pyvae.engine.controller import options, settings
from pyvae.objectives import VAE, AnnealedVAE, BetaVAE, CapacityVAE, ControlVAE, Objective

SETTINGS = 16
"""Numbers of a member."""


class Options(NamedTuple):
    """Constants of kl_weight_kernel, which members of an ensemble share."""

    SCHEDULE: str = "linear"
    LINEAR: bool = False
    ANTI_WINDUP: str = "conditional"
    LIMITED_ABOVE: bool = False
    COMPARE_LIMITED: bool = False
    TIE_HOLDS: bool = False
    SMOOTHED: bool = False


@dataclass(frozen=True)
class Weighting:
    """A kind of objective: "seam" is one whose gradients at the latents come from plain torch."""

    kind: Literal["constant", "capacity", "control", "annealed", "seam"] = "constant"
    options: Options = field(default_factory=Options)


def weighting_of(objective: Objective) -> Weighting:
    """That of an objective."""
    if isinstance(objective, VAE | BetaVAE):
        return Weighting()
    if isinstance(objective, CapacityVAE):
        return Weighting("capacity")
    if isinstance(objective, ControlVAE):
        return Weighting("control", Options(**options(objective)))
    if isinstance(objective, AnnealedVAE):
        return Weighting("annealed", Options(SCHEDULE=objective.schedule))
    return Weighting("seam")


def settings_of(objectives: Sequence[Objective]) -> Tensor:
    """float64 ``[members, SETTINGS]``: the numbers of each, as kl_weight_kernel reads them."""
    rows = torch.zeros(len(objectives), SETTINGS, dtype=torch.float64)
    for row, objective in zip(rows, objectives, strict=True):
        values: Sequence[float] = ()
        if isinstance(objective, CapacityVAE):
            values = objective.gamma, objective.capacity, objective.capacity_steps
        elif isinstance(objective, ControlVAE):
            values = settings(objective)
        elif isinstance(objective, AnnealedVAE):
            steps, cycles = objective.annealing_steps, objective.cycles
            values = steps, math.ceil(steps / cycles), steps / cycles, objective.proportion
        row[: len(values)] = torch.tensor(values, dtype=torch.float64)
    return rows


def initial_weight(objective: Objective) -> float:
    """The weight of the KL where it is constant; elsewhere whatever, since a kernel writes it."""
    return objective.beta if isinstance(objective, BetaVAE) else 1.0 if isinstance(objective, VAE) else 0.0


def initial_control(objectives: Sequence[Objective]) -> Tensor:
    """float64 ``[members, 5]``: the controllers' state before the first step."""
    states = [
        torch.stack(tuple(objective.initial_control("cpu")))
        if isinstance(objective, ControlVAE)
        else torch.zeros(len(Control._fields), dtype=torch.float64)
        for objective in objectives
    ]
    return torch.stack(states)
