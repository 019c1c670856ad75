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
#include "level.h"

#ifdef PYVAE_INSTRUCTION_SETS
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
#undef PYVAE_LANES
#endif

#define PYVAE_NAMESPACE pyvae::convolution
#define PYVAE_KERNELS "convolution/kernels.h"
#include "each_set.h"

namespace {

using namespace pyvae;
using namespace pyvae::convolution;

// Height, width and channels of an image's maps.
struct Shape {
  int64_t height, width, channels;
  int64_t floats() const { return height * width * channels; }
};

// What a layer computes, and how.
struct Layer {
  bool transposed;
  std::optional<float> slope;  // of the activation behind it
  Shape below, above, small, big;
  int64_t taps;
  Kernels kernels;

  // of maps of shape `below`, by w [small, k, k, big]
  Layer(const Shape& below, const Tensor& w, bool transposed, double slope, bool bf16)
      : transposed(transposed), below(below) {
    if (slope >= 0.0) this->slope = static_cast<float>(slope);
    check(w, "weight", ScalarType::Float, 4);
    const int64_t k = w.size(1);
    taps = k * k;
    STD_TORCH_CHECK(k == w.size(2) && (k == 4 || k == 2), "weight: kernels are 4 x 4 or 2 x 2");
    STD_TORCH_CHECK(below.channels == w.size(transposed ? 0 : 3), "x: has ", below.channels, " channels");
    STD_TORCH_CHECK(transposed || (below.height % 2 == 0 && below.width % 2 == 0), "x: odd sides ", below.height, " x ",
                    below.width);
    small = transposed ? below : Shape{below.height / 2, below.width / 2, w.size(0)};
    big = transposed ? Shape{2 * below.height, 2 * below.width, w.size(3)} : below;
    above = transposed ? big : small;
    STD_TORCH_CHECK(small.height < 1 << 14 && small.width < 1 << 14, "x: its sides are too long");
    const bool end = k == 4 && (big.channels == 1 || big.channels == 3);
    STD_TORCH_CHECK((small.channels == 32 || small.channels == 64) && (end || big.channels == 32 || big.channels == 64),
                    "weight: between ", big.channels, " and ", small.channels, " channels");
    STD_TORCH_CHECK(end || k == 2 || (small.height % 2 == 0 && small.width % 2 == 0),
                    "x: the small map has odd sides");
    STD_TORCH_CHECK(!bf16 || level() >= kAvx512Bf16, "bf16: this processor has no instructions for it");
    STD_TORCH_CHECK(find(end, k == 4, bf16), "convolution: there is none for this processor or compiler");
  }

  int64_t units_of_image() const {
    return kernels.tile ? small.height / kernels.tile * (small.width / kernels.tile) : 1;
  }
  int64_t largest() const { return std::max(small.floats(), big.floats()); }

  Job job(const float* weights) const {
    Job job{static_cast<int>(small.height), static_cast<int>(small.width)};
    job.weights = weights;
    return job;
  }

