// Which of the instruction sets that files compile code for, each in a namespace of its own, this processor has.
#pragma once
#include <algorithm>
#include <cstdint>
#include <optional>

// vectors of a width, and code for an instruction set within a file
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && __GNUC__ >= 11
#define PYVAE_INSTRUCTION_SETS 1
#include <immintrin.h>
#endif

namespace pyvae {

enum Level : int64_t { kNone, kAvx2, kAvx512, kAvx512Bf16 };

inline Level level_of_processor() {
#ifdef PYVAE_INSTRUCTION_SETS
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma") || !__builtin_cpu_supports("bmi2")) return kNone;
  for (const bool has : {__builtin_cpu_supports("avx512f") != 0, __builtin_cpu_supports("avx512bw") != 0,
                         __builtin_cpu_supports("avx512cd") != 0, __builtin_cpu_supports("avx512dq") != 0,
                         __builtin_cpu_supports("avx512vl") != 0}) {
    if (!has) return kAvx2;
  }
  return __builtin_cpu_supports("avx512bf16") ? kAvx512Bf16 : kAvx512;
#else
  return kNone;
#endif
}

inline Level& level() {
  static Level own = level_of_processor();
  return own;
}

// at_most: for tests, of the other instruction sets; it stays.
inline int64_t level_at_most(std::optional<int64_t> at_most) {
  if (at_most) level() = std::min(level_of_processor(), static_cast<Level>(std::max<int64_t>(*at_most, kNone)));
  return level();
}

}  // namespace pyvae
