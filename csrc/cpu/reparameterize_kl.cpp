#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <cstring>
#include <limits>
#include <optional>
#include <tuple>
#include <vector>

#include "../check.h"
#include "../common/normal.h"
#include "clones.h"
#include "draw.h"

namespace {

using namespace pyvae;

constexpr int kTile = 4 * kDraw;
constexpr int64_t kNarrow = 256;

PYVAE_CLONES void to_normal(const uint32_t* __restrict words, int count, float* __restrict noise) {
#pragma omp simd
  for (int i = 0; i < count; ++i) {
    const Pair one = box_muller(words[i], words[i + kDraw]);
    const Pair two = box_muller(words[i + 2 * kDraw], words[i + 3 * kDraw]);
    noise[4 * i] = one.first;
    noise[4 * i + 1] = one.second;
    noise[4 * i + 2] = two.first;
    noise[4 * i + 3] = two.second;
  }
}

struct SampleTile {
  const float *mu, *logvar, *noise;
  float *z, *kl, *shift;
};

// shift = z - mu is written whether or not it is kept: without the store a compiler would contract z to one rounding, and
// a sample would depend on whether its gradient is wanted.
PYVAE_CLONES void sample(const SampleTile& t, int n) {
  const float *mu = t.mu, *logvar = t.logvar, *noise = t.noise;
  float *__restrict z = t.z, *__restrict kl = t.kl, *__restrict shift = t.shift;
#pragma omp simd
  for (int i = 0; i < n; ++i) {
    const float deviation = pyvae::exp(0.5f * logvar[i]);
    shift[i] = deviation * noise[i];
    z[i] = mu[i] + shift[i];
    kl[i] += 0.5f * (mu[i] * mu[i] + pyvae::expm1(logvar[i], deviation * deviation).minus_one_minus_x);
  }
}

PYVAE_CLONES void add(float* __restrict sum, const float* __restrict row, int n) {
#pragma omp simd
  for (int i = 0; i < n; ++i) sum[i] += row[i];
}

struct GradientTile {
  const float *grad_z, *grad_kl, *mu, *logvar, *noise_or_shift;
  float per_row;  // share of a row in the mean that kl is
  float *grad_mu, *grad_logvar;
};

// An absent gradient is not one of zero: zero times an overflowed exponential would be NaN.
template <bool kZ, bool kKl, bool kKept>
PYVAE_HD void gradients(const GradientTile& t, int n) {
  const float *gz = t.grad_z, *gk = t.grad_kl, *mu = t.mu, *logvar = t.logvar, *noise_or_shift = t.noise_or_shift;
  float *__restrict grad_mu = t.grad_mu, *__restrict grad_logvar = t.grad_logvar;
#pragma omp simd
  for (int i = 0; i < n; ++i) {
    const float deviation = pyvae::exp(0.5f * logvar[i]);
    float to_mu = 0.0f, to_logvar = 0.0f;
    if (kZ) {
      to_mu = gz[i];
      to_logvar = gz[i] * (kKept ? noise_or_shift[i] : deviation * noise_or_shift[i]);
    }
    if (kKl) {
      const float own = gk[i] * t.per_row;
      to_mu += own * mu[i];
      to_logvar += own * pyvae::expm1(logvar[i], deviation * deviation).minus_one;
    }
    grad_mu[i] = to_mu;
    grad_logvar[i] = 0.5f * to_logvar;
  }
}

// target_clones does not go with templates
PYVAE_CLONES void gradients_of_kl(const GradientTile& t, int n) { gradients<false, true, false>(t, n); }
PYVAE_CLONES void gradients_of_z(const GradientTile& t, int n) { gradients<true, false, false>(t, n); }
PYVAE_CLONES void gradients_of_both(const GradientTile& t, int n) { gradients<true, true, false>(t, n); }
PYVAE_CLONES void kept_gradients_of_z(const GradientTile& t, int n) { gradients<true, false, true>(t, n); }
PYVAE_CLONES void kept_gradients_of_both(const GradientTile& t, int n) { gradients<true, true, true>(t, n); }

// How [..., batch, latents] is cut: tiles of whole rows where rows are narrow, else of a part of one row. Blocks of
// tiles are the unit of work and of partial sums; they depend on the shape alone, and so do the results.
struct Shape : Latents {
  int64_t quads, columns, tile_rows, block_rows, row_blocks, column_blocks;

