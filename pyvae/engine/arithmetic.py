"""Which arithmetic libraries use for the products of float32, and that they choose their kernels alike every time."""

import torch


def settle_arithmetic(precision: str) -> None:
    """Fix what libraries would otherwise choose by timing, so that two runs are equal bit for bit."""
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    products = "tf32" if precision == "tf32" else "ieee"
    torch.backends.cudnn.conv.fp32_precision = products  # type: ignore[attr-defined]
    torch.backends.cuda.matmul.fp32_precision = products
