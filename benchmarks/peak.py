"""The most products and sums a second that one thread of this processor makes, measured."""

import ctypes
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch

_SECONDS = 0.02
_ROUNDS = 25
_SIDE = 512
_CODE = r"""
#if defined(__AVX512F__)
#define BYTES 64
#elif defined(__AVX__)
#define BYTES 32
#else
#define BYTES 16
#endif
#define SUMS 12 /* of their own each, more than a multiplier's latency takes */
typedef float vector __attribute__((vector_size(BYTES)));

int bytes(void) { return BYTES; }

double fp32(long rounds, float x, float *out) {
  vector sum[SUMS], a = {0}, b = {0};
  a += x; b += 1.0f - x;
  for (int i = 0; i < SUMS; i++) sum[i] = a * (float)(i + 1);
  for (long n = 0; n < rounds; n++) {
#pragma GCC unroll 12
    for (int i = 0; i < SUMS; i++) sum[i] = sum[i] * a + b;
  }
  for (int i = 1; i < SUMS; i++) sum[0] += sum[i];
  *out = sum[0][0];
  return 2.0 * rounds * SUMS * (BYTES / sizeof(float));
}

#if defined(__AVX512BF16__)
#include <immintrin.h>

double bf16(long rounds, float x, float *out) {
  __m512 sum[SUMS];
  __m512bh a = _mm512_cvtne2ps_pbh(_mm512_set1_ps(x), _mm512_set1_ps(x));
  for (int i = 0; i < SUMS; i++) sum[i] = _mm512_set1_ps(x * (i + 1));
  for (long n = 0; n < rounds; n++) {
#pragma GCC unroll 12
    for (int i = 0; i < SUMS; i++) sum[i] = _mm512_dpbf16_ps(sum[i], a, a);
  }
  for (int i = 1; i < SUMS; i++) sum[0] = _mm512_add_ps(sum[0], sum[i]);
  *out = sum[0][0];
  return 2.0 * rounds * SUMS * 32;
}
#endif
"""


@dataclass(frozen=True)
class Peak:
    """Of one thread."""

    gflop_per_s: float
    how: str


@cache
def peak(precision: str) -> Peak:
    """Of fused multiplications and additions in "fp32" or "bf16": of a loop of them in C where there is a C compiler
    that knows the processor's, else of torch's product of matrices, which is less."""
    library = _library()
    loop = getattr(library, precision, None) if library else None
    if library is None or loop is None:
        return _of_matrices(precision)
    loop.restype, loop.argtypes = ctypes.c_double, (ctypes.c_long, ctypes.c_float, ctypes.c_void_p)
    out = ctypes.c_float()
    bits = 8 * (64 if precision == "bf16" else library.bytes())
    found = _best(lambda rounds: loop(rounds, 0.5, ctypes.addressof(out)))
    return Peak(found, f"multiply-add loop in C, vectors of {bits} bits")


def _of_matrices(precision: str) -> Peak:
    x = torch.ones(_SIDE, _SIDE, dtype=torch.bfloat16 if precision == "bf16" else torch.float32)

    def products(rounds: int) -> float:
        for _ in range(rounds):
            x @ x
        return 2.0 * rounds * _SIDE**3

    return Peak(_best(products), f"torch's product of {_SIDE} x {_SIDE} matrices, for want of a C compiler")


def _best(loop: Callable[[int], float]) -> float:
    """GFLOP/s of a loop that is told its rounds and gives its operations."""
    rounds, seconds = 1, 0.0
    while seconds < _SECONDS:
        rounds *= 2
        seconds = _timed(loop, rounds)[0]
    return max(flop / took / 1e9 for took, flop in (_timed(loop, rounds) for _ in range(_ROUNDS)))


def _timed(loop: Callable[[int], float], rounds: int) -> tuple[float, float]:
    start = time.thread_time()
    flop = loop(rounds)
    return time.thread_time() - start, flop


def _library() -> ctypes.CDLL | None:
    compiler = next(filter(None, map(shutil.which, (os.environ.get("CC", "cc"), "gcc", "clang"))), None)
    if compiler is None:
        return None
    with tempfile.TemporaryDirectory(prefix="pyvae-peak-") as folder:
        source, target = Path(folder, "peak.c"), Path(folder, "peak.so")
        source.write_text(_CODE)
        command = [compiler, "-O3", "-march=native", "-ffp-contract=fast", "-shared", "-fPIC"]
        done = subprocess.run([*command, "-o", str(target), str(source)], capture_output=True)
        return ctypes.CDLL(str(target)) if done.returncode == 0 else None  # its file may go
