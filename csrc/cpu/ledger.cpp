// What a step leaves behind on a CPU, in one call: pyvae/engine/ledger.py has the same in torch.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "../check.h"

namespace {

using namespace pyvae;

double number(const Tensor& x) {
  STD_TORCH_CHECK(x.dim() == 0, "values: expected scalars");
  if (x.scalar_type() == ScalarType::Float) return *x.const_data_ptr<float>();
  STD_TORCH_CHECK(x.scalar_type() == ScalarType::Double, "values: wrong dtype");
  return *x.const_data_ptr<double>();
}

void check_row(const Tensor& row, const char* name, size_t fields, ScalarType dtype = ScalarType::Double) {
  check(row, name, dtype, 1);
  STD_TORCH_CHECK(row.size(0) == static_cast<int64_t>(fields) && row.is_contiguous(), name, ": expected [", fields, "]");
}

// The step is judged, noted and counted; only judged unless settle. The last row of the ring is for steps that are not
// logged.
Tensor ledger(const std::vector<Tensor>& values, const Tensor& given_kl, const Tensor& bad_step, const Tensor& key,
              const Tensor& row, const Tensor& bad_row, const Tensor& ring, const std::vector<Tensor>& control,
              const std::vector<Tensor>& moved, int64_t every, bool settle) {
  check(given_kl, "kl", ScalarType::Float, 1);
  check(bad_step, "bad_step", ScalarType::Long, 0);
  const Tensor kl = dense(given_kl);
  std::vector<double> fields;
  fields.reserve(values.size() + static_cast<size_t>(kl.numel()));
  for (const Tensor& value : values) fields.push_back(number(value));
  const auto* of_latents = kl.const_data_ptr<float>();
  fields.insert(fields.end(), of_latents, of_latents + kl.numel());
  int64_t& bad_since = *bad_step.mutable_data_ptr<int64_t>();
  const bool finite = std::all_of(fields.begin(), fields.end(), [](double x) { return std::isfinite(x); });
  const bool bad = bad_since >= 0 || !finite;
  Tensor found_inf = torch::stable::new_empty(kl, {});
  *found_inf.mutable_data_ptr<float>() = bad ? 1.0f : 0.0f;
  if (!settle) return found_inf;

  check_row(key, "key", 2, ScalarType::Long);
  check_row(row, "row", fields.size());
  check_row(bad_row, "bad_row", fields.size());
  check(ring, "ring", ScalarType::Double, 2);
  const auto width = static_cast<int64_t>(fields.size());
  const int64_t capacity = ring.size(0) - 1;
  STD_TORCH_CHECK(ring.is_contiguous() && ring.size(1) == width && capacity > 0, "ring: expected [2 or more, ", width,
                  "]");
  STD_TORCH_CHECK(every > 0, "every: expected 1 or more");
  STD_TORCH_CHECK(control.size() == moved.size(), "control, moved: expected as many of each");
  for (size_t i = 0; i < control.size(); ++i) {
    check(control[i], "control", ScalarType::Double, 0);
    check(moved[i], "moved", ScalarType::Double, 0);
  }
  int64_t& step = key.mutable_data_ptr<int64_t>()[1];
  STD_TORCH_CHECK(step >= 0, "key: a step below 0");
  if (bad && bad_since < 0) {
    bad_since = step;
    std::copy(fields.begin(), fields.end(), bad_row.mutable_data_ptr<double>());
  }
  for (size_t i = 0; !bad && i < control.size(); ++i) {
    *control[i].mutable_data_ptr<double>() = *moved[i].const_data_ptr<double>();
  }
  std::copy(fields.begin(), fields.end(), row.mutable_data_ptr<double>());
  const int64_t slot = step % every ? capacity : step / every % capacity;
  std::copy(fields.begin(), fields.end(), ring.mutable_data_ptr<double>() + slot * width);
  ++step;
  return found_inf;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pyvae_native, CPU, m) { m.impl("ledger", TORCH_BOX(&ledger)); }
