"""Which arithmetic libraries use for products, that they choose their kernels alike every time, and what a processor
has no instructions for."""

import os

import torch
from torch import backends

from pyvae.base import processor
from pyvae.engine.recipe import Recipe
from pyvae.errors import RecipeError

_INSIST = "PYVAE_INSIST"


def settle_arithmetic(precision: str) -> None:
    """Fix what libraries would otherwise choose by timing, so that two runs are equal bit for bit.

    Beside networks in fp16, whose mantissa is that of tf32, torch's products are in tf32.
    """
    backends.cudnn.benchmark = False
    backends.cudnn.deterministic = True
    tf32 = precision in ("tf32", "fp16")
    # old switches and new: where they differ, torch raises an error when anybody asks for an old one
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    backends.cudnn.allow_tf32 = tf32
    for products in (backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn):  # type: ignore[attr-defined]
        products.fp32_precision = "tf32" if tf32 else "ieee"  # type: ignore[union-attr]
    # "high" is for CPUs too, which take tf32 as fp32
    backends.mkldnn.matmul.fp32_precision = "ieee"  # type: ignore[attr-defined]


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
