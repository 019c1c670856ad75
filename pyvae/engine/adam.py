"""Adam of all parameters in a launch, after one for the norm of all gradients; torch's where there is no Triton."""

from collections.abc import Callable, Iterable
from itertools import accumulate
from math import log
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pyvae.backend import device_of, takes_triton, wanted_backend
from pyvae.engine.adam_cpu import CpuAdam
from pyvae.ops.library import next_power_of_two

Betas = tuple[float, float]

_PER_LAUNCH = 64
"""Tensors, of which each is two pointers among the 4 kB of a launch's arguments."""


def adam(
    parameters: Iterable[nn.Parameter],
    lr: float,
    device: torch.device,
    *,
    betas: Betas = (0.9, 0.999),
    staged: bool = False,
) -> torch.optim.Optimizer:
    """Adam of parameters on ``device``, its learning rate a tensor if that is ``staged`` or steps may be captured."""
    if takes_triton(device):
        return Adam(parameters, lr, betas)
    cuda = device.type == "cuda"
    # a float would be frozen into a captured graph
    rate = torch.tensor(lr, device=device) if cuda or staged else lr
    kind = CpuAdam if device.type == "cpu" and wanted_backend() != "reference" else torch.optim.Adam
    return kind(parameters, lr=rate, betas=betas, fused=True, capturable=cuda)


def moved(
    weight: Tensor,
    gradient: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    step: int,
    *,
    lr: float,
    betas: Betas = (0.9, 0.999),
    eps: float = 1e-8,
) -> tuple[Tensor, Tensor, Tensor]:
    """What adam_kernel writes in the step of that number, from 1 on, in plain torch and any float dtype: the weight and
    both its moments."""
    exp_avg = exp_avg + (gradient - exp_avg) * (1 - betas[0])
    exp_avg_sq = exp_avg_sq * betas[1] + gradient.square() * (1 - betas[1])
    mean, variance = exp_avg / (1 - betas[0] ** step), exp_avg_sq / (1 - betas[1] ** step)
    return weight - lr * mean / (variance.sqrt() + eps), exp_avg, exp_avg_sq


class _Part(NamedTuple):
    """The parameters of one launch."""

    first: int
    stop: int
    block: int
    """The first block of the first of them."""
    starts: tuple[int, ...]
    """The first block of each, counted from there."""
    blocks: int


