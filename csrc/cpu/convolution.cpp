// Convolutions of kernel 4, stride 2, padding 1 and of kernel 2, stride 2, and transposed ones, with the activation behind
// them, and their gradients. A transposed convolution is the gradient of a convolution, so that there are two kinds of
// products, from the big map down to the small one and up again, whichever of them is the input.
//
// Sums over images are of groups of images, which depend on the batch alone, and are added in order: so results do not
// depend on the number of threads, and the instruction sets give the same.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <optional>
#include <tuple>
#include <vector>

#include "../check.h"
#include "../common/winograd.h"
#include "convolution/job.h"

// vectors of a width, and code for an instruction set within a file
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && __GNUC__ >= 11
#define PYVAE_CONVOLUTIONS 1
#endif

#ifdef PYVAE_CONVOLUTIONS
#include <immintrin.h>
#define PYVAE_LANES 16
#pragma GCC push_options
#pragma GCC target("arch=x86-64-v4,avx512bf16,prefer-vector-width=512")
namespace pyvae::convolution::bf16 {
#include "convolution/lanes.h"
#include "convolution/bfloat.h"
#include "convolution/product.h"
#include "convolution/tiles.h"
#include "convolution/pair.h"
}  // namespace pyvae::convolution::bf16
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("arch=x86-64-v4,prefer-vector-width=512")
namespace pyvae::convolution::avx512 {
#include "convolution/lanes.h"
#include "convolution/product.h"
#include "convolution/tiles.h"
#include "convolution/pair.h"
#include "convolution/end.h"
#include "convolution/activation.h"
}  // namespace pyvae::convolution::avx512
#pragma GCC pop_options
#undef PYVAE_LANES

#define PYVAE_LANES 8
#pragma GCC push_options
#pragma GCC target("arch=x86-64-v3")
namespace pyvae::convolution::avx2 {
#include "convolution/lanes.h"
#include "convolution/product.h"
#include "convolution/tiles.h"
#include "convolution/pair.h"
#include "convolution/end.h"
#include "convolution/activation.h"
}  // namespace pyvae::convolution::avx2
#pragma GCC pop_options
#undef PYVAE_LANES
#endif

namespace {

using namespace pyvae;
using namespace pyvae::convolution;

enum Level : int64_t { kNone, kAvx2, kAvx512, kAvx512Bf16 };

Level level_of_processor() {
#ifdef PYVAE_CONVOLUTIONS
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma") || !__builtin_cpu_supports("bmi2")) return kNone;
  for (const bool has : {__builtin_cpu_supports("avx512f") != 0, __builtin_cpu_supports("avx512bw") != 0,
                         __builtin_cpu_supports("avx512cd") != 0, __builtin_cpu_supports("avx512dq") != 0,
                         __builtin_cpu_supports("avx512vl") != 0}) {
    if (!has) return kAvx2;
  }
  return __builtin_cpu_supports("avx512bf16") ? kAvx512Bf16 : kAvx512;
#else
  return kNone;
#endif
}

Level& level() {
  static Level own = level_of_processor();
  return own;
}

// at_most: for tests, of the other instruction sets; it stays.
int64_t level_at_most(std::optional<int64_t> at_most) {
  if (at_most) level() = std::min(level_of_processor(), static_cast<Level>(std::max<int64_t>(*at_most, kNone)));
  return level();
}

// A layer's maps, and how it is made.
struct Layer {
  int64_t batch, height, width;  // of the small map
  int64_t small, big, taps;      // channels, and weights between two of them
  Kernels kernels;

