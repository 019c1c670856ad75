"""Adam of a CPU: torch's fused kernel and its bits, with less around it."""

import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pyvae.backend import takes_native
from pyvae.base.constants import constant


class _Moved(NamedTuple):
    """What a step writes to, of every parameter, elements in the order of memory."""

    channels_last: list[bool]
    weights: list[Tensor]
    exp_avgs: list[Tensor]
    exp_avg_sqs: list[Tensor]
    steps: list[Tensor]
    """``[]`` each, the same as in the state."""
    all_steps: Tensor
    """``[parameters]``, the memory of these."""
    kept: list[list[Tensor]]
    """What the state of each parameter has, which somebody may have put others in the place of."""


class CpuAdam(torch.optim.Adam):
    """torch.optim.Adam with ``fused=True``, of one group of parameters: the same steps, ``state`` and ``state_dict``.

    Around its kernel torch finds out what there is to move, counts the steps of one parameter after another, and copies
    gradients with channels last without reading the copies. Here that is known from the step before. What it was not
    made for, such as a parameter without a gradient, is left to torch.
    """

    _moved: _Moved | None = None
    _norm_is_native = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._norm_is_native = takes_native("norm", torch.device("cpu"))

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._norm_is_native = takes_native("norm", torch.device("cpu"))  # of a copy too

    def zero_grad(self, set_to_none: bool = True) -> None:
        """As torch's."""
        if set_to_none:
            for group in self.param_groups:
                for parameter in group["params"]:
                    parameter.grad = None
        else:
            super().zero_grad(set_to_none)

    @torch.no_grad()
    def norm(self) -> Tensor:
        """Euclidean norm ``[]`` of all gradients together, infinite where its square is no float32; 0 without any."""
        gradients = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
        if not gradients:
            return torch.zeros(())
        if self._norm_is_native and all(g.dtype == torch.float32 and not g.is_sparse for g in gradients):
            norm: Tensor = torch.ops.pyvae_native.norm.default(gradients)
            return norm
        return nn.utils.get_total_norm(gradients)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """As torch's: move what has a gradient, unless the tensor ``found_inf`` is set and holds a 1."""
        gradients = self._gradients() if closure is None else None
        if gradients is None or self._moved is None:
            return super().step(closure)
        found_inf = getattr(self, "found_inf", None)
        if found_inf is not None and found_inf.item():
            return None
        moved, (group,) = self._moved, self.param_groups
        moved.all_steps.add_(constant(1.0, moved.all_steps))
        torch._fused_adam_(
            moved.weights,
            gradients,
            moved.exp_avgs,
            moved.exp_avg_sqs,
            [],
            moved.steps,
            lr=group["lr"],
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            amsgrad=False,
            maximize=group["maximize"],
        )
        return None

    def _gradients(self) -> list[Tensor] | None:
        """Those of what ``_moved`` has, element by element; None where torch must see to the step."""
        (group, *more) = self.param_groups
        others = group["amsgrad"] or group["decoupled_weight_decay"] or not group["fused"]
        if more or others or hasattr(self, "grad_scale"):
            return None
        parameters = group["params"]
        if self._moved is None or not self._is_current(self._moved, parameters):
            self._moved = self._find(parameters)
        if self._moved is None:
            return None
        gradients = []
        for parameter, channels_last in zip(parameters, self._moved.channels_last, strict=True):
            gradient = parameter.grad
            if gradient is None or gradient.is_sparse:
                return None
            gradient = _in_order(gradient, channels_last)
            gradients.append(gradient if gradient.is_contiguous() else gradient.contiguous())
        return gradients

    def _is_current(self, moved: _Moved, parameters: list[Tensor]) -> bool:
        if len(parameters) != len(moved.weights):
            return False
        for parameter, weight, kept in zip(parameters, moved.weights, moved.kept, strict=True):
            state = self.state.get(parameter)
            if not state or not all(map(operator.is_, state.values(), kept)):
                return False
            if parameter.data_ptr() != weight.data_ptr():
                return False
        return True

    def _find(self, parameters: list[Tensor]) -> _Moved | None:
        """None before torch's first step, and of parameters or moments in another order, dtype or place."""
        states = [self.state[p] for p in parameters if self.state.get(p)]
        if len(states) < len(parameters):
            return None
        channels_last = [p.dim() == 4 and not p.is_contiguous() for p in parameters]

        def in_order(tensors: list[Tensor]) -> list[Tensor]:
            return [_in_order(x.detach(), last) for x, last in zip(tensors, channels_last, strict=True)]

        weights = in_order(parameters)
        exp_avgs, exp_avg_sqs = (in_order([s[name] for s in states]) for name in ("exp_avg", "exp_avg_sq"))
        steps = [state["step"] for state in states]
        for x in (*weights, *exp_avgs, *exp_avg_sqs, *steps):
            if not (x.is_cpu and x.is_contiguous() and x.dtype == torch.float32):
                return None
        all_steps = torch.stack(steps)
        steps = [*all_steps.unbind()]
        for state, step in zip(states, steps, strict=True):
            state["step"] = step
        kept = [[*state.values()] for state in states]
        return _Moved(channels_last, weights, exp_avgs, exp_avg_sqs, steps, all_steps, kept)


def _in_order(x: Tensor, channels_last: bool) -> Tensor:
    return x.permute(0, 2, 3, 1) if channels_last else x
