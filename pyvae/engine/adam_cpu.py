"""Adam of a CPU: torch's fused kernel and its bits, with less around it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor


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


class CpuAdam(torch.optim.Adam):
    """torch.optim.Adam with ``fused=True``, of one group of parameters: the same steps, ``state`` and ``state_dict``.

    Around its kernel torch finds out what there is to move, counts the steps of one parameter after another, and copies
    gradients with channels last without reading the copies. Here that is known from the step before. What it was not
    made for, such as a parameter without a gradient, is left to torch.
    """

    _moved: _Moved | None = None

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._moved = None  # load_state_dict brings other tensors, and comes through here

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
        """Euclidean norm ``[]`` of all gradients together; where there is none, 0."""
        gradients = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
        if not gradients:
            return torch.zeros(())
        # that of torch.nn.utils.get_total_norm, which sorts them by device and dtype first
        return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """As torch's: move what has a gradient, unless the tensor ``found_inf`` is set and holds a 1."""
        gradients = self._gradients() if closure is None else None
        if gradients is None or self._moved is None:
            return super().step(closure)
        found_inf = getattr(self, "found_inf", None)
        if found_inf is not None and found_inf.item():
            return None
        moved, (group,) = self._moved, self.param_groups
        moved.all_steps.add_(1)
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
        if more or group["amsgrad"] or group["decoupled_weight_decay"] or not group["fused"]:
            return None
        parameters, moved = group["params"], self._moved
        if moved is None or any(
            p.data_ptr() != w.data_ptr() for p, w in zip(parameters, moved.weights, strict=True)
        ):
            moved = self._moved = self._find(parameters)
        if moved is None:
            return None
        gradients = []
        for parameter, channels_last in zip(parameters, moved.channels_last, strict=True):
            gradient = parameter.grad
            if gradient is None or gradient.layout != torch.strided:
                return None
            gradients.append(_in_order(gradient, channels_last).contiguous())
        return gradients

    def _find(self, parameters: list[Tensor]) -> _Moved | None:
        """None before torch's first step, and of parameters or moments in another order, dtype or place."""
        states = [self.state.get(p) for p in parameters]
        if not all(states):
            return None
        channels_last = [p.dim() == 4 and not p.is_contiguous() for p in parameters]
        moments = [[state[name] for state in states] for name in ("exp_avg", "exp_avg_sq")]
        every = [
            [_in_order(x.detach(), last) for x, last in zip(of, channels_last, strict=True)]
            for of in (parameters, *moments)
        ]
        steps = [state["step"] for state in states]
        for x in (*every[0], *every[1], *every[2], *steps):
            if not (x.is_cpu and x.is_contiguous() and x.dtype == torch.float32):
                return None
        all_steps = torch.stack(steps)
        steps = [*all_steps.unbind()]
        for state, step in zip(states, steps, strict=True):
            state["step"] = step
        return _Moved(channels_last, *every, steps, all_steps)


def _in_order(x: Tensor, channels_last: bool) -> Tensor:
    return x.permute(0, 2, 3, 1) if channels_last else x
