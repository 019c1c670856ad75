"""The controller of a run: its state on the device, and the step that moves it."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pyvae.backend import device_of, takes_triton
from pyvae.control import Control
from pyvae.objectives import ControlVAE


def controller(objective: ControlVAE, device: torch.device) -> Callable[[Control, Tensor, Tensor], Control]:
    """:meth:`ControlVAE.control`, as one kernel where Triton runs."""
    if not takes_triton(device):
        return objective.control
    numbers = torch.tensor(settings(objective), dtype=torch.float64, device=device)

    def control(state: Control, kl: Tensor, step: Tensor) -> Control:
        from pyvae.kernels.controller import controller_kernel

        moved = torch.empty(len(state), dtype=torch.float64, device=device)
        with device_of(moved):
            controller_kernel[(1,)](
                kl.detach(),
                step,
                tuple(state),
                numbers,
                moved,
                **options(objective),
                num_warps=1,
                # as Python rounds, so that a comparison falls as in the reference
                enable_fp_fusion=False,
            )
        return Control(*moved.unbind())

    return control


def settings(objective: ControlVAE) -> list[float]:
    """The numbers of an objective, as kernels/controller.py reads them."""
    return [
        objective.kp,
        objective.ki,
        objective.beta_min,
        float("inf") if objective.beta_max is None else objective.beta_max,
        objective.capacity_start,
        objective.capacity,
        objective.capacity_steps,
        objective.capacity_increment,
        objective.capacity_period,
        objective.adaptive_window,
        objective.adaptive_smoothing,
    ]


def options(objective: ControlVAE) -> dict[str, Any]:
    """What is compiled into a kernel of it."""
    return {
        "SCHEDULE": objective.schedule,
        "LINEAR": objective.proportional == "linear",
        "ANTI_WINDUP": objective.anti_windup,
        "LIMITED_ABOVE": objective.beta_max is not None,
        "COMPARE_LIMITED": objective.adaptive_compared == "limited",
        "TIE_HOLDS": objective.adaptive_tie == "hold",
        "SMOOTHED": objective.adaptive_smoothing > 0,
    }
