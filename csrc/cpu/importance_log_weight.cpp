#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <tuple>
#include <vector>

#include "../check.h"
#include "pixels.h"

namespace {

using namespace pyvae;

PYVAE_CLONES void precisions(const float* __restrict logvar, float* __restrict precise, int n) {
#pragma omp simd
  for (int d = 0; d < n; ++d) precise[d] = exp(-0.5f * logvar[d]);
}

// log p(z) - log q(z|x)
PYVAE_CLONES float log_ratio(const float* __restrict z, const float* __restrict mu, const float* __restrict logvar,
                             const float* __restrict precise, int n) {
  float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
  for (int d = 0; d < n; ++d) {
    const float distance = (z[d] - mu[d]) * precise[d];
    // as a product, a difference of squares keeps its digits where posterior and prior are almost one
    sum += (distance - z[d]) * (distance + z[d]) + logvar[d];
  }
  return 0.5f * sum;
}

PYVAE_CLONES void log_ratio_grad(const float* __restrict z, const float* __restrict mu,
                                 const float* __restrict precise, float grad, float* __restrict grad_z,
                                 float* __restrict grad_mu, float* __restrict grad_logvar, int n) {
#pragma omp simd
  for (int d = 0; d < n; ++d) {
    const float distance = (z[d] - mu[d]) * precise[d];
    const float pull = grad * distance * precise[d];
    grad_z[d] = pull - grad * z[d];
    grad_mu[d] -= pull;
    grad_logvar[d] += grad * (0.5f - 0.5f * distance * distance);
  }
}

// Rows of samples, so many of each image, and the images and posteriors that they are of.
struct Samples {
  Tensor logits, target, z, mu, logvar;
  int64_t images, samples, pixels, latents;
  Images pixel_rows;

  Samples(const Tensor& given_logits, const Tensor& given_target, const Tensor& given_z, const Tensor& given_mu,
          const Tensor& given_logvar, double target_scale, bool packed)
      : logits(dense(given_logits)),
        target(dense(given_target)),
        z(dense(given_z)),
        mu(dense(given_mu)),
        logvar(dense(given_logvar)) {
    check(logits, "logits", ScalarType::Float, 2);
    check(z, "z", ScalarType::Float, 2);
    check(mu, "mu", ScalarType::Float, 2);
    check(logvar, "logvar", ScalarType::Float, 2);
    check_same_shape(logvar, "logvar", mu);
    images = mu.size(0);
    latents = mu.size(1);
    pixels = logits.size(1);
    STD_TORCH_CHECK(images > 0 && z.size(0) % images == 0, "z: ", z.size(0), " samples of ", images, " images");
    STD_TORCH_CHECK(z.size(1) == latents && logits.size(0) == z.size(0), "logits, z: wrong sizes");
    samples = z.size(0) / images;
    const bool bytes = target.scalar_type() == ScalarType::Byte;
    STD_TORCH_CHECK(bytes || target.scalar_type() == ScalarType::Float, "target: wrong dtype");
    STD_TORCH_CHECK(bytes || !packed, "target: packed bits are uint8");
    const int64_t columns = packed ? (pixels + 7) / 8 : pixels;
    STD_TORCH_CHECK(target.numel() == images * columns, "target: expected [", images, ", ", columns, "]");
    pixel_rows = {target.const_data_ptr(), columns, static_cast<float>(target_scale), bytes, packed};
  }

  // Adds what the pixels of all samples of an image give to its rows of nll, from the first sample on, and writes the
  // gradients times -upstream where there is a place for them. Pixels are converted once for all samples.
  void add_nll(int64_t image, double* nll, float* grad, const float* upstream) const {
    alignas(64) float scratch[kChunk];
    for (int64_t start = 0; start < pixels; start += kChunk) {
      const int n = static_cast<int>(std::min<int64_t>(kChunk, pixels - start));
      const float* x = pixel_rows.floats(image, start, n, scratch);
      for (int64_t k = 0; k < samples; ++k) {
        const int64_t at = (image * samples + k) * pixels + start;
        nll[k] += pixel_rows.nll(x, n, logits.const_data_ptr<float>() + at, grad ? grad + at : nullptr,
                                 grad ? -upstream[image * samples + k] : 0.0f);
      }
    }
  }

