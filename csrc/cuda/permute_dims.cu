#include <optional>
#include <tuple>
#include <vector>

#include "launch.h"
#include "permute_dims.cuh"

namespace {

using namespace pyvae;

constexpr int64_t kMostRows = 4096;

template <class T>
void launch(const Latents& shape, const Tensor* first, const Tensor& z, const Tensor& key, Tensor& out, Tensor& order,
            int64_t shared, int64_t stream) {
  const int batch = static_cast<int>(shape.batch);
  const int threads = std::min(256, (batch + 31) / 32 * 32);
  const auto blocks = static_cast<unsigned>(shape.members * shape.latents);
  permute_kernel<T><<<blocks, threads, batch * sizeof(uint32_t), stream_of(z)>>>(
      first ? static_cast<const T*>(first->const_data_ptr()) : nullptr, static_cast<const T*>(z.const_data_ptr()),
      key.const_data_ptr<int64_t>(), static_cast<T*>(out.mutable_data_ptr()), order.mutable_data_ptr<int64_t>(), batch,
      shape.latents, shared, static_cast<uint32_t>(stream));
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

std::tuple<Tensor, Tensor> permute(const std::optional<Tensor>& given_first, const Tensor& given_z,
                                   const Tensor& given_key, int64_t stream) {
  const torch::stable::accelerator::DeviceGuard guard(given_z.get_device_index());
  const Tensor z = dense(given_z), key = dense(given_key);
  const Latents shape(z, "z");
  const int64_t shared = sharing(key, shape.members), width = static_cast<int64_t>(z.element_size());
  STD_TORCH_CHECK(shape.batch >= 1 && shape.batch <= kMostRows, "z: a batch of 1 to ", kMostRows, " rows, got ",
                  shape.batch);
  STD_TORCH_CHECK(shape.members * shape.latents < (int64_t(1) << 31), "z: too many columns");
  STD_TORCH_CHECK(width == 2 || width == 4 || width == 8, "z: expected a float tensor");
  std::optional<Tensor> first;
  if (given_first) {
    check(*given_first, "first", z.scalar_type(), z.dim());
    check_same_shape(*given_first, "first", z);
    first = dense(*given_first);
  }
  std::vector<int64_t> sizes(z.sizes().begin(), z.sizes().end());
  Tensor order = torch::stable::new_empty(z, sizes, ScalarType::Long);
  if (first) *(sizes.end() - 2) *= 2;
  Tensor out = torch::stable::new_empty(z, sizes);
  const auto start = width == 2 ? launch<uint16_t> : width == 4 ? launch<uint32_t> : launch<uint64_t>;
  start(shape, first ? &*first : nullptr, z, key, out, order, shared, stream);
  return {out, order};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pyvae_native, CUDA, m) { m.impl("permute_dims", TORCH_BOX(&permute)); }