class Adam(torch.optim.Optimizer):
    """torch.optim.Adam, with its ``state`` and ``state_dict``, of one group of parameters, without weight decay.

    A step is :meth:`norm` and :meth:`step`, a launch each for up to 64 parameters; nothing waits for the device.

    Parameters stay the tensors they are and a launch takes their addresses, so that a module keeps its strides and is
    copied and loaded like any other. Moments belong to the optimiser alone: they lie end to end, and ``state`` has
    views of them, which loading fills in place.

    Args:
        parameters: float32, on one device, none with gaps in its memory.
        lr: becomes a tensor in the group, that may be written to between steps.

    Raises:
        TypeError: a parameter is not float32.
        ValueError: there is none, they are on several devices, or one has gaps in its memory.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        lr: float,
        betas: Betas = (0.9, 0.999),
        eps: float = 1e-8,
    ) -> None:
        parameters = list(parameters)
        _check(parameters)
        device = parameters[0].device
        rate = torch.tensor(lr, dtype=torch.float32, device=device)
        # torch's Adam, given a state_dict of this one, would miss the others
        others = {"weight_decay": 0.0, "amsgrad": False, "maximize": False}
        others |= {"fused": True, "capturable": device.type == "cuda"}
        super().__init__(parameters, {"lr": rate, "betas": betas, "eps": eps, **others})
        self._parameters = parameters
        self._block = _block(sum(p.numel() for p in parameters))
        blocks = [-(-p.numel() // self._block) or 1 for p in parameters]
        self._starts = [0, *accumulate(blocks)]
        self._parts = [self._part(first) for first in range(0, len(parameters), _PER_LAUNCH)]
        every = (self._starts[-1], self._block)
        self._exp_avg, self._exp_avg_sq = (torch.zeros(every, device=device) for _ in range(2))
        self._steps = torch.zeros(len(parameters), device=device)
        self._states = [
            {
                "step": step,
                "exp_avg": self._view(self._exp_avg, n),
                "exp_avg_sq": self._view(self._exp_avg_sq, n),
            }
            for n, step in enumerate(self._steps)
        ]
        self._attempts = torch.empty(3, len(parameters), device=device)
        self._partials = torch.empty(self._starts[-1], device=device)
        self._arrived = torch.zeros((), dtype=torch.int32, device=device)
        self._all_is_well = torch.zeros((), device=device)
        self._rounded: Tensor | None = None
        self._leaves: dict[int, Tensor] = {}
        self._attempted = False

    def rounded(self, parameter: nn.Parameter) -> Tensor:
        """A leaf that every step leaves as the parameter in bfloat16, and whose gradient counts as the parameter's.

        Shape and strides are the parameter's. Where something else writes to the parameter, the leaf must be too.
        """
        number = next(n for n, p in enumerate(self._parameters) if p is parameter)
        if self._rounded is None:
            self._rounded = torch.zeros_like(self._exp_avg, dtype=torch.bfloat16)
        if number not in self._leaves:
            leaf = self._view(self._rounded, number)
            self._leaves[number] = leaf.copy_(parameter.detach()).requires_grad_()
        return self._leaves[number]

    def zero_grad(self, set_to_none: bool = True) -> None:
        """As torch's, of parameters and their rounded leaves."""
        super().zero_grad(set_to_none)
        for leaf in self._leaves.values():
            if set_to_none:
                leaf.grad = None
            elif leaf.grad is not None:
                leaf.grad.zero_()

    @torch.no_grad()
    def norm(self) -> Tensor:
        """Euclidean norm float32 ``[]`` of all gradients together; where there is none, 0."""
        from pyvae.kernels.adam import norm_kernel

        gradients = self._gradients()
        norm = torch.empty((), device=self._steps.device)
        betas = self.param_groups[0]["betas"]
        with device_of(norm):
            for part in self._parts:
                norm_kernel[(part.blocks,)](
                    self._addresses(gradients, part),
                    norm,
                    self._partials,
                    self._arrived,
                    self._steps,
                    self._attempts,
                    part.block,
                    self._starts[-1],
                    len(self._parameters),
                    STARTS=part.starts,
                    SIZES=_sizes(gradients[part.first : part.stop]),
                    LOG_BETA1=log(betas[0]),
                    LOG_BETA2=log(betas[1]),
                    BLOCK=self._block,
                    NUMBERS=next_power_of_two(len(self._parameters)),
                    num_warps=_warps(self._block),
                )
        self._attempted = True
        return norm

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Move every parameter that has a gradient, unless the float32 tensor ``found_inf`` is set and holds a 1.

        Raises:
            RuntimeError: a parameter's memory was laid out anew since the optimiser was made, or a gradient is sparse.
        """
        from pyvae.kernels.adam import adam_kernel

        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if not self._attempted:
            self.norm()
        self._attempted = False
        gradients = self._gradients()
        (group,) = self.param_groups
        with device_of(self._steps):
            for part in self._parts:
                blocks = slice(part.block, part.block + part.blocks)
                adam_kernel[(part.blocks,)](
                    self._addresses(gradients, part),
                    tuple(self._parameters[part.first : part.stop]),
                    self._exp_avg[blocks],
                    self._exp_avg_sq[blocks],
                    None if self._rounded is None else self._rounded[blocks],
                    self._steps[part.first :],
                    self._attempts[:, part.first :],
                    group["lr"],
                    # as torch.amp.GradScaler hands it over
                    getattr(self, "found_inf", self._all_is_well),
                    len(self._parameters),
                    STARTS=part.starts,
                    SIZES=_sizes(gradients[part.first : part.stop]),
                    BETA1=group["betas"][0],
                    BETA2=group["betas"][1],
                    EPS=group["eps"],
                    BLOCK=self._block,
                    num_warps=_warps(self._block),
                )
        moved = [n for n, gradient in enumerate(gradients) if gradient is not None]
        for n in moved:
            self.state[self._parameters[n]] = self._states[n]
        # autograd then refuses a backward pass through weights that are no more
        torch.autograd.graph.increment_version([self._parameters[n] for n in moved])
        return loss

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what ``state_dict`` of this class or of torch's Adam gave, in place.

        Raises:
            ValueError: it is of other parameters, or of an Adam that this is not.
        """
        (mine,), (theirs, *more) = self.param_groups, state_dict["param_groups"]
        if more or len(theirs["params"]) != len(self._parameters):
            raise ValueError("the state_dict is not of one group of as many parameters")
        for name in ("weight_decay", "amsgrad", "maximize"):
            if theirs.get(name):
                raise ValueError(f"the state_dict is of an Adam with {name}, which this one does not have")
        mine["lr"].copy_(torch.as_tensor(theirs["lr"]))
        mine["betas"], mine["eps"] = theirs["betas"], theirs["eps"]
        for number, parameter, state in zip(theirs["params"], self._parameters, self._states, strict=True):
            saved = state_dict["state"].get(number)
            for name, tensor in state.items():
                if saved:
                    tensor.copy_(saved[name])
                else:
                    tensor.zero_()
            self.state.pop(parameter, None)
            if saved:
                self.state[parameter] = state
        self._attempted = False

    def _part(self, first: int) -> _Part:
        stop = min(first + _PER_LAUNCH, len(self._parameters))
        block = self._starts[first]
        starts = tuple(start - block for start in self._starts[first:stop])
        return _Part(first, stop, block, starts, self._starts[stop] - block)

    def _view(self, blocks: Tensor, number: int) -> Tensor:
        """What of ``blocks`` belongs to a parameter, laid out as that is."""
        parameter = self._parameters[number]
        return blocks.as_strided(parameter.shape, parameter.stride(), self._starts[number] * self._block)

    def _gradients(self) -> list[Tensor | None]:
        """Those of the parameters or of their rounded leaves, each laid out as its parameter."""
        gradients = []
        for number, parameter in enumerate(self._parameters):
            if not _lie_alike(parameter, self._states[number]["exp_avg"]):
                raise RuntimeError(
                    f"parameter {number} has shape {tuple(parameter.shape)} and strides {parameter.stride()}, other "
                    "than when its optimiser was made: make the optimiser after that"
                )
            gradient = parameter.grad
            rounded = self._leaves[number].grad if number in self._leaves else None
            if rounded is not None:
                gradient = rounded if gradient is None else gradient + rounded
            if gradient is not None and gradient.layout != torch.strided:
                raise RuntimeError(f"the gradient of parameter {number} is sparse, which Adam does not take")
            if gradient is not None and not _lie_alike(parameter, gradient):
                gradient = torch.empty_like(parameter, dtype=gradient.dtype).copy_(gradient)
            gradients.append(gradient)
        return gradients

    def _addresses(self, gradients: list[Tensor | None], part: _Part) -> tuple[Tensor, ...]:
        # where there is no gradient, nothing is read
        pairs = zip(gradients, self._parameters, strict=True)
        return tuple(p if g is None else g for g, p in list(pairs)[part.first : part.stop])