  int64_t grain() const { return std::max<int64_t>(1, 32768 / std::max<int64_t>(samples * (pixels + latents), 1)); }
};

std::tuple<Tensor, Tensor> forward(const Tensor& logits, const Tensor& target, const Tensor& z, const Tensor& mu,
                                   const Tensor& logvar, double target_scale, bool packed) {
  const Samples given(logits, target, z, mu, logvar, target_scale, packed);
  Tensor likelihood = torch::stable::new_empty(given.z, {given.z.size(0)});
  Tensor ratio = torch::stable::new_empty(given.z, {given.z.size(0)});
  auto* to_likelihood = likelihood.mutable_data_ptr<float>();
  auto* to_ratio = ratio.mutable_data_ptr<float>();
  const auto* zs = given.z.const_data_ptr<float>();
  const int n = static_cast<int>(given.latents);
  torch::stable::parallel_for(0, given.images, given.grain(), [&](int64_t begin, int64_t end) {
    std::vector<float> precise(static_cast<size_t>(n));
    for (int64_t image = begin; image < end; ++image) {
      const float* m = given.mu.const_data_ptr<float>() + image * n;
      const float* lv = given.logvar.const_data_ptr<float>() + image * n;
      precisions(lv, precise.data(), n);
      std::vector<double> nll(static_cast<size_t>(given.samples));
      given.add_nll(image, nll.data(), nullptr, nullptr);
      for (int64_t k = 0; k < given.samples; ++k) {
        const int64_t row = image * given.samples + k;
        to_likelihood[row] = static_cast<float>(-nll[static_cast<size_t>(k)]);
        to_ratio[row] = log_ratio(zs + row * n, m, lv, precise.data(), n);
      }
    }
  });
  return {likelihood, ratio};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> backward(const Tensor& given_grad_likelihood, const Tensor& given_grad_ratio,
                                                    const Tensor& logits, const Tensor& target, const Tensor& z,
                                                    const Tensor& mu, const Tensor& logvar, double target_scale,
                                                    bool packed) {
  const Samples given(logits, target, z, mu, logvar, target_scale, packed);
  const Tensor grad_likelihood = dense(given_grad_likelihood), grad_ratio = dense(given_grad_ratio);
  for (const Tensor* grad : {&grad_likelihood, &grad_ratio}) {
    check(*grad, "grad", ScalarType::Float, 1);
    STD_TORCH_CHECK(grad->size(0) == given.z.size(0), "grad: wrong size");
  }
  Tensor grad_logits = torch::stable::new_empty(given.logits, given.logits.sizes());
  Tensor grad_z = torch::stable::new_empty(given.z, given.z.sizes());
  Tensor grad_mu = torch::stable::new_zeros(given.mu, given.mu.sizes());
  Tensor grad_logvar = torch::stable::new_zeros(given.mu, given.mu.sizes());
  auto* to_logits = grad_logits.mutable_data_ptr<float>();
  auto* to_z = grad_z.mutable_data_ptr<float>();
  auto* to_mu = grad_mu.mutable_data_ptr<float>();
  auto* to_logvar = grad_logvar.mutable_data_ptr<float>();
  const auto* of_likelihood = grad_likelihood.const_data_ptr<float>();
  const auto* of_ratio = grad_ratio.const_data_ptr<float>();
  const auto* zs = given.z.const_data_ptr<float>();
  const int n = static_cast<int>(given.latents);
  torch::stable::parallel_for(0, given.images, given.grain(), [&](int64_t begin, int64_t end) {
    std::vector<float> precise(static_cast<size_t>(n));
    for (int64_t image = begin; image < end; ++image) {
      const float* m = given.mu.const_data_ptr<float>() + image * n;
      precisions(given.logvar.const_data_ptr<float>() + image * n, precise.data(), n);
      std::vector<double> unwanted(static_cast<size_t>(given.samples));
      given.add_nll(image, unwanted.data(), to_logits, of_likelihood);
      for (int64_t row = image * given.samples; row < (image + 1) * given.samples; ++row) {
        log_ratio_grad(zs + row * n, m, precise.data(), of_ratio[row], to_z + row * n, to_mu + image * n,
                       to_logvar + image * n, n);
      }
    }
  });
  return {grad_logits, grad_z, grad_mu, grad_logvar};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pyvae_native, CPU, m) {
  m.impl("importance_log_weight_fwd", TORCH_BOX(&forward));
  m.impl("importance_log_weight_bwd", TORCH_BOX(&backward));
}
