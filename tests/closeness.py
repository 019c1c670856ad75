"""How near a kernel must come to the float64 reference."""

import torch
from torch import Tensor

# the interpreter truncates where a GPU rounds to nearest
_UNIT = {torch.float32: 2.0**-22, torch.bfloat16: 2.0**-7, torch.float16: 2.0**-10}


def assert_as_near(
    kernel: Tensor, same_dtype: Tensor, exact: Tensor, what: str = "", atol: float = 5e-7
) -> None:
    """The kernel errs at most twice as much as torch in the same dtype, plus a unit in the last place or two."""
    assert kernel.dtype == same_dtype.dtype, what
    assert kernel.shape == same_dtype.shape == exact.shape, what
    exact = exact.detach().double()
    error = (kernel.double() - exact).abs()
    allowed = float((same_dtype.detach().double() - exact).abs().amax())
    limit = 2 * allowed + _UNIT[kernel.dtype] * exact.abs() + atol
    # not >, which NaN would pass
    assert bool((error <= limit).all()), (what, float(error.max()), allowed)
