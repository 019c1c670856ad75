// Argument checks of the raw operators; pyvae's own functions say more, and say it first.
#pragma once
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <vector>

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

// Product of the sizes of dimensions [first, last).
inline int64_t product(const Tensor& x, int64_t first, int64_t last) {
  int64_t n = 1;
  for (int64_t i = first; i < last; ++i) n *= x.size(i);
  return n;
}

// Sizes of [..., batch, latents], whose leading dimensions are ensemble members.
struct Latents {
  int64_t members, batch, latents;

  Latents(const Tensor& x, const char* name) {
    const int64_t dims = x.dim();
    STD_TORCH_CHECK(dims >= 2, name, ": expected [..., batch, latents]");
    members = product(x, 0, dims - 2);
    batch = x.size(dims - 2);
    latents = x.size(dims - 1);
  }
};

// How many members share a (seed, step) of key [..., 2]: rows of the second count on after those of the first.
inline int64_t sharing(const Tensor& key, int64_t members) {
  STD_TORCH_CHECK(key.scalar_type() == ScalarType::Long, "key: wrong dtype");
  STD_TORCH_CHECK(key.dim() >= 1 && key.size(key.dim() - 1) == 2, "key: expected [..., 2]");
  const int64_t keys = product(key, 0, key.dim() - 1);
  STD_TORCH_CHECK(keys ? members % keys == 0 : members == 0, "key: ", keys, " keys for ", members, " members");
  return keys ? members / keys : 1;
}

inline Tensor dense(const Tensor& x) { return x.is_contiguous() ? x : torch::stable::contiguous(x); }

inline std::vector<Tensor> all_dense(const std::vector<Tensor>& given) {
  std::vector<Tensor> tensors;
  for (const Tensor& x : given) tensors.push_back(dense(x));
  return tensors;
}

}  // namespace pyvae
