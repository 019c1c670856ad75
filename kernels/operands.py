"""What the kernels of fused networks have in common: operands, their rounding and products, the start of a launch.

Operands are fp16, bf16 or fp32; sums are fp32. fp32 operands are rounded to the ten bits of TF32 where they are stored,
since tensor cores cut the others off, or stay as they are (TF32 = False), to prove indices against float64.
"""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

# the interpreter keeps bf16 as integers, which it multiplies and compares: there they are widened, and rounded by hand
INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)
LARGEST = tl.constexpr(1e14)
"""What is above it counts as not finite: of a gradient that does not, the square is far from overflow."""


@triton.jit
def begin(PDL: tl.constexpr):
    """First in every kernel of a chain of programmatic dependent launches: wait for all that was launched before, then
    let the next one take its place. A kernel that touched memory earlier would break those two launches away."""
    if PDL:
        gdc_wait()
        gdc_launch_dependents()


@triton.jit
def halves(x):
    """float32 ``x`` as the sum of two bf16, which is exact where ``x`` is rounded to TF32."""
    high = (x.to(tl.int32, bitcast=True) & -0x10000).to(tl.float32, bitcast=True)
    return high.to(tl.bfloat16), (x - high).to(tl.bfloat16)


@triton.jit
def multiply(a, b, acc, TF32: tl.constexpr):
    """acc + a b; with TF32 = 2 by tensor cores for bf16, which take operands however they lie, but for 2^-16 of it."""
    if INTERPRETED:
        return tl.dot(a.to(tl.float32), b.to(tl.float32), acc, input_precision="ieee")
    elif TF32 == 2:  # noqa: RET505
        a_high, a_low = halves(a)
        b_high, b_low = halves(b)
        acc = tl.dot(a_low, b_high, acc)
        acc = tl.dot(a_high, b_low, acc)
        return tl.dot(a_high, b_high, acc)
    else:
        return tl.dot(a, b, acc, input_precision="tf32" if TF32 else "ieee")


@triton.jit
def multiply_transposed(a, b, acc, TF32: tl.constexpr):
    """acc + transposed a b."""
    if INTERPRETED or TF32 != 2:
        return multiply(tl.trans(a), b, acc, TF32)
    else:  # noqa: RET505
        a_high, a_low = halves(a)
        b_high, b_low = halves(b)
        acc = tl.dot(tl.trans(a_low), b_high, acc)
        acc = tl.dot(tl.trans(a_high), b_low, acc)
        return tl.dot(tl.trans(a_high), b_high, acc)


@triton.jit
def rounded(x, like, TF32: tl.constexpr):
    """fp32 ``x`` as an operand of the type that the pointer ``like`` has."""
    if like.dtype.element_ty == tl.float32:
        if TF32:  # to nearest, ties away from zero
            bits = x.to(tl.int32, bitcast=True)
            nearest = ((bits + 0x1000) & -0x2000).to(tl.float32, bitcast=True)
            # the NaN that GPUs make, 0x7FFFFFFF, would become -0
            return tl.where(x == x, nearest, x)
        return x
    if INTERPRETED and like.dtype.element_ty == tl.bfloat16:
        bits = x.to(tl.int32, bitcast=True)
        return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).to(tl.int16).to(tl.bfloat16, bitcast=True)
    return x.to(like.dtype.element_ty)


@triton.jit
def relu_rounded(x, like, TF32: tl.constexpr):
    """max(x, 0) as an operand; one instruction for two values where operands have 16 bits. NaN stays NaN."""
    # compiled is what stands behind a return, too, unless it is the other branch of a condition on constants
    if INTERPRETED or like.dtype.element_ty == tl.float32:
        return rounded(tl.maximum(x, 0.0, propagate_nan=tl.PropagateNan.ALL), like, TF32)
    elif like.dtype.element_ty == tl.bfloat16:  # noqa: RET505
        return tl.inline_asm_elementwise(
            "cvt.rn.relu.bf16x2.f32 $0, $2, $1;", "=r,r,r", [x], dtype=tl.bfloat16, is_pure=True, pack=2
        )
    else:
        return tl.inline_asm_elementwise(
            "cvt.rn.relu.f16x2.f32 $0, $2, $1;", "=r,r,r", [x], dtype=tl.float16, is_pure=True, pack=2
        )


@triton.jit
def pixel(m, SIDE: tl.constexpr, EDGE: tl.constexpr):
    """Where pixel ``m`` of maps of SIDE x SIDE lies, if rows have EDGE columns of zeros at either end."""
    return m + EDGE * (2 * (m // SIDE) + 1)


@triton.jit
def positive(x):
    """Where an activation is above 0, which its gradient passes."""
    return x.to(tl.float32) > 0.0


@triton.jit
def not_finite(x):
    """1 where ``x`` is NaN, infinite or on the way there, else 0: int32, whose maximum is sure, as NaN's is not."""
    return ((tl.abs(x) < LARGEST) == 0).to(tl.int32)


@triton.jit
def flag(flags_ptr, member, bad):
    """Set bit 0 of the member's flags if ``bad`` is not 0; the order in which programs do so does not matter."""
    tl.atomic_or(flags_ptr + member, 1, mask=bad != 0)