def _sizes(gradients: list[Tensor | None]) -> tuple[int, ...]:
    return tuple(0 if gradient is None else gradient.numel() for gradient in gradients)


def _check(parameters: list[nn.Parameter]) -> None:
    if not parameters:
        raise ValueError("there are no parameters")
    for number, parameter in enumerate(parameters):
        if parameter.dtype != torch.float32:
            raise TypeError(f"parameter {number} is of {parameter.dtype}, but must be of torch.float32")
        if parameter.device != parameters[0].device:
            raise ValueError(
                f"parameter {number} is on {parameter.device}, but the first on {parameters[0].device}: "
                "make an optimiser for each device"
            )
        if not _lie_alike(parameter, torch.empty_like(parameter)):
            raise ValueError(
                f"parameter {number} has gaps or overlaps in its memory (shape {tuple(parameter.shape)}, strides "
                f"{parameter.stride()}): make it contiguous"
            )


def _lie_alike(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors of one shape have their elements in one order; the stride of a single one says nothing."""
    return a.shape == b.shape and all(
        n == 1 or s == t for n, s, t in zip(a.shape, a.stride(), b.stride(), strict=True)
    )


def _block(weights: int) -> int:
    """Elements of a program: enough programs for every multiprocessor, and few partial sums for the last of them."""
    return 1024 if weights <= 2**21 else 2048


def _warps(block: int) -> int:
    return 4 if block <= 1024 else 8
