#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <cstring>
#include <optional>
#include <tuple>
#include <vector>

#include "../check.h"
#include "clones.h"
#include "draw.h"

namespace {

using namespace pyvae;

constexpr int64_t kCounted = 128;

// A loop over these keeps its counters in registers; of one over integers g++ stores them in every round.
typedef int32_t Lanes __attribute__((vector_size(32)));
constexpr int kLanes = sizeof(Lanes) / sizeof(int32_t);
static_assert(kCounted % (2 * kLanes) == 0, "ranks are counted two vectors at a time");

// Rank of every row by counting those before it: n^2 comparisons, vectorised, beat sorting a small batch. False where
// two words are equal, which is so in one batch of millions. Writes up to kCounted ranks, of which n mean something.
PYVAE_CLONES bool count_ranks(const uint32_t* __restrict words, int32_t* __restrict rank, int n) {
  alignas(Lanes) int32_t ordered[kCounted] = {};
  for (int i = 0; i < n; ++i) ordered[i] = static_cast<int32_t>(words[i] ^ 0x80000000u);  // signed, in the same order
  for (int i = 0; i < n; i += 2 * kLanes) {
    Lanes first, second, before_first = {}, before_second = {};
    std::memcpy(&first, ordered + i, sizeof first);
    std::memcpy(&second, ordered + i + kLanes, sizeof second);
    for (int j = 0; j < n; ++j) {
      before_first -= ordered[j] < first;
      before_second -= ordered[j] < second;
    }
    std::memcpy(rank + i, &before_first, sizeof before_first);
    std::memcpy(rank + i + kLanes, &before_second, sizeof before_second);
  }
  int sum = 0;
  for (int i = 0; i < n; ++i) sum += rank[i];
  return sum == n * (n - 1) / 2;
}

// order[r] is the row of rank r; scratch is reused from dimension to dimension.
struct Sorter {
  std::vector<uint64_t> keys;
  std::vector<int32_t> rank, place;

  void operator()(const uint32_t* words, int64_t n, int64_t* order) {
    rank.resize(static_cast<size_t>(kCounted));
    if (n <= kCounted && count_ranks(words, rank.data(), static_cast<int>(n))) {
      for (int64_t i = 0; i < n; ++i) order[rank[i]] = i;
      return;
    }
    // As many buckets as rows, by the upper bits: words are uniform, so that few rows share one and the insertion sort
    // that follows moves each by a place or two.
    int shift = 24;
    while (shift > 12 && int64_t{1} << (32 - shift) < n) --shift;
    place.assign((size_t{1} << (32 - shift)) + 1, 0);
    keys.resize(static_cast<size_t>(n));
    for (int64_t i = 0; i < n; ++i) ++place[(words[i] >> shift) + 1];
    for (size_t bucket = 1; bucket < place.size(); ++bucket) place[bucket] += place[bucket - 1];
    for (int64_t i = 0; i < n; ++i) {
      keys[place[words[i] >> shift]++] = static_cast<uint64_t>(words[i]) << 32 | static_cast<uint64_t>(i);
    }
    for (int64_t r = 1; r < n; ++r) {
      const uint64_t key = keys[r];
      int64_t at = r;
      for (; at > 0 && keys[at - 1] > key; --at) keys[at] = keys[at - 1];
      keys[at] = key;
    }
    for (int64_t r = 0; r < n; ++r) order[r] = static_cast<int64_t>(keys[r] & 0xFFFFFFFFu);
  }
};

// Words of rows [begin, end) of a member, of all dimensions: words[column * batch + row], four columns to a counter.
void draw_rows(const int64_t* key, uint32_t stream, int64_t first_row, int64_t begin, int64_t end, int64_t batch,
               int64_t quads, uint32_t* words) {
  alignas(64) uint32_t drawn[4 * kDraw];
  int64_t row = begin, quad = 0;
  const int64_t counters = (end - begin) * quads;
  for (int64_t done = 0; done < counters; done += kDraw) {
    const int count = static_cast<int>(std::min<int64_t>(kDraw, counters - done));
    draw(static_cast<uint64_t>(key[0]), static_cast<uint64_t>(key[1]), stream,
         static_cast<uint32_t>((first_row + begin) * quads + done), count, drawn);
    for (int i = 0; i < count; ++i) {
      for (int k = 0; k < 4; ++k) words[(4 * quad + k) * batch + row] = drawn[k * kDraw + i];
      if (++quad == quads) {
        quad = 0;
        ++row;
      }
    }
  }
}

// Up to four neighbouring columns at once, which lie in the same lines of the cache.
template <class T>
void gather(const void* from, void* to, const int64_t* ranked, int64_t* order, int64_t batch, int64_t columns,
            int64_t width) {
  const T* source = static_cast<const T*>(from);
  T* target = static_cast<T*>(to);
  for (int64_t r = 0; r < batch; ++r) {
    for (int64_t k = 0; k < width; ++k) {
      const int64_t row = ranked[k * batch + r];
      target[r * columns + k] = source[row * columns + k];
      order[r * columns + k] = row;
    }
  }
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
  std::vector<uint32_t> words(static_cast<size_t>(members * batch * quads * 4));
  const int64_t grain = std::max<int64_t>(1, 16384 / std::max<int64_t>(4 * quads, 1));
  torch::stable::parallel_for(0, members * batch, grain, [&](int64_t begin, int64_t end) {
    while (begin < end) {
      const int64_t member = begin / batch, row = begin % batch, rows = std::min(end - begin, batch - row);
      draw_rows(keys + 2 * (member / shared), static_cast<uint32_t>(stream), member % shared * batch, row, row + rows,
                batch, quads, words.data() + member * batch * quads * 4);
      begin += rows;
    }
  });
  torch::stable::parallel_for(0, members * quads, std::max<int64_t>(1, 4096 / std::max<int64_t>(batch, 1)),
                              [&](int64_t begin, int64_t end) {
    Sorter sort;
    std::vector<int64_t> ranked(static_cast<size_t>(4 * batch));
    for (int64_t task = begin; task < end; ++task) {
      const int64_t member = task / quads, column = task % quads * 4, taken = std::min<int64_t>(4, columns - column);
      char* member_to = to + member * out_batch * columns * width;
      if (head && column == 0) {
        std::memcpy(member_to, head + member * size, static_cast<size_t>(size));
      }
      if (head) member_to += size;
      for (int64_t k = 0; k < taken; ++k) {
        sort(words.data() + (task * 4 + k) * batch, batch, ranked.data() + k * batch);
      }
      move(from + member * size + column * width, member_to + column * width, ranked.data(),
           orders + member * batch * columns + column, batch, columns, taken);
    }
  });
  return {out, order};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pyvae_native, CPU, m) { m.impl("permute_dims", TORCH_BOX(&permute)); }
