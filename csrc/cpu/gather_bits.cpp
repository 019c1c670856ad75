#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <tuple>
#include <vector>

#include "../check.h"

namespace {

using namespace pyvae;

// The eight values of a byte's bits, lowest first. Loads and stores of whole entries keep up with memory.
template <class T, T kOne>
struct Table {
  alignas(64) std::array<std::array<T, 8>, 256> values{};

  constexpr Table() {
    for (size_t byte = 0; byte < 256; ++byte) {
      for (size_t bit = 0; bit < 8; ++bit) values[byte][bit] = byte >> bit & 1 ? kOne : T{0};
    }
  }
};

template <class T, T kOne>
void unpack(const uint8_t* bits, void* to, int64_t pixels) {
  static constexpr Table<T, kOne> kTable;
  T* out = static_cast<T*>(to);
  const int64_t whole = pixels / 8;
  for (int64_t i = 0; i < whole; ++i) std::memcpy(out + 8 * i, kTable.values[bits[i]].data(), 8 * sizeof(T));
  if (pixels % 8) {
    std::memcpy(out + 8 * whole, kTable.values[bits[whole]].data(), static_cast<size_t>(pixels % 8) * sizeof(T));
  }
}

using Unpack = void (*)(const uint8_t*, void*, int64_t);

// One by the bits of its format; the values are only moved.
Unpack unpacking(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Float: return unpack<uint32_t, 0x3F800000u>;
    case ScalarType::BFloat16: return unpack<uint16_t, 0x3F80u>;
    case ScalarType::Half: return unpack<uint16_t, 0x3C00u>;
    default: STD_TORCH_CHECK(dtype == ScalarType::Byte, "dtype: wrong one"); return unpack<uint8_t, 1>;
  }
}

std::tuple<Tensor, Tensor> gather(const Tensor& store, const Tensor& given_index, int64_t pixels, ScalarType dtype) {
  check(store, "store", ScalarType::Byte, 2);
  STD_TORCH_CHECK(given_index.scalar_type() == ScalarType::Long, "index: wrong dtype");
  const Tensor index = dense(given_index);
  const int64_t width = store.size(1), rows = index.numel(), images = store.size(0);
  STD_TORCH_CHECK(width > 0, "store: no pixels");
  STD_TORCH_CHECK(8 * width - 8 < pixels && pixels <= 8 * width, "pixels: ", pixels, " for ", width, " bytes an image");
  const auto* at = index.const_data_ptr<int64_t>();
  for (int64_t i = 0; i < rows; ++i) {
    STD_TORCH_CHECK(0 <= at[i] && at[i] < images, "index: values must lie in 0 to ", images - 1,
                    ", the images of store, got ", at[i]);
  }
  std::vector<int64_t> sizes(index.sizes().begin(), index.sizes().end());
  sizes.push_back(pixels);
  Tensor unpacked = torch::stable::new_empty(store, sizes, dtype);
  sizes.back() = width;
  Tensor bits = torch::stable::new_empty(store, sizes);
  const Unpack unpack_row = unpacking(dtype);
  const auto* from = store.const_data_ptr<uint8_t>();
  auto* to = static_cast<char*>(unpacked.mutable_data_ptr());
  auto* to_bits = bits.mutable_data_ptr<uint8_t>();
  const int64_t row_stride = store.stride(0), stride = store.stride(1);
  const int64_t size = pixels * static_cast<int64_t>(unpacked.element_size());
  torch::stable::parallel_for(0, rows, std::max<int64_t>(1, 65536 / pixels), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const uint8_t* row = from + at[i] * row_stride;
      uint8_t* own = to_bits + i * width;
      if (stride == 1) {
        std::memcpy(own, row, static_cast<size_t>(width));
      } else {
        for (int64_t j = 0; j < width; ++j) own[j] = row[j * stride];
      }
      unpack_row(own, to + i * size, pixels);
    }
  });
  return {unpacked, bits};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pyvae_native, CPU, m) { m.impl("gather_bits", TORCH_BOX(&gather)); }
