"""Which arithmetic libraries use for the products of float32, and that they choose their kernels alike every time."""

import torch
from torch import backends


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
