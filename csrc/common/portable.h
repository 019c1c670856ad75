#pragma once
#include <cstdint>

// One source for g++ and nvcc.
#if defined(__CUDACC__)
#define PYVAE_HD __host__ __device__ __forceinline__
#else
#define PYVAE_HD inline __attribute__((always_inline))
#endif
