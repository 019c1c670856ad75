"""The kernels that a step launches on a GPU, counted without one.

Triton kernels are replaced by counters; of torch's own operators, which run on the CPU as they are, each counts as many
kernels as ATen launches for it on CUDA. Fills with zero that some of these begin with are not counted.
"""

from collections import Counter
from contextlib import ExitStack
from typing import Any
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from aot import kernels
from pyvae.engine.stepper import Stepper

FREE = {
    *("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"),
    *("_unsafe_view", "lift_fresh"),  # views, which their schemas do not tell
    *("_record_function_enter_new", "_record_function_exit"),
}
"""They launch nothing."""


def _convolution(args: tuple[Any, ...]) -> int:
    return 2 if args[2] is not None else 1  # cuDNN, and the bias


def _convolution_backward(args: tuple[Any, ...]) -> int:
    return sum(args[-1])


SEVERAL = {
    "convolution": _convolution,
    "convolution_backward": _convolution_backward,
    "_foreach_norm": lambda args: 3,  # of zeros, of chunks, and of their sums
}


class _Launches(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.of: Counter[str] = Counter()

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        name = op.overloadpacket.__name__
        aliases = [r.alias_info for r in op._schema.returns]
        view = any(a is not None and not a.is_write for a in aliases)
        if not view and name not in FREE:
            self.of[name] += SEVERAL[name](args) if name in SEVERAL else 1
        return op(*args, **(kwargs or {}))


_empty = torch.empty


def _cleared(*args: Any, **named: Any) -> torch.Tensor:
    """New memory without chance in it: a class that a stub has not drawn is none otherwise."""
    x = _empty(*args, **named)
    with _disable_current_modes():
        return x.zero_()


class _Stub:
    """Stands in for a Triton kernel: its outputs stay as they are."""

    def __init__(self, name: str, of: Counter[str]) -> None:
        self._name = name
        self._of = of

    def __getitem__(self, grid: Any) -> "_Stub":
        return self

    def __call__(self, *args: Any, **named: Any) -> None:
        self._of[self._name] += 1


def launches(trainer: Stepper) -> Counter[str]:
    """Kernels of one step by the name of their operator, after two steps that warm up.

    Args:
        trainer: on the CPU, made under PYVAE_BACKEND=triton.
    """
    mode = _Launches()
    with ExitStack() as stack:
        stack.enter_context(mock.patch("torch.empty", _cleared))
        for module, name in kernels():
            stack.enter_context(
                mock.patch(f"pyvae.kernels.{module}.{name}", _Stub(name.removesuffix("_kernel"), mode.of))
            )
        trainer.advance(2)
        mode.of.clear()
        with mode:
            trainer._step()
    return mode.of
