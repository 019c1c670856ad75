"""What dependent work costs on one GPU: a barrier among all blocks of a kernel, and kernels that start early."""

import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait


@triton.jit
def _grid_barriers(arrived, rounds, BLOCKS: tl.constexpr):
    for done in range(rounds):
        tl.atomic_add(arrived, 1, sem="acq_rel")
        while tl.atomic_add(arrived, 0, sem="acquire") < (done + 1) * BLOCKS:
            pass


@triton.jit
def _link(x, EARLY: tl.constexpr):
    if EARLY:
        gdc_wait()
        gdc_launch_dependents()
    at = tl.arange(0, 32)
    tl.store(x + at, tl.load(x + at) + 1.0)


@triton.jit
def _null(x, EARLY: tl.constexpr):
    if EARLY:
        gdc_wait()
        gdc_launch_dependents()


def grid_barriers(arrived: Tensor, rounds: int, blocks: int) -> None:
    """``rounds`` barriers among ``blocks`` blocks, which must all fit on the device at once; ``arrived`` int32 ``[1]``
    is 0 before."""
    _grid_barriers[(blocks,)](arrived, rounds, BLOCKS=blocks, num_warps=4, launch_cooperative_grid=True)


def link(x: Tensor, *, early: bool) -> None:
    """Add 1 to float32 ``[32]``; ``early``: launched while the kernel before it still runs (programmatic dependent
    launch, sm_90 or newer)."""
    _link[(1,)](x, EARLY=early, num_warps=1, launch_pdl=early)


def null(x: Tensor, *, early: bool) -> None:
    """Nothing, with a tensor at hand; ``early`` as :func:`link`."""
    _null[(1,)](x, EARLY=early, num_warps=4, launch_pdl=early)
