#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <cstring>
#include <optional>
#include <tuple>
#include <vector>

#include "../check.h"
#include "../common/permutation.h"
#include "clones.h"

namespace {

using namespace pyvae;

constexpr int64_t kCounted = 256;

// Rank of every row by counting those before it: n^2 comparisons, vectorised, beat sorting a small batch.
PYVAE_CLONES void count_ranks(const uint32_t* __restrict words, int32_t* __restrict rank, int n) {
  for (int i = 0; i < n; ++i) rank[i] = 0;
  for (int j = 0; j < n; ++j) {
    const uint32_t word = words[j];
#pragma omp simd
    for (int i = 0; i < n; ++i) rank[i] += stands_before(word, j, words[i], i);
  }
}

// order[r] is the row of rank r; scratch is reused from dimension to dimension.
struct Sorter {
  std::vector<uint64_t> keys, moved;
  std::vector<int32_t> rank;

  void operator()(const uint32_t* words, int64_t n, int64_t* order) {
    if (n <= kCounted) {
      rank.resize(static_cast<size_t>(n));
      count_ranks(words, rank.data(), static_cast<int>(n));
      for (int64_t i = 0; i < n; ++i) order[rank[i]] = i;
      return;
    }
    keys.resize(static_cast<size_t>(n));
    moved.resize(static_cast<size_t>(n));
    for (int64_t i = 0; i < n; ++i) keys[i] = static_cast<uint64_t>(words[i]) << 32 | static_cast<uint64_t>(i);
    // byte by byte of the word, lowest first; each pass keeps the order of equals
    for (int shift = 32; shift < 64; shift += 8) {
      int64_t place[257] = {};
      for (int64_t i = 0; i < n; ++i) ++place[(keys[i] >> shift & 255) + 1];
      for (int byte = 0; byte < 256; ++byte) place[byte + 1] += place[byte];
      for (int64_t i = 0; i < n; ++i) moved[place[keys[i] >> shift & 255]++] = keys[i];
      keys.swap(moved);
    }
    for (int64_t r = 0; r < n; ++r) order[r] = static_cast<int64_t>(keys[r] & 0xFFFFFFFFu);
  }
};

// Words of one quad of dimensions: lanes[k * batch + row] belongs to dimension 4 * quad + k.
void draw_quad(const int64_t* key, uint32_t stream, int64_t first_row, int64_t batch, int64_t quads, int64_t quad,
               uint32_t* lanes) {
  for (int64_t row = 0; row < batch; ++row) {
    const Words words = philox(static_cast<uint64_t>(key[0]), static_cast<uint32_t>((first_row + row) * quads + quad),
                               stream, static_cast<uint64_t>(key[1]));
    lanes[row] = words.x;
    lanes[batch + row] = words.y;
    lanes[2 * batch + row] = words.z;
    lanes[3 * batch + row] = words.w;
  }
}

template <class T>
void gather(const void* from, void* to, const int64_t* order, int64_t batch, int64_t columns) {
  const T* source = static_cast<const T*>(from);
  T* target = static_cast<T*>(to);
  for (int64_t r = 0; r < batch; ++r) target[r * columns] = source[order[r] * columns];
}

std::tuple<Tensor, Tensor> permute(const std::optional<Tensor>& given_first, const Tensor& given_z,
                                   const Tensor& given_key, int64_t stream) {
  const Tensor z = dense(given_z), key = dense(given_key);
  const auto [members, batch, columns] = Latents(z, "z");
  const int64_t quads = (columns + 3) / 4;
  const int64_t shared = sharing(key, members), width = static_cast<int64_t>(z.element_size());
  STD_TORCH_CHECK(width == 2 || width == 4 || width == 8, "z: expected a float tensor");
  std::optional<Tensor> first;
  if (given_first) {
    check(*given_first, "first", z.scalar_type(), z.dim());
    check_same_shape(*given_first, "first", z);
    first = dense(*given_first);
  }
  const int64_t out_batch = first ? 2 * batch : batch, size = batch * columns * width;
  std::vector<int64_t> sizes(z.sizes().begin(), z.sizes().end());
  Tensor order = torch::stable::new_empty(z, sizes, ScalarType::Long);
  *(sizes.end() - 2) = out_batch;
  Tensor out = torch::stable::new_empty(z, sizes);
  const auto* from = static_cast<const char*>(z.const_data_ptr());
  const auto* head = first ? static_cast<const char*>(first->const_data_ptr()) : nullptr;
  auto* to = static_cast<char*>(out.mutable_data_ptr());
  const auto* keys = key.const_data_ptr<int64_t>();
  auto* orders = order.mutable_data_ptr<int64_t>();
  const auto move = width == 2 ? gather<uint16_t> : width == 4 ? gather<uint32_t> : gather<uint64_t>;
  const int64_t grain = std::max<int64_t>(1, 16384 / std::max<int64_t>(batch, 1));
  torch::stable::parallel_for(0, members * quads, grain, [&](int64_t begin, int64_t end) {
    Sorter sort;
    std::vector<uint32_t> lanes(static_cast<size_t>(4 * batch));
    std::vector<int64_t> ranked(static_cast<size_t>(batch));
    for (int64_t task = begin; task < end; ++task) {
      const int64_t member = task / quads, quad = task % quads;
      char* member_to = to + member * out_batch * columns * width;
      if (head && quad == 0) {
        std::memcpy(member_to, head + member * size, static_cast<size_t>(size));
      }
      if (head) member_to += size;
      draw_quad(keys + 2 * (member / shared), static_cast<uint32_t>(stream), member % shared * batch, batch, quads,
                quad, lanes.data());
      for (int64_t column = 4 * quad; column < std::min(columns, 4 * quad + 4); ++column) {
        sort(lanes.data() + (column & 3) * batch, batch, ranked.data());
        move(from + member * size + column * width, member_to + column * width, ranked.data(), batch, columns);
        int64_t* own = orders + member * batch * columns + column;
        for (int64_t r = 0; r < batch; ++r) own[r * columns] = ranked[r];
      }
    }
  });
  return {out, order};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pyvae_native, CPU, m) { m.impl("permute_dims", TORCH_BOX(&permute)); }