  // x [B, H, W, C] or the gradient that comes, of the big map or of the small one; w [small, k, k, big]
  Layer(const Tensor& x, const Tensor& w, bool x_is_big, bool bf16) {
    check(x, "x", ScalarType::Float, 4);
    check(w, "weight", ScalarType::Float, 4);
    small = w.size(0), big = w.size(3), taps = w.size(1) * w.size(2);
    const int64_t k = w.size(1);
    STD_TORCH_CHECK(k == w.size(2) && (k == 4 || k == 2), "weight: kernels are 4 x 4 or 2 x 2");
    STD_TORCH_CHECK(x.size(3) == (x_is_big ? big : small), "x: has ", x.size(3), " channels");
    batch = x.size(0), height = x.size(1), width = x.size(2);
    if (x_is_big) {
      STD_TORCH_CHECK(height % 2 == 0 && width % 2 == 0, "x: odd sides ", height, " x ", width);
      height /= 2, width /= 2;
    }
    STD_TORCH_CHECK(batch < int64_t{1} << 32 && height < 1 << 14 && width < 1 << 14, "x: it is too large");
    const bool end = k == 4 && (big == 1 || big == 3);
    STD_TORCH_CHECK((small == 32 || small == 64) && (end || big == 32 || big == 64), "weight: between ", big, " and ",
                    small, " channels");
    STD_TORCH_CHECK(end || k == 2 || (height % 2 == 0 && width % 2 == 0), "x: the small map has odd sides");
    STD_TORCH_CHECK(!bf16 || level() >= kAvx512Bf16, "bf16: this processor has no instructions for it");
    STD_TORCH_CHECK(find(end, k == 4, bf16), "convolution: there is none for this processor or compiler");
  }

  int64_t units_of_image() const { return kernels.tile ? height / kernels.tile * (width / kernels.tile) : 1; }
  std::vector<int64_t> small_sizes() const { return {batch, height, width, small}; }
  std::vector<int64_t> big_sizes() const { return {batch, 2 * height, 2 * width, big}; }
  int64_t weight_count() const { return small * taps * big; }

 private:
  bool find([[maybe_unused]] bool end, [[maybe_unused]] bool winograd, [[maybe_unused]] bool low) {
#ifdef PYVAE_CONVOLUTIONS
    const int b = static_cast<int>(big), s = static_cast<int>(small);
    if (low && !end) {
      if (winograd) kernels = bf16::kernels_between<bf16::Winograd, bf16::Bfloat>(b, s);
      else kernels = bf16::kernels_between<bf16::Patches, bf16::Bfloat>(b, s);
      return true;
    }
    if (level() >= kAvx512) {
      if (end) kernels = avx512::end_kernels(b, s);
      else if (winograd) kernels = avx512::kernels_between<avx512::Winograd, avx512::Float>(b, s);
      else kernels = avx512::kernels_between<avx512::Patches, avx512::Float>(b, s);
      return true;
    }
    if (level() >= kAvx2) {
      if (end) kernels = avx2::end_kernels(b, s);
      else if (winograd) kernels = avx2::kernels_between<avx2::Winograd, avx2::Float>(b, s);
      else kernels = avx2::kernels_between<avx2::Patches, avx2::Float>(b, s);
      return true;
    }
#endif
    return false;
  }
};

// Images whose sums are made one after another: few enough for many threads, many enough that adding the groups up costs
// little. A unit is a tile, or an image where there are none.
struct Groups {
  static constexpr int64_t kImages = 8, kUnits = 64, kMost = 32;
  int64_t batch, images, count;

