#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <tuple>
#include <vector>

#include "../check.h"
#include "../common/math.h"
#include "clones.h"

namespace {

using namespace pyvae;

constexpr float kHalfLog2Pi = 0.9189385332046727f;
// Blocks of rows, each with sums of its own for the gradients of the posteriors: of fixed size, so that nothing depends
// on the threads, and few, so that the sums stay small beside B x B.
constexpr int64_t kRows = 128, kBlocks = 32;

// 1 / sigma and the constant of the log-density of one latent, of all posteriors.
PYVAE_CLONES void constants(const float* __restrict logvar, float* __restrict precise, float* __restrict constant,
                            int n) {
#pragma omp simd
  for (int m = 0; m < n; ++m) {
    precise[m] = exp(-0.5f * logvar[m]);
    constant[m] = -0.5f * logvar[m] - kHalfLog2Pi;
  }
}

// Log-densities of one latent of one sample under all posteriors, added to joint; returns the largest. Density and
// joint hold the weight `other` besides, and both passes make them alike: a gradient is exp of a term less the sum of
// all, whose roundings would else be those of two orders, of nats where the terms are of 1e8.
PYVAE_CLONES float densities(float z, const float* __restrict mu, const float* __restrict precise,
                             const float* __restrict constant, float other, float* __restrict density,
                             float* __restrict joint, int n) {
  float highest = -std::numeric_limits<float>::infinity();
#pragma omp simd reduction(max : highest)
  for (int m = 0; m < n; ++m) {
    const float distance = (z - mu[m]) * precise[m];
    const float own = constant[m] - 0.5f * distance * distance;
    density[m] = own + other;
    joint[m] += own;
    highest = density[m] > highest ? density[m] : highest;
  }
  return highest;
}

PYVAE_CLONES float largest(const float* __restrict term, int n) {
  float highest = -std::numeric_limits<float>::infinity();
#pragma omp simd reduction(max : highest)
  for (int m = 0; m < n; ++m) highest = term[m] > highest ? term[m] : highest;
  return highest;
}

PYVAE_CLONES float sum_exp(const float* __restrict term, float highest, int n) {
  float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
  for (int m = 0; m < n; ++m) sum += exp(term[m] - highest);
  return sum;
}

// What the gradient of the joint log-density makes of each posterior's share.
PYVAE_CLONES void shares(const float* __restrict joint, float shift, float grad, float* __restrict share, int n) {
#pragma omp simd
  for (int m = 0; m < n; ++m) share[m] = grad * exp(joint[m] + shift);
}

// Adds to the gradients of one latent of all posteriors; returns minus that of the sample.
PYVAE_CLONES float pulls(float z, const float* __restrict mu, const float* __restrict precise,
                         const float* __restrict density, const float* __restrict share, float shift, float grad,
                         float* __restrict grad_mu, float* __restrict grad_logvar, int n) {
  float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
  for (int m = 0; m < n; ++m) {
    const float whole = share[m] + grad * exp(density[m] + shift);
    const float distance = (z - mu[m]) * precise[m];
    const float pull = whole * distance * precise[m];
    grad_mu[m] += pull;
    grad_logvar[m] += whole * (0.5f * distance * distance - 0.5f);
    sum += pull;
  }
  return sum;
}

// log W of the image itself, of the one after it, and of the others.
struct Weights {
  float own, successor, other;

  // Terms of image i, given with the weight of the others; returns an upper bound of them that is near.
  float apply(float* term, float highest, int64_t i, int64_t batch) const {
    const int64_t after = (i + 1) % batch;
    if (after != i) {
      term[after] += successor - other;
      highest = std::max(highest, term[after]);
    }
    term[i] += own - other;
    return std::max(highest, term[i]);
  }
};

// The posteriors of a member, latent by latent.
struct Posteriors {
  std::vector<float> mu, precise, constant;

  Posteriors(const float* given_mu, const float* logvar, int64_t batch, int64_t latents)
      : mu(size(batch, latents)), precise(mu.size()), constant(mu.size()) {
    std::vector<float> column(static_cast<size_t>(batch));
    for (int64_t d = 0; d < latents; ++d) {
      for (int64_t m = 0; m < batch; ++m) {
        mu[at(d, m, batch)] = given_mu[m * latents + d];
        column[static_cast<size_t>(m)] = logvar[m * latents + d];
      }
      constants(column.data(), &precise[at(d, 0, batch)], &constant[at(d, 0, batch)], static_cast<int>(batch));
    }
  }

