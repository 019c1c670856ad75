"""A module and its optimiser: a guarded step, and their tensors by name."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from pyvae.base.constants import constant
from pyvae.engine.adam import Adam
from pyvae.engine.adam_cpu import CpuAdam


class Trained(NamedTuple):
    """A module and the optimiser that moves it, under the name that prefixes their tensors in a checkpoint."""

    name: str
    module: nn.Module
    optimizer: torch.optim.Optimizer

    def tensors(self) -> dict[str, Tensor]:
        """``<name>.<parameter>``, and ``<name>.optimizer.<parameter>.<moment>``."""
        tensors = {f"{self.name}.{name}": tensor for name, tensor in self.module.state_dict().items()}
        for name, parameter in self.module.named_parameters():
            for moment, value in self.optimizer.state[parameter].items():
                tensors[f"{self.name}.optimizer.{name}.{moment}"] = value
        return tensors

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Take over what :meth:`tensors` gave."""
        mine = {
            n.removeprefix(f"{self.name}."): t for n, t in tensors.items() if n.startswith(f"{self.name}.")
        }
        self.module.load_state_dict({n: t for n, t in mine.items() if not n.startswith("optimizer.")})
        state = {}
        for number, (name, parameter) in enumerate(self.module.named_parameters()):
            prefix = f"optimizer.{name}."
            moments = {n.removeprefix(prefix): t for n, t in mine.items() if n.startswith(prefix)}
            state[number] = {n: _laid_out_as(parameter, t) for n, t in moments.items()}
        groups = self.optimizer.state_dict()["param_groups"]
        # moves each moment to where the optimiser wants it: not always to the device of its parameter
        self.optimizer.load_state_dict({"state": state, "param_groups": groups})

    def set_rate(self, rate: Tensor) -> None:
        """Set the learning rate of the next step, which the optimiser keeps as a tensor, to ``rate`` ``[]``."""
        for group in self.optimizer.param_groups:
            group["lr"].copy_(rate)

    def backward(self, loss: Tensor) -> Tensor:
        """Gradients of the loss in the parameters; returns their Euclidean norm ``[]``."""
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward(constant(1.0, loss.detach()))
        if isinstance(self.optimizer, Adam | CpuAdam):
            return self.optimizer.norm()
        # not module.parameters(), which looks for them in every module
        held = [p for group in self.optimizer.param_groups for p in group["params"]]
        return nn.utils.get_total_norm([p.grad for p in held if p.grad is not None])

    def step(self, found_inf: Tensor) -> None:
        """Move the parameters by their gradients, unless ``found_inf`` (float32 ``[]``, on the device) is 1."""
        if isinstance(self.optimizer, Adam | torch.optim.Adam):
            # as torch.amp.GradScaler hands it over: the kernel then changes nothing
            self.optimizer.found_inf = found_inf  # type: ignore[union-attr]
        else:
            for parameter in self.module.parameters():
                if parameter.grad is not None:
                    # Adagrad stands still where the gradient is zero
                    parameter.grad.masked_fill_(found_inf > 0, 0.0)
        self.optimizer.step()


def _laid_out_as(parameter: Tensor, saved: Tensor) -> Tensor:
    """The saved tensor in the memory layout of its parameter, which the optimiser gave it."""
    if saved.shape != parameter.shape:
        return saved
    return torch.empty_like(parameter, device=saved.device, requires_grad=False).copy_(saved)
