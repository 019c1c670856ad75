#include <algorithm>
#include <vector>

#include "launch.h"
#include "posterior_entropy.cuh"

namespace {

using namespace pyvae;

Tensor posterior_density(const Tensor& given_mu, const Tensor& given_logvar, const Tensor& low, const Tensor& step,
                         std::vector<int64_t> factor_sizes, int64_t nodes) {
  check(given_mu, "mu", ScalarType::Float, 2);
  check(given_logvar, "logvar", ScalarType::Float, 2);
  check_same_shape(given_logvar, "logvar", given_mu);
  for (const Tensor* x : {&low, &step}) {
    check(*x, "low, step", ScalarType::Double, 1);
    STD_TORCH_CHECK(x->size(0) == given_mu.size(0) && x->is_contiguous(), "low, step: expected [D]");
  }
  const torch::stable::accelerator::DeviceGuard guard(given_mu.get_device_index());
  const Tensor mu = dense(given_mu), logvar = dense(given_logvar);
  const int64_t columns = mu.size(0);
  const int count = static_cast<int>(factor_sizes.size());
  STD_TORCH_CHECK(count >= 1 && count <= kMostFactors, "factor_sizes: 1 to ", kMostFactors, " factors");
  STD_TORCH_CHECK(mu.size(1) < (int64_t(1) << 31) && nodes < (1 << 24), "mu, nodes: too many");
  Classes classes{};
  const Plan plan = plan_of(factor_sizes.data(), count, mu.size(1), nodes, classes);
  STD_TORCH_CHECK(static_cast<int64_t>(plan.outer) * plan.middle * plan.inner == plan.rows && plan.rows > 0,
                  "mu: not one row for each point of the grid");
  const int64_t tiles = (nodes + kNodes * kMostThreads - 1) / (kNodes * kMostThreads);
  const int64_t of_tile = (nodes + tiles - 1) / tiles;
  const int threads = static_cast<int>(((of_tile + kNodes - 1) / kNodes + 31) / 32 * 32);
  const auto f32 = ScalarType::Float;
  Tensor each = torch::stable::new_empty(mu, {columns, plan.slices, plan.inner, nodes}, f32);
  Tensor second = torch::stable::new_zeros(mu, {columns, plan.slices, plan.pieces, plan.middle, nodes}, f32);
  Tensor rest = torch::stable::new_empty(mu, {columns, plan.pieces, plan.outer, nodes}, f32);
  Tensor density = torch::stable::new_empty(mu, {columns, classes.total, nodes}, ScalarType::Double);
  const auto kernel = plan.inner <= 4    ? density_kernel<4>
                      : plan.inner <= 8  ? density_kernel<8>
                      : plan.inner <= 16 ? density_kernel<16>
                                         : density_kernel<kPiece>;
  const dim3 grid(static_cast<unsigned>(tiles * plan.slices * plan.pieces), static_cast<unsigned>(columns));
  kernel<<<grid, threads, 0, stream_of(mu)>>>(mu.const_data_ptr<float>(), logvar.const_data_ptr<float>(),
                                              low.const_data_ptr<double>(), step.const_data_ptr<double>(),
                                              each.mutable_data_ptr<float>(), second.mutable_data_ptr<float>(),
                                              rest.mutable_data_ptr<float>(), plan);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  const int64_t all = columns * classes.total * nodes;
  collect_kernel<<<static_cast<unsigned>((all + 255) / 256), 256, 0, stream_of(mu)>>>(
      each.const_data_ptr<float>(), second.const_data_ptr<float>(), rest.const_data_ptr<float>(),
      density.mutable_data_ptr<double>(), columns, plan, classes);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  return density;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pyvae_native, CUDA, m) { m.impl("posterior_density", TORCH_BOX(&posterior_density)); }