  static size_t size(int64_t batch, int64_t latents) { return static_cast<size_t>(batch * latents); }
  static size_t at(int64_t d, int64_t m, int64_t batch) { return static_cast<size_t>(d * batch + m); }
};

struct Inputs {
  Tensor z, mu, logvar;
  Latents shape;
  Weights weights;

  Inputs(const Tensor& given_z, const Tensor& given_mu, const Tensor& given_logvar, double own, double successor,
         double other)
      : z(dense(given_z)),
        mu(dense(given_mu)),
        logvar(dense(given_logvar)),
        shape(z, "z"),
        weights{static_cast<float>(own), static_cast<float>(successor), static_cast<float>(other)} {
    for (const Tensor* x : {&z, &mu, &logvar}) STD_TORCH_CHECK(x->scalar_type() == ScalarType::Float, "wrong dtype");
    check_same_shape(mu, "mu", z);
    check_same_shape(logvar, "logvar", z);
    STD_TORCH_CHECK(shape.batch > 0 && shape.latents > 0, "z: empty");
  }

  int64_t rows() const { return std::max(kRows, (shape.batch + kBlocks - 1) / kBlocks); }
  int64_t blocks() const { return (shape.batch + rows() - 1) / rows(); }

  std::vector<Posteriors> posteriors() const {
    std::vector<Posteriors> all;
    const int64_t size = shape.batch * shape.latents;
    for (int64_t k = 0; k < shape.members; ++k) {
      all.emplace_back(mu.const_data_ptr<float>() + k * size, logvar.const_data_ptr<float>() + k * size, shape.batch,
                       shape.latents);
    }
    return all;
  }