  Groups(int64_t batch, int64_t units_of_image) : batch(batch) {
    const int64_t least = units_of_image > 1 ? std::max(kImages, (kUnits + units_of_image - 1) / units_of_image) : kImages;
    images = std::max(least, (batch + kMost - 1) / kMost);
    count = (batch + images - 1) / images;
  }
  int64_t first(int64_t group) const { return group * images; }
  int64_t last(int64_t group) const { return std::min(batch, (group + 1) * images); }
};

std::vector<float> ready(const Layer& layer, const Tensor& w, bool down) {
  std::vector<float> weights(static_cast<size_t>(layer.kernels.weights));
  (down ? layer.kernels.prepare_down : layer.kernels.prepare_up)(w.const_data_ptr<float>(), weights.data());
  return weights;
}

Tensor forward(const Tensor& given_x, const Tensor& given_w, const std::optional<Tensor>& given_bias, bool transposed,
               std::optional<double> slope, bool bf16) {
  const Tensor x = dense(given_x), w = dense(given_w);
  const Layer layer(x, w, !transposed, bf16);
  const int64_t channels = transposed ? layer.big : layer.small;
  std::vector<float> bias(static_cast<size_t>(channels), 0.0f);
  if (given_bias) {
    check(*given_bias, "bias", ScalarType::Float, 1);
    STD_TORCH_CHECK(given_bias->size(0) == channels, "bias: expected ", channels, " numbers");
    const Tensor dense_bias = dense(*given_bias);
    std::copy_n(dense_bias.const_data_ptr<float>(), channels, bias.data());
  }
  Tensor y = torch::stable::new_empty(x, transposed ? layer.big_sizes() : layer.small_sizes());
  const std::vector<float> weights = ready(layer, w, !transposed);
  Job job{static_cast<int>(layer.height), static_cast<int>(layer.width)};
  (transposed ? job.small : job.big) = x.const_data_ptr<float>();
  job.weights = weights.data();
  job.out = y.mutable_data_ptr<float>();
  job.finish = slope ? Finish::kActivated : Finish::kLinear;
  job.slope = static_cast<float>(slope.value_or(0.0));
  job.bias = bias.data();
  const auto run = transposed ? layer.kernels.up : layer.kernels.down;
  const int64_t units = layer.batch * layer.units_of_image(), strip = layer.kernels.strip;
  torch::stable::parallel_for(0, (units + strip - 1) / strip, 1, [&](int64_t begin, int64_t end) {
    run(job, begin * strip, std::min(end * strip, units));
  });
  return y;
}

void add_up(const std::vector<float>& parts, int64_t count, Tensor& sums) {
  float* out = sums.mutable_data_ptr<float>();
  const int64_t channels = sums.numel();
  for (int64_t c = 0; c < channels; ++c) {
    double sum = 0.0;
    for (int64_t part = 0; part < count; ++part) sum += parts[static_cast<size_t>(part * channels + c)];
    out[c] = static_cast<float>(sum);
  }
}

std::tuple<Tensor, Tensor, Tensor> backward(const Tensor& given_grad, const Tensor& given_x, const Tensor& given_w,
                                            bool transposed, std::optional<double> slope, bool wants_x,
                                            bool wants_weight, bool bf16) {
  const Tensor grad = dense(given_grad), x = dense(given_x), w = dense(given_w);
  const Layer layer(x, w, !transposed, bf16);
  check(grad, "grad", ScalarType::Float, 4);
  const auto sizes = transposed ? layer.big_sizes() : layer.small_sizes();
  for (int64_t i = 0; i < 4; ++i) {
    STD_TORCH_CHECK(grad.size(i) == sizes[static_cast<size_t>(i)], "grad: wrong size ", grad.size(i), " of dimension ",
                    i);
  }
  const int64_t channels = transposed ? layer.small : layer.big;
  const std::vector<int64_t> nothing{0}, per_channel{channels};
  Tensor grad_x = torch::stable::new_empty(x, wants_x ? x.sizes() : nothing);
  Tensor grad_w = torch::stable::new_empty(x, wants_weight ? w.sizes() : nothing);
  Tensor sums = torch::stable::new_empty(x, wants_x ? per_channel : nothing);
  const Groups groups(layer.batch, layer.units_of_image());
  const Kernels& kernels = layer.kernels;
  std::vector<float> weights, part_sums(static_cast<size_t>(wants_x ? groups.count * channels : 0), 0.0f);
  std::unique_ptr<float[]> weight_sums;
  if (wants_x) weights = ready(layer, w, transposed);
  // cleared by the thread that adds to it
  if (wants_weight) weight_sums.reset(new float[static_cast<size_t>(groups.count * kernels.weights)]);
  Job job{static_cast<int>(layer.height), static_cast<int>(layer.width)};
  (transposed ? job.small : job.big) = x.const_data_ptr<float>();
  (transposed ? job.big : job.small) = grad.const_data_ptr<float>();
  job.weights = weights.data();
  job.out = wants_x ? grad_x.mutable_data_ptr<float>() : nullptr;
  job.finish = slope ? Finish::kMasked : Finish::kSummed;
  job.slope = static_cast<float>(slope.value_or(0.0));
  job.mask = x.const_data_ptr<float>();
  const auto run = transposed ? kernels.up_backward : kernels.down_backward;
  const int64_t units = layer.units_of_image();
  torch::stable::parallel_for(0, groups.count, 1, [&](int64_t begin, int64_t end) {
    for (int64_t group = begin; group < end; ++group) {
      Job own = job;
      if (wants_x) own.sums = part_sums.data() + group * channels;
      if (wants_weight) {
        own.weight_sums = weight_sums.get() + group * kernels.weights;
        std::memset(own.weight_sums, 0, static_cast<size_t>(kernels.weights) * sizeof(float));
      }
      run(own, groups.first(group) * units, groups.last(group) * units);
    }
  });
  if (wants_x) add_up(part_sums, groups.count, sums);
  if (wants_weight) {
    float* out = grad_w.mutable_data_ptr<float>();
    if (groups.count == 0) std::fill_n(out, layer.weight_count(), 0.0f);
    torch::stable::parallel_for(0, groups.count ? layer.small : 0, 8, [&](int64_t begin, int64_t end) {
      kernels.weight_gradient(weight_sums.get(), groups.count, out, static_cast<int>(begin), static_cast<int>(end));
    });
  }
  return {grad_x, grad_w, sums};
}

using ActivationBackward = void (*)(const float* grad, const float* y, float slope, float* out, float* sums,
                                    int64_t pixels, int channels);

ActivationBackward activation_for_processor() {
#ifdef PYVAE_CONVOLUTIONS
  if (level() >= kAvx512) return avx512::activation_backward;
  if (level() >= kAvx2) return avx2::activation_backward;
#endif
  return nullptr;
}

// Gradient of the input of an activation with output y, or of none, and its sums over all but the last dimension. Without
// an activation it is what comes, and none is returned.
std::tuple<Tensor, Tensor> activation_backward(const Tensor& given_grad, const std::optional<Tensor>& given_y,
                                               std::optional<double> slope) {
  const Tensor grad = dense(given_grad);
  check(grad, "grad", ScalarType::Float, 4);
  const int64_t channels = grad.size(3), pixels = grad.size(1) * grad.size(2), batch = grad.size(0);
  const std::vector<int64_t> nothing{0}, per_channel{channels};
  STD_TORCH_CHECK(given_y.has_value() == slope.has_value(), "y: comes with the slope of its activation");
  const Tensor y = given_y ? dense(*given_y) : grad;
  check(y, "y", ScalarType::Float, 4);
  check_same_shape(y, "y", grad);
  Tensor out = torch::stable::new_empty(grad, given_y ? grad.sizes() : nothing);
  Tensor sums = torch::stable::new_empty(grad, per_channel);
  const Groups groups(batch, 1);
  std::vector<float> parts(static_cast<size_t>(groups.count * channels), 0.0f);
  const float* from = grad.const_data_ptr<float>();
  const float* mask = given_y ? y.const_data_ptr<float>() : nullptr;
  float* to = given_y ? out.mutable_data_ptr<float>() : nullptr;
  const auto s = static_cast<float>(slope.value_or(0.0));
  const int64_t image = pixels * channels;
  const ActivationBackward run = activation_for_processor();
  STD_TORCH_CHECK(run != nullptr, "activation: there is none for this processor or compiler");
  torch::stable::parallel_for(0, groups.count, 1, [&](int64_t begin, int64_t end) {
    for (int64_t group = begin; group < end; ++group) {
      for (int64_t i = groups.first(group); i < groups.last(group); ++i) {
        run(from + i * image, mask ? mask + i * image : nullptr, s, to ? to + i * image : nullptr,
            parts.data() + group * channels, pixels, static_cast<int>(channels));
      }
    }
  });
  add_up(parts, groups.count, sums);
  return {out, sums};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pyvae_native, CPU, m) {
  m.impl("convolution_fwd", TORCH_BOX(&forward));
  m.impl("convolution_bwd", TORCH_BOX(&backward));
  m.impl("activation_bwd", TORCH_BOX(&activation_backward));
}

STABLE_TORCH_LIBRARY_IMPL(pyvae_native, CompositeExplicitAutograd, m) {
  m.impl("convolution_level", TORCH_BOX(&level_at_most));
}
