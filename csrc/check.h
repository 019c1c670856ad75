// Argument checks of the raw operators; pyvae's own functions say more, and say it first.
#pragma once
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

namespace pyvae {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline void check(const Tensor& x, const char* name, ScalarType dtype, int64_t dims) {
  STD_TORCH_CHECK(x.scalar_type() == dtype, name, ": wrong dtype");
  STD_TORCH_CHECK(x.dim() == dims, name, ": expected ", dims, " dimensions, got ", x.dim());
}

inline void check_same_shape(const Tensor& x, const char* name, const Tensor& y) {
  STD_TORCH_CHECK(x.dim() == y.dim(), name, ": wrong number of dimensions");
  for (int64_t i = 0; i < x.dim(); ++i) {
    STD_TORCH_CHECK(x.size(i) == y.size(i), name, ": wrong size ", x.size(i), " of dimension ", i);
  }
}

// Members that share a (seed, step): rows of the second count on after those of the first.
inline int64_t sharing(const Tensor& key, int64_t members) {
  check(key, "key", ScalarType::Long, 2);
  const int64_t keys = key.size(0);
  STD_TORCH_CHECK(key.size(1) == 2 && (keys ? members % keys == 0 : members == 0), "key: expected [keys, 2]");
  return keys ? members / keys : 1;
}

inline Tensor dense(const Tensor& x) { return x.is_contiguous() ? x : torch::stable::contiguous(x); }

}  // namespace pyvae