  explicit Shape(const Tensor& mu) : Latents(mu, "mu"), quads((latents + 3) / 4) {
    const bool narrow = latents <= kNarrow;
    columns = narrow ? latents : kTile;
    tile_rows = narrow ? kTile / std::max<int64_t>(4 * quads, 1) : 1;
    block_rows = narrow ? 8 * tile_rows : 16;
    row_blocks = (batch + block_rows - 1) / block_rows;
    column_blocks = latents ? (latents + columns - 1) / columns : 0;
  }

  int64_t blocks() const { return members * row_blocks * column_blocks; }
};

struct Tile {
  int64_t member, row, rows, column, columns, offset;
  int size() const { return static_cast<int>(rows * columns); }
};

struct Noise {
  const int64_t* key;
  int64_t sharing;
  uint32_t stream;

  Noise(const Tensor& key, const Shape& shape, int64_t stream)
      : key(key.const_data_ptr<int64_t>()),
        sharing(pyvae::sharing(key, shape.members)),
        stream(static_cast<uint32_t>(stream)) {}

  void operator()(const Shape& shape, const Tile& tile, float* noise) const {
    const int64_t* own = key + 2 * (tile.member / sharing);
    const int64_t row = tile.member % sharing * shape.batch + tile.row;
    const int64_t quads = tile.rows > 1 ? tile.rows * shape.quads : (tile.columns + 3) / 4;
    alignas(64) uint32_t words[4 * kDraw];
    draw(static_cast<uint64_t>(own[0]), static_cast<uint64_t>(own[1]), stream,
         static_cast<uint32_t>(row * shape.quads + tile.column / 4), static_cast<int>(quads), words);
    to_normal(words, static_cast<int>(quads), noise);
    if (tile.rows > 1 && shape.latents % 4) {
      for (int64_t r = 1; r < tile.rows; ++r) {
        std::memmove(noise + r * tile.columns, noise + r * 4 * shape.quads, tile.columns * sizeof(float));
      }
    }
  }
};

template <class Visit>
void for_each_tile(const Shape& shape, int64_t block, const Visit& visit) {
  const int64_t column_block = block % shape.column_blocks;
  const int64_t row_block = block / shape.column_blocks % shape.row_blocks;
  const int64_t member = block / shape.column_blocks / shape.row_blocks;
  const int64_t column = column_block * shape.columns;
  const int64_t columns = std::min(shape.columns, shape.latents - column);
  const int64_t end = std::min(shape.batch, (row_block + 1) * shape.block_rows);
  for (int64_t row = row_block * shape.block_rows; row < end; row += shape.tile_rows) {
    const int64_t rows = std::min(shape.tile_rows, end - row);
    visit(Tile{member, row, rows, column, columns, (member * shape.batch + row) * shape.latents + column});
  }
}

void check_posteriors(const Tensor& mu, const Tensor& logvar) {
  check(mu, "mu", ScalarType::Float, mu.dim());
  check(logvar, "logvar", ScalarType::Float, mu.dim());
  check_same_shape(logvar, "logvar", mu);
}

// Writes z, kl and, if it is given, shift.
void draw_samples(const Shape& shape, const Noise& noise, const Tensor& mu, const Tensor& logvar, Tensor& z,
                  Tensor& kl, float* shift) {
  std::vector<float> partial(static_cast<size_t>(shape.members * shape.row_blocks * shape.latents), 0.0f);
  const float *m = mu.const_data_ptr<float>(), *lv = logvar.const_data_ptr<float>();
  float* out = z.mutable_data_ptr<float>();
  float* sums = partial.data();
  torch::stable::parallel_for(0, shape.blocks(), 8, [&](int64_t begin, int64_t end) {
    alignas(64) float drawn[kTile], terms[kTile], scratch[kTile];
    for (int64_t block = begin; block < end; ++block) {
      float* sum = sums + block / shape.column_blocks * shape.latents;
      for_each_tile(shape, block, [&](const Tile& tile) {
        const int64_t at = tile.offset;
        const bool narrow = tile.rows > 1;
        if (narrow) std::fill_n(terms, tile.size(), 0.0f);
        noise(shape, tile, drawn);
        sample({m + at, lv + at, drawn, out + at, narrow ? terms : sum + tile.column, shift ? shift + at : scratch},
               tile.size());
        for (int64_t r = 0; narrow && r < tile.rows; ++r) {
          add(sum + tile.column, terms + r * tile.columns, static_cast<int>(tile.columns));
        }
      });
    }
  });
  float* mean = kl.mutable_data_ptr<float>();
  for (int64_t i = 0; i < shape.members * shape.latents; ++i) {
    const float* own = sums + i / shape.latents * shape.row_blocks * shape.latents + i % shape.latents;
    double sum = 0.0;
    for (int64_t b = 0; b < shape.row_blocks; ++b) sum += own[b * shape.latents];
    mean[i] = shape.batch ? static_cast<float>(sum / shape.batch) : std::numeric_limits<float>::quiet_NaN();
  }
}

Tensor empty_kl(const Tensor& mu) {
  std::vector<int64_t> sizes(mu.sizes().begin(), mu.sizes().end() - 2);
  sizes.push_back(mu.size(mu.dim() - 1));
  return torch::stable::new_empty(mu, sizes);
}

std::tuple<Tensor, Tensor> forward(const Tensor& given_mu, const Tensor& given_logvar, const Tensor& given_key,
                                   int64_t stream) {
  check_posteriors(given_mu, given_logvar);
  const Tensor mu = dense(given_mu), logvar = dense(given_logvar), key = dense(given_key);
  const Shape shape(mu);
  Tensor z = torch::stable::new_empty(mu, mu.sizes()), kl = empty_kl(mu);
  draw_samples(shape, Noise(key, shape, stream), mu, logvar, z, kl, nullptr);
  return {z, kl};
}

std::tuple<Tensor, Tensor, Tensor> forward_keeping(const Tensor& given_mu, const Tensor& given_logvar,
                                                   const Tensor& given_key, int64_t stream) {
  check_posteriors(given_mu, given_logvar);
  const Tensor mu = dense(given_mu), logvar = dense(given_logvar), key = dense(given_key);
  const Shape shape(mu);
  Tensor z = torch::stable::new_empty(mu, mu.sizes()), kl = empty_kl(mu);
  Tensor shift = torch::stable::new_empty(mu, mu.sizes());
  draw_samples(shape, Noise(key, shape, stream), mu, logvar, z, kl, shift.mutable_data_ptr<float>());
  return {z, kl, shift};
}

// Gradients of z and kl to mu and logvar. get(tile, buffer) returns the tile's shift, if that is kept, or its noise.
template <class Get>
std::tuple<Tensor, Tensor> differentiate(const std::optional<Tensor>& given_grad_z,
                                         const std::optional<Tensor>& given_grad_kl, const Shape& shape,
                                         const Tensor& mu, const Tensor& logvar, bool kept, const Get& get) {
  std::optional<Tensor> grad_z, grad_kl;
  if (given_grad_z) {
    check(*given_grad_z, "grad_z", ScalarType::Float, mu.dim());
    check_same_shape(*given_grad_z, "grad_z", mu);
    grad_z = dense(*given_grad_z);
  }
  if (given_grad_kl) {
    check(*given_grad_kl, "grad_kl", ScalarType::Float, mu.dim() - 1);
    STD_TORCH_CHECK(product(*given_grad_kl, 0, mu.dim() - 2) == shape.members &&
                        given_grad_kl->size(mu.dim() - 2) == shape.latents,
                    "grad_kl: expected [..., latents]");
    grad_kl = dense(*given_grad_kl);
  }
  STD_TORCH_CHECK(grad_z || grad_kl, "grad_z, grad_kl: one of them must be given");
  Tensor grad_mu = torch::stable::new_empty(mu, mu.sizes());
  Tensor grad_logvar = torch::stable::new_empty(mu, mu.sizes());
  const float *m = mu.const_data_ptr<float>(), *lv = logvar.const_data_ptr<float>();
  const float* gz = grad_z ? grad_z->const_data_ptr<float>() : nullptr;
  const float* gk = grad_kl ? grad_kl->const_data_ptr<float>() : nullptr;
  float *gm = grad_mu.mutable_data_ptr<float>(), *gl = grad_logvar.mutable_data_ptr<float>();
  const auto compute = !gz  ? gradients_of_kl
                       : gk ? (kept ? kept_gradients_of_both : gradients_of_both)
                            : (kept ? kept_gradients_of_z : gradients_of_z);
  const float per_row = shape.batch ? 1.0f / static_cast<float>(shape.batch) : 0.0f;
  torch::stable::parallel_for(0, shape.blocks(), 8, [&](int64_t begin, int64_t end) {
    alignas(64) float buffer[kTile], repeated[kTile];
    for (int64_t block = begin; block < end; ++block) {
      for_each_tile(shape, block, [&](const Tile& tile) {
        const int64_t at = tile.offset;
        const float* noise_or_shift = gz ? get(tile, buffer) : nullptr;
        const float* of_row = gk ? gk + tile.member * shape.latents + tile.column : nullptr;
        for (int64_t r = 0; of_row && tile.rows > 1 && r < tile.rows; ++r) {
          std::memcpy(repeated + r * tile.columns, of_row, static_cast<size_t>(tile.columns) * sizeof(float));
        }
        compute({gz ? gz + at : nullptr, tile.rows > 1 ? repeated : of_row, m + at, lv + at, noise_or_shift, per_row,
                 gm + at, gl + at},
                tile.size());
      });
    }
  });
  return {grad_mu, grad_logvar};
}

std::tuple<Tensor, Tensor> backward(const std::optional<Tensor>& grad_z, const std::optional<Tensor>& grad_kl,
                                    const Tensor& given_mu, const Tensor& given_logvar, const Tensor& given_key,
                                    int64_t stream) {
  check_posteriors(given_mu, given_logvar);
  const Tensor mu = dense(given_mu), logvar = dense(given_logvar), key = dense(given_key);
  const Shape shape(mu);
  const Noise noise(key, shape, stream);
  return differentiate(grad_z, grad_kl, shape, mu, logvar, false, [&](const Tile& tile, float* buffer) {
    noise(shape, tile, buffer);
    return static_cast<const float*>(buffer);
  });
}

std::tuple<Tensor, Tensor> backward_kept(const std::optional<Tensor>& grad_z, const std::optional<Tensor>& grad_kl,
                                         const Tensor& given_mu, const Tensor& given_logvar,
                                         const Tensor& given_shift) {
  check_posteriors(given_mu, given_logvar);
  check(given_shift, "shift", ScalarType::Float, given_mu.dim());
  check_same_shape(given_shift, "shift", given_mu);
  const Tensor mu = dense(given_mu), logvar = dense(given_logvar), shift = dense(given_shift);
  const float* from = shift.const_data_ptr<float>();
  return differentiate(grad_z, grad_kl, Shape(mu), mu, logvar, true,
                       [&](const Tile& tile, float*) { return from + tile.offset; });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pyvae_native, CPU, m) {
  m.impl("reparameterize_kl_fwd", TORCH_BOX(&forward));
  m.impl("reparameterize_kl_bwd", TORCH_BOX(&backward));
  m.impl("reparameterize_kl_fwd_keeping", TORCH_BOX(&forward_keeping));
  m.impl("reparameterize_kl_bwd_kept", TORCH_BOX(&backward_kept));
}
