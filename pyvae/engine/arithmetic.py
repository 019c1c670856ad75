"""Which arithmetic libraries use for products, that they choose their kernels alike every time, and what a processor
has no instructions for."""

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress

import torch
from torch import backends

from pyvae.base import processor
from pyvae.base.usual import usual_torch
from pyvae.engine.recipe import Recipe
from pyvae.errors import RecipeError, RunError

_INSIST = "PYVAE_INSIST"
_IN_TF32 = ("tf32", "fp16")


def settle_arithmetic(precision: str) -> None:
    """Fix what libraries would otherwise choose by timing, so that two runs are equal bit for bit.

    Beside networks in fp16, whose mantissa is that of tf32, torch's products are in tf32.
    """
    backends.cudnn.benchmark = False
    backends.cudnn.deterministic = True
    tf32 = precision in _IN_TF32
    # old switches and new: where they differ, torch raises an error when anybody asks for an old one
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    backends.cudnn.allow_tf32 = tf32
    for products in (backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn):  # type: ignore[attr-defined]
        products.fp32_precision = "tf32" if tf32 else "ieee"  # type: ignore[union-attr]
    # "high" is for CPUs too, which take tf32 as fp32
    backends.mkldnn.matmul.fp32_precision = "ieee"  # type: ignore[attr-defined]


class _Settled:
    """Who computes now: the switches are of the whole process, and are put back by the last."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.users = 0
        self.tf32 = False
        self.put_back: Callable[[], object] = lambda: None


_NOW = _Settled()


@contextmanager
def computing(precision: str) -> Iterator[None]:
    """:func:`settle_arithmetic` for a while, with gradients, data types and devices as usual; all is put back.

    Raises:
        RunError: another thread computes, and with products of another precision.
    """
    tf32 = precision in _IN_TF32
    with _NOW.lock:
        if _NOW.users and _NOW.tf32 != tf32 and torch.cuda.is_available():
            raise RunError(
                f"precision {precision}: another thread of this process computes in another, and torch's switches are "
                "those of a whole process: wait for it, or take a process of its own"
            )
        if not _NOW.users:
            _NOW.put_back = _kept()
            _NOW.tf32 = tf32
            settle_arithmetic(precision)
        _NOW.users += 1
    try:
        with usual_torch():
            yield
    finally:
        with _NOW.lock:
            _NOW.users -= 1
            if not _NOW.users:
                _NOW.put_back()


def _kept() -> Callable[[], object]:
    """What puts the switches back as they are now."""
    stack = ExitStack()
    # the last that is noted is put back first: what is new after what is old, which changes it
    for owner in (backends.mkldnn.matmul, backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn):  # type: ignore[attr-defined]
        stack.callback(setattr, owner, "fp32_precision", owner.fp32_precision)
    for name in ("benchmark", "deterministic", "allow_tf32"):
        with suppress(RuntimeError):  # as above: somebody has set new ones alone
            stack.callback(setattr, backends.cudnn, name, getattr(backends.cudnn, name))
    with suppress(RuntimeError):
        stack.callback(torch.set_float32_matmul_precision, torch.get_float32_matmul_precision())
    return stack.close


def check_precision(recipe: Recipe, device: torch.device, *, begun: bool = False) -> None:
    """Refuse products of bfloat16 on a processor without instructions for them, unless PYVAE_INSIST=1.

    Args:
        recipe: with the engine that trains it; the fused one does not ask the processor.
        begun: whether the run has made steps, so that its precision stays what it is.

    Raises:
        RecipeError: they would take several times as long as those of float32.
    """
    if recipe.precision != "bf16" or recipe.engine == "fused" or device.type != "cpu":
        return
    if processor.bfloat16() is not False or os.environ.get(_INSIST) == "1":
        return
    fp32 = "--precision fp32 and another --out" if begun else "--precision fp32"
    raise RecipeError(
        f"precision bf16: this processor ({processor.name()}) has no instructions for bfloat16, and takes several "
        f"times as long as with fp32: take {fp32}, or set {_INSIST}=1 to train in bf16 all the same"
    )
