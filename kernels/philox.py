"""Device functions of the randomness contract: the integers of pyvae.random inside Triton kernels."""

import triton
import triton.language as tl


@triton.jit
def philox(seed, c0, c1, c2, c3):
    """Philox4x32-10 of an int64 seed and four uint32 counter words; returns four uint32 words."""
    k0 = (seed & 0xFFFFFFFF).to(tl.uint32)
    k1 = ((seed >> 32) & 0xFFFFFFFF).to(tl.uint32)
    m0 = tl.full((1,), 0xD2511F53, tl.uint32)
    m1 = tl.full((1,), 0xCD9E8D57, tl.uint32)
    w0 = tl.full((1,), 0x9E3779B9, tl.uint32)
    w1 = tl.full((1,), 0xBB67AE85, tl.uint32)
    for _ in tl.static_range(10):
        h0, l0 = tl.umulhi(c0, m0), c0 * m0
        h1, l1 = tl.umulhi(c2, m1), c2 * m1
        c0, c1, c2, c3 = h1 ^ c1 ^ k0, l1, h0 ^ c3 ^ k1, l0
        k0 = k0 + w0
        k1 = k1 + w1
    return c0, c1, c2, c3


@triton.jit
def philox_at(seed, step, index, stream: tl.constexpr):
    """The four uint32 words of counter (index, stream, step); ``index`` is any integer block below 2**32."""
    c0 = index.to(tl.uint32)
    zero = c0 * 0
    c1 = zero + stream
    c2 = zero + (step & 0xFFFFFFFF).to(tl.uint32)
    c3 = zero + ((step >> 32) & 0xFFFFFFFF).to(tl.uint32)
    return philox(seed, c0, c1, c2, c3)


@triton.jit
def uniform(word):
    """((x >> 9) + 0.5) * 2**-23, exact in fp32."""
    return ((word >> 9).to(tl.float32) + 0.5) * 1.1920928955078125e-07


@triton.jit
def sin_turns(a):
    """sin(2 pi a) for |a| <= 1/4, within 2e-7: no range reduction, hence no slow path with a stack frame."""
    s = a * a
    p = 39.5367060657 * s - 76.5497822935
    p = p * s + 81.6010040732
    p = p * s - 41.3416550314
    return a * (p * s + 6.2831852819)


@triton.jit
def box_muller(u0, u1):
    """Two standard normals sqrt(-2 ln u0) * (cos, sin)(2 pi u1)."""
    radius = tl.sqrt(-2.0 * tl.log(u0))
    t = u1 - 0.5
    cos = sin_turns(tl.abs(t) - 0.25)
    folded = tl.where(tl.abs(t) > 0.25, tl.where(t > 0, 0.5 - t, -0.5 - t), t)
    return radius * cos, -radius * sin_turns(folded)


@triton.jit
def normal_rows(seed, step, rows, quads, D, stream: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Normals [ROWS, COLUMNS] at the given rows [ROWS] and counters of a row quads [COLUMNS / 4]."""
    index = rows[:, None] * ((D + 3) // 4) + quads[None, :]
    w0, w1, w2, w3 = philox_at(seed, step, index, stream)
    n0, n1 = box_muller(uniform(w0), uniform(w1))
    n2, n3 = box_muller(uniform(w2), uniform(w3))
    return tl.join(tl.join(n0, n2), tl.join(n1, n3)).reshape(ROWS, COLUMNS)


@triton.jit
def uniform_rows(seed, step, rows, quads, D, stream: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Uniforms [ROWS, COLUMNS], as :func:`normal_rows`."""
    index = rows[:, None] * ((D + 3) // 4) + quads[None, :]
    w0, w1, w2, w3 = philox_at(seed, step, index, stream)
    even = tl.join(uniform(w0), uniform(w2))
    return tl.join(even, tl.join(uniform(w1), uniform(w3))).reshape(ROWS, COLUMNS)


@triton.jit
def _mix32(x):
    x = x ^ (x >> 16)
    x = x * tl.full((1,), 0x7FEB352D, tl.uint32)
    x = x ^ (x >> 15)
    x = x * tl.full((1,), 0x846CA68B, tl.uint32)
    return x ^ (x >> 16)


@triton.jit
def _feistel_pair(left, right, a, b, key0, key1):
    left = ((left + _mix32(right ^ key0) % a) % a).to(tl.uint32)
    right = ((right + _mix32(left ^ key1) % b) % b).to(tl.uint32)
    return left, right


@triton.jit
def _feistel(x, a, b, k0, k1, k2, k3, k4, k5, k6, k7):
    left = x // b
    right = x % b
    left, right = _feistel_pair(left, right, a, b, k0, k1)
    left, right = _feistel_pair(left, right, a, b, k2, k3)
    left, right = _feistel_pair(left, right, a, b, k4, k5)
    left, right = _feistel_pair(left, right, a, b, k6, k7)
    return left * b + right


@triton.jit
def data_order(seed, epoch, position, n, a, b, STREAM: tl.constexpr):
    """The permutation of pyvae.random.data_order; position, n, a and b are uint32, (a, b) its feistel_domain."""
    zero = position * 0
    k0, k1, k2, k3 = philox_at(seed, epoch, zero, STREAM)
    k4, k5, k6, k7 = philox_at(seed, epoch, zero + 1, STREAM)
    x = _feistel(position, a, b, k0, k1, k2, k3, k4, k5, k6, k7)
    while tl.max((x >= n).to(tl.int32)) > 0:
        x = tl.where(x >= n, _feistel(x, a, b, k0, k1, k2, k3, k4, k5, k6, k7), x)
    return x