 private:
  bool find([[maybe_unused]] bool end, [[maybe_unused]] bool winograd, [[maybe_unused]] bool low) {
#ifdef PYVAE_INSTRUCTION_SETS
    const int b = static_cast<int>(big.channels), s = static_cast<int>(small.channels);
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

using ActivationBackward = void (*)(const float* grad, const float* y, float slope, float* out, float* sums,
                                    int64_t pixels, int channels);

ActivationBackward activation_for_processor() {
#ifdef PYVAE_INSTRUCTION_SETS
  if (level() >= kAvx512) return avx512::activation_backward;
  if (level() >= kAvx2) return avx2::activation_backward;
#endif
  return nullptr;
}

// Floats of maps that a few images have together, so that a layer finds in cache what the one before it wrote.
constexpr int64_t kNear = 6 * 32 * 32 * 32;

int64_t near(const Layer& layer) { return std::max<int64_t>(1, kNear / std::max<int64_t>(1, layer.largest())); }

// Layers one after another.
std::vector<Layer> layers_of(const Tensor& x, const std::vector<Tensor>& weights, const std::vector<bool>& transposed,
                             const std::vector<double>& slopes, bool bf16) {
  check(x, "x", ScalarType::Float, 4);
  STD_TORCH_CHECK(x.size(0) < int64_t{1} << 32, "x: too many images");
  const size_t count = weights.size();
  STD_TORCH_CHECK(count > 0 && transposed.size() == count && slopes.size() == count,
                  "weights: as many as there are kinds and slopes, and one at least");
  std::vector<Layer> layers;
  Shape shape{x.size(1), x.size(2), x.size(3)};
  for (size_t i = 0; i < count; ++i) {
    layers.emplace_back(shape, weights[i], transposed[i], slopes[i], bf16);
    shape = layers.back().above;
  }
  return layers;
}

using Floats = std::unique_ptr<float[]>;

// Weights of layers [lowest, count) made ready for the products that go down, or up, or the other way where a layer is
// transposed.
std::vector<Floats> ready(const std::vector<Layer>& layers, const std::vector<Tensor>& weights, size_t lowest, bool down) {
  std::vector<Floats> prepared(layers.size());
  torch::stable::parallel_for(static_cast<int64_t>(lowest), static_cast<int64_t>(layers.size()), 1,
                              [&](int64_t begin, int64_t end) {
    for (auto i = static_cast<size_t>(begin); i < static_cast<size_t>(end); ++i) {
      const Kernels& kernels = layers[i].kernels;
      prepared[i].reset(new float[static_cast<size_t>(kernels.weights)]);
      const auto prepare = down != layers[i].transposed ? kernels.prepare_down : kernels.prepare_up;
      prepare(weights[i].const_data_ptr<float>(), prepared[i].get());
    }
  });
  return prepared;
}

std::vector<int64_t> sizes_of(int64_t batch, const Shape& shape) {
  return {batch, shape.height, shape.width, shape.channels};
}

// The maps of every layer, or of the last alone.
std::vector<Tensor> forward(const Tensor& given_x, const std::vector<Tensor>& given_weights,
                            const std::vector<std::optional<Tensor>>& given_biases, const std::vector<bool>& transposed,
                            const std::vector<double>& slopes, bool bf16, bool keep) {
  const Tensor x = dense(given_x);
  const std::vector<Tensor> weights = all_dense(given_weights);
  const std::vector<Layer> layers = layers_of(x, weights, transposed, slopes, bf16);
  const size_t count = layers.size();
  STD_TORCH_CHECK(given_biases.size() == count, "biases: one for each weight");
  const int64_t batch = x.size(0);
  std::vector<Tensor> maps;
  std::vector<float*> kept(count, nullptr);
  const std::vector<Floats> prepared = ready(layers, weights, 0, true);
  std::vector<std::vector<float>> biases;
  std::vector<Job> jobs;
  int64_t chunk = batch, passing = 0;  // floats of an image that is not kept
  for (size_t i = 0; i < count; ++i) {
    const Layer& layer = layers[i];
    if (keep || i + 1 == count) {
      maps.push_back(torch::stable::new_empty(x, sizes_of(batch, layer.above)));
      kept[i] = maps.back().mutable_data_ptr<float>();
    } else {
      passing = std::max(passing, layer.above.floats());
    }
    biases.emplace_back(static_cast<size_t>(layer.above.channels), 0.0f);
    if (given_biases[i]) {
      check(*given_biases[i], "bias", ScalarType::Float, 1);
      STD_TORCH_CHECK(given_biases[i]->size(0) == layer.above.channels, "bias: expected ", layer.above.channels,
                      " numbers");
      const Tensor bias = dense(*given_biases[i]);
      std::copy_n(bias.const_data_ptr<float>(), layer.above.channels, biases[i].data());
    }
    jobs.push_back(layer.job(prepared[i].get()));
    jobs[i].bias = biases[i].data();
    jobs[i].finish = layer.slope ? Finish::kActivated : Finish::kLinear;
    jobs[i].slope = layer.slope.value_or(0.0f);
    if (count > 1) chunk = std::min(chunk, near(layer));
  }
  const float* first = x.const_data_ptr<float>();
  // of one layer, strips are shared between threads, of several, images
  const int64_t units = count > 1 ? batch : batch * layers[0].units_of_image();
  const int64_t unit = count > 1 ? 1 : layers[0].kernels.strip;
  torch::stable::parallel_for(0, (units + unit - 1) / unit, 1, [&](int64_t begin, int64_t end) {
    if (count == 1) {
      Job job = jobs[0];
      (layers[0].transposed ? job.small : job.big) = first;
      job.out = kept[0];
      (layers[0].transposed ? layers[0].kernels.up : layers[0].kernels.down)(job, begin * unit,
                                                                             std::min(end * unit, units));
      return;
    }
    float* own[2] = {nullptr, nullptr};
    if (passing > 0) {
      own[0] = static_cast<float*>(maps_scratch.bytes(static_cast<size_t>(2 * passing * chunk) * sizeof(float)));
      own[1] = own[0] + passing * chunk;
    }
    for (int64_t image = begin; image < end; image += chunk) {
      const int64_t images = std::min(chunk, end - image);
      const float* from = first + image * layers[0].below.floats();
      for (size_t i = 0; i < count; ++i) {
        const Layer& layer = layers[i];
        Job job = jobs[i];
        (layer.transposed ? job.small : job.big) = from;
        job.out = kept[i] ? kept[i] + image * layer.above.floats() : own[i % 2];
        (layer.transposed ? layer.kernels.up : layer.kernels.down)(job, 0, images * layer.units_of_image());
        from = job.out;
      }
    }
  });
  return maps;
}

// Images whose sums are made one after another: few enough for many threads, many enough that adding the groups up costs
// little.
struct Groups {
  static constexpr int64_t kImages = 8, kMost = 32;
  int64_t batch, images, count;

  explicit Groups(int64_t batch)
      : batch(batch), images(std::max(kImages, (batch + kMost - 1) / kMost)), count((batch + images - 1) / images) {}
  int64_t first(int64_t group) const { return group * images; }
  int64_t last(int64_t group) const { return std::min(batch, (group + 1) * images); }
};

void add_up(const std::vector<float>& parts, int64_t count, Tensor& sums) {
  float* out = sums.mutable_data_ptr<float>();
  const int64_t channels = sums.numel();
  for (int64_t c = 0; c < channels; ++c) {
    double sum = 0.0;
    for (int64_t part = 0; part < count; ++part) sum += parts[static_cast<size_t>(part * channels + c)];
    out[c] = static_cast<float>(sum);
  }
}

// The gradients of layers [lowest, count), from the last to the lowest.
struct Backward {
  const std::vector<Layer>& layers;
  std::vector<const float*> maps;  // inputs of the layers; then the last one's output, if an activation is behind it
  const float* grad;
  float* grad_x;  // of the lowest layer's input, if that is wanted
  size_t lowest;
  ActivationBackward activation;
  std::vector<Floats> prepared;
  std::vector<Floats> weight_sums;  // [groups][kernels.weights], of those that are wanted
  std::vector<std::vector<float>> sums;               // [groups][channels] of the gradients of a layer's output

  float* sums_of(size_t i, int64_t group) { return sums[i].data() + group * layers[i].above.channels; }
  bool goes_below(size_t i) const { return i > lowest || grad_x != nullptr; }
  // how many images of a group a layer takes at once
  int64_t chunk(size_t i, int64_t images) const {
    const int64_t chunks = (images + near(layers[i]) - 1) / near(layers[i]);
    return (images + chunks - 1) / chunks;
  }

  // Layers that take as many images at once follow one another chunk by chunk.
  void group(int64_t group, int64_t first, int64_t last) {
    const size_t count = layers.size();
    const int64_t images = last - first;
    std::vector<size_t> place(count, 0);
    size_t floats = 0;
    for (size_t i = count; i-- > lowest;) {
      const bool first_of_row = i + 1 == count || chunk(i + 1, images) != chunk(i, images);
      place[i] = floats;
      floats += static_cast<size_t>((first_of_row ? images : chunk(i, images)) * layers[i].above.floats());
    }
    auto* own = static_cast<float*>(maps_scratch.bytes(std::max<size_t>(floats, 1) * sizeof(float)));
    for (size_t top = count; top > lowest;) {
      const int64_t at_once = chunk(top - 1, images);
      size_t bottom = top - 1;
      while (bottom > lowest && chunk(bottom - 1, images) == at_once) --bottom;
      for (int64_t done = 0; done < images; done += at_once) {
        const int64_t now = std::min(at_once, images - done);
        for (size_t i = top; i-- > bottom;) {
          // within such a row of layers the same memory serves every chunk
          const int64_t from = i + 1 < top ? 0 : done, to = i > bottom ? 0 : done;
          float* below = i > lowest ? own + place[i - 1] + to * layers[i].below.floats() : nullptr;
          layer(i, group, first + done, now, own + place[i] + from * layers[i].above.floats(), below);
        }
      }
      top = bottom;
    }
  }

 private:
  // of images [first, first + images): above and below have room for their gradients
  void layer(size_t i, int64_t group, int64_t first, int64_t images, float* above, float* below) {
    const Layer& layer = layers[i];
    const float* from = above;
    if (i + 1 == layers.size()) {
      const int64_t floats = layer.above.floats(), pixels = layer.above.height * layer.above.width;
      from = layer.slope ? above : grad + first * floats;
      for (int64_t image = 0; image < images; ++image) {
        activation(grad + (first + image) * floats, layer.slope ? maps[i + 1] + (first + image) * floats : nullptr,
                   layer.slope.value_or(0.0f), layer.slope ? above + image * floats : nullptr, sums_of(i, group), pixels,
                   static_cast<int>(layer.above.channels));
      }
    }
    Job job = layer.job(prepared[i].get());
    const float* x = maps[i] + first * layer.below.floats();
    (layer.transposed ? job.small : job.big) = x;
    (layer.transposed ? job.big : job.small) = from;
    std::vector<float> none;
    if (goes_below(i)) {
      const std::optional<float> slope = i > 0 ? layers[i - 1].slope : std::nullopt;
      job.finish = slope ? Finish::kMasked : Finish::kSummed;
      job.slope = slope.value_or(0.0f);
      job.mask = x;
      job.out = i > lowest ? below : grad_x + first * layer.below.floats();
      if (i == 0) none.resize(static_cast<size_t>(layer.below.channels));
      job.sums = i > 0 ? sums_of(i - 1, group) : none.data();
    }
    if (weight_sums[i]) job.weight_sums = weight_sums[i].get() + group * layer.kernels.weights;
    (layer.transposed ? layer.kernels.up_backward : layer.kernels.down_backward)(job, 0,
                                                                                 images * layer.units_of_image());
  }
};

// Gradients of x, of the weights and of the biases from that of the last layer's output. maps are the inputs of all
// layers; y is the output, where an activation is behind the last. What is not wanted has shape [0].
std::tuple<Tensor, std::vector<Tensor>, std::vector<Tensor>> backward(
    const Tensor& given_grad, const std::vector<Tensor>& given_maps, const std::optional<Tensor>& given_y,
    const std::vector<Tensor>& given_weights, const std::vector<bool>& transposed, const std::vector<double>& slopes,
    bool wants_x, const std::vector<bool>& wants_weights, const std::vector<bool>& wants_biases, bool bf16) {
  STD_TORCH_CHECK(!given_maps.empty() && given_maps.size() == given_weights.size(), "maps: one for each weight");
  const std::vector<Tensor> maps = all_dense(given_maps), weights = all_dense(given_weights);
  const Tensor& x = maps[0];
  const std::vector<Layer> layers = layers_of(x, weights, transposed, slopes, bf16);
  const size_t count = layers.size();
  const int64_t batch = x.size(0);
  STD_TORCH_CHECK(wants_weights.size() == count && wants_biases.size() == count, "wanted: of each layer");
  const auto check_map = [batch](const Tensor& map, const char* name, const Shape& shape) {
    check(map, name, ScalarType::Float, 4);
    const auto sizes = sizes_of(batch, shape);
    for (int64_t i = 0; i < 4; ++i) {
      STD_TORCH_CHECK(map.size(i) == sizes[static_cast<size_t>(i)], name, ": wrong size ", map.size(i),
                      " of dimension ", i);
    }
  };
  const Tensor grad = dense(given_grad);
  check_map(grad, "grad", layers.back().above);
  Tensor y = grad;
  if (layers.back().slope) {
    STD_TORCH_CHECK(given_y.has_value(), "y: it is needed behind an activation");
    y = dense(*given_y);
    check_map(y, "y", layers.back().above);
  }
  const Groups groups(batch);
  const std::vector<int64_t> nothing{0};
  Tensor grad_x = torch::stable::new_empty(x, wants_x ? x.sizes() : nothing);
  std::vector<Tensor> grad_weights, grad_biases;
  Backward all{layers, {}, grad.const_data_ptr<float>(), wants_x ? grad_x.mutable_data_ptr<float>() : nullptr, 0,
               activation_for_processor(), {}, {}, {}};
  if (!wants_x) {
    while (all.lowest < count && !wants_weights[all.lowest] && !wants_biases[all.lowest]) ++all.lowest;
  }
  for (size_t i = 0; i < count; ++i) {
    const Layer& layer = layers[i];
    check_map(maps[i], "maps", layer.below);
    all.maps.push_back(maps[i].const_data_ptr<float>());
    grad_weights.push_back(torch::stable::new_empty(x, wants_weights[i] ? weights[i].sizes() : nothing));
    const std::vector<int64_t> channels{layer.above.channels};
    grad_biases.push_back(torch::stable::new_empty(x, wants_biases[i] ? channels : nothing));
    // cleared by the thread that adds to it
    all.weight_sums.emplace_back(
        wants_weights[i] ? new float[static_cast<size_t>(groups.count * layer.kernels.weights)] : nullptr);
    all.sums.emplace_back(static_cast<size_t>(groups.count * layer.above.channels), 0.0f);
  }
  all.maps.push_back(y.const_data_ptr<float>());
  all.prepared = ready(layers, weights, all.lowest + (wants_x ? 0 : 1), false);
  torch::stable::parallel_for(0, groups.count, 1, [&](int64_t begin, int64_t end) {
    for (int64_t group = begin; group < end; ++group) {
      for (size_t i = 0; i < count; ++i) {
        const int64_t floats = layers[i].kernels.weights;
        if (all.weight_sums[i]) {
          std::memset(all.weight_sums[i].get() + group * floats, 0, static_cast<size_t>(floats) * sizeof(float));
        }
      }
      all.group(group, groups.first(group), groups.last(group));
    }
  });
  for (size_t i = 0; i < count; ++i) {
    if (wants_biases[i]) add_up(all.sums[i], groups.count, grad_biases[i]);
    if (!wants_weights[i]) continue;
    float* out = grad_weights[i].mutable_data_ptr<float>();
    if (groups.count == 0) std::fill_n(out, grad_weights[i].numel(), 0.0f);
    torch::stable::parallel_for(0, groups.count ? layers[i].small.channels : 0, 8, [&](int64_t begin, int64_t end) {
      layers[i].kernels.weight_gradient(all.weight_sums[i].get(), groups.count, out, static_cast<int>(begin),
                                        static_cast<int>(end));
    });
  }
  return {grad_x, grad_weights, grad_biases};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pyvae_native, CPU, m) {
  m.impl("convolutions_fwd", TORCH_BOX(&forward));
  m.impl("convolutions_bwd", TORCH_BOX(&backward));
}

STABLE_TORCH_LIBRARY_IMPL(pyvae_native, CompositeExplicitAutograd, m) {
  m.impl("convolution_level", TORCH_BOX(&level_at_most));
}