  // Calls work(member, block, first row, last row) on blocks of rows in parallel.
  template <class Work>
  void over_blocks(const Work& work) const {
    const int64_t each = std::min(shape.batch, rows()) * shape.batch * shape.latents;
    const auto run = [&](int64_t begin, int64_t end) {
      for (int64_t task = begin; task < end; ++task) {
        const int64_t block = task % blocks(), first = block * rows();
        work(task / blocks(), block, first, std::min(first + rows(), shape.batch));
      }
    };
    torch::stable::parallel_for(0, shape.members * blocks(), std::max<int64_t>(1, 65536 / each), run);
  }
};

Tensor forward(const Tensor& given_z, const Tensor& given_mu, const Tensor& given_logvar, double own, double successor,
               double other) {
  const Inputs given(given_z, given_mu, given_logvar, own, successor, other);
  const auto [members, batch, latents] = given.shape;
  const Weights weights = given.weights;
  std::vector<int64_t> sizes(given.z.sizes().begin(), given.z.sizes().end());
  sizes.back() = latents + 1;
  Tensor table = torch::stable::new_empty(given.z, sizes);
  auto* to = table.mutable_data_ptr<float>();
  const auto* zs = given.z.const_data_ptr<float>();
  const std::vector<Posteriors> posteriors = given.posteriors();
  const int n = static_cast<int>(batch);
  given.over_blocks([&, batch = batch, latents = latents](int64_t member, int64_t, int64_t first, int64_t last) {
    const Posteriors& q = posteriors[static_cast<size_t>(member)];
    std::vector<float> density(static_cast<size_t>(batch)), joint(static_cast<size_t>(batch));
    for (int64_t i = first; i < last; ++i) {
      const float* z = zs + (member * batch + i) * latents;
      float* row = to + (member * batch + i) * (latents + 1);
      std::fill(joint.begin(), joint.end(), weights.other);
      const auto reduce = [&](float* term, float highest) {
        highest = weights.apply(term, highest, i, batch);
        return highest == -std::numeric_limits<float>::infinity() ? highest
                                                                  : highest + std::log(sum_exp(term, highest, n));
      };
      for (int64_t d = 0; d < latents; ++d) {
        const size_t at = q.at(d, 0, batch);
        const float highest =
            densities(z[d], &q.mu[at], &q.precise[at], &q.constant[at], weights.other, density.data(), joint.data(), n);
        row[d] = reduce(density.data(), highest);
      }
      row[latents] = reduce(joint.data(), largest(joint.data(), n));
    }
  });
  return table;
}

std::tuple<Tensor, Tensor, Tensor> backward(const Tensor& given_grad, const Tensor& given_z, const Tensor& given_mu,
                                            const Tensor& given_logvar, const Tensor& given_table, double own,
                                            double successor, double other) {
  const Inputs given(given_z, given_mu, given_logvar, own, successor, other);
  const auto [members, batch, latents] = given.shape;
  const Weights weights = given.weights;
  const Tensor grad = dense(given_grad), table = dense(given_table);
  for (const Tensor* x : {&grad, &table}) {
    STD_TORCH_CHECK(x->scalar_type() == ScalarType::Float, "log_q: wrong dtype");
    STD_TORCH_CHECK(x->numel() == members * batch * (latents + 1), "log_q: wrong size");
  }
  Tensor grad_z = torch::stable::new_empty(given.z, given.z.sizes());
  Tensor grad_mu = torch::stable::new_empty(given.z, given.z.sizes());
  Tensor grad_logvar = torch::stable::new_empty(given.z, given.z.sizes());
  auto* to_z = grad_z.mutable_data_ptr<float>();
  auto* to_mu = grad_mu.mutable_data_ptr<float>();
  auto* to_logvar = grad_logvar.mutable_data_ptr<float>();
  const auto* zs = given.z.const_data_ptr<float>();
  const auto* grads = grad.const_data_ptr<float>();
  const auto* log_q = table.const_data_ptr<float>();
  const std::vector<Posteriors> posteriors = given.posteriors();
  const int64_t blocks = given.blocks(), size = batch * latents;
  const int n = static_cast<int>(batch);
  // gradients of mu, then of logvar, latent by latent, of each block of rows
  std::vector<std::vector<float>> partial(static_cast<size_t>(members * blocks));
  given.over_blocks([&, batch = batch, latents = latents](int64_t member, int64_t block, int64_t first, int64_t last) {
    const Posteriors& q = posteriors[static_cast<size_t>(member)];
    std::vector<float>& sums = partial[static_cast<size_t>(member * blocks + block)];
    sums.assign(static_cast<size_t>(2 * size), 0.0f);
    std::vector<float> density(static_cast<size_t>(size)), joint(static_cast<size_t>(batch)), share(joint);
    for (int64_t i = first; i < last; ++i) {
      const float* z = zs + (member * batch + i) * latents;
      const float* g = grads + (member * batch + i) * (latents + 1);
      const float* reached = log_q + (member * batch + i) * (latents + 1);
      std::fill(joint.begin(), joint.end(), weights.other);
      for (int64_t d = 0; d < latents; ++d) {
        const size_t at = q.at(d, 0, batch);
        densities(z[d], &q.mu[at], &q.precise[at], &q.constant[at], weights.other, &density[at], joint.data(), n);
      }
      weights.apply(joint.data(), 0.0f, i, batch);
      shares(joint.data(), -reached[latents], g[latents], share.data(), n);
      for (int64_t d = 0; d < latents; ++d) {
        const size_t at = q.at(d, 0, batch);
        weights.apply(&density[at], 0.0f, i, batch);
        to_z[(member * batch + i) * latents + d] =
            -pulls(z[d], &q.mu[at], &q.precise[at], &density[at], share.data(), -reached[d], g[d],
                   &sums[at], &sums[at + static_cast<size_t>(size)], n);
      }
    }
  });
  for (int64_t member = 0; member < members; ++member) {
    std::vector<float>& whole = partial[static_cast<size_t>(member * blocks)];
    for (int64_t block = 1; block < blocks; ++block) {
      const std::vector<float>& part = partial[static_cast<size_t>(member * blocks + block)];
      for (size_t k = 0; k < whole.size(); ++k) whole[k] += part[k];
    }
    for (int64_t m = 0; m < batch; ++m) {
      for (int64_t d = 0; d < latents; ++d) {
        const size_t at = Posteriors::at(d, m, batch);
        to_mu[member * size + m * latents + d] = whole[at];
        to_logvar[member * size + m * latents + d] = whole[at + static_cast<size_t>(size)];
      }
    }
  }
  return {grad_z, grad_mu, grad_logvar};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pyvae_native, CPU, m) {
  m.impl("aggregate_log_density_fwd", TORCH_BOX(&forward));
  m.impl("aggregate_log_density_bwd", TORCH_BOX(&backward));
}
