// Linear layers of a whole batch, with the activation behind them, and their gradients; also convolutions of a kernel as
// large as the map, which are linear layers of it. Maps have their channels last, and rows of them, as nn.Flatten makes
// them, their channels first: whichever stands below or above is turned in passing.
//
// No sum is shared between threads, so results do not depend on their number, and the instruction sets give the same.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <initializer_list>
#include <optional>
#include <tuple>
#include <utility>
#include <vector>

#include "../check.h"
#include "../common/portable.h"
#include "level.h"
#include "linear/job.h"

#define PYVAE_NAMESPACE pyvae::linear
#define PYVAE_KERNELS "linear/kernels.h"
#include "each_set.h"

namespace {

using namespace pyvae;
using namespace pyvae::linear;

Kernels kernels() {
#ifdef PYVAE_INSTRUCTION_SETS
  if (level() >= kAvx512) return avx512::kKernels;
  if (level() >= kAvx2) return avx2::kKernels;
#endif
  STD_TORCH_CHECK(false, "linear: there is none for this processor or compiler");
}

// Multiplications that are worth a thread.
constexpr int64_t kWorth = 1 << 18;

// All of them side by side.
void multiply(std::initializer_list<Product> products, const Kernels& kernels) {
  std::vector<Product> all(products);
  int64_t multiplications = 0, units = 1;
  for (Product& p : all) {
    p.block = kernels.block;
    multiplications += p.rows * p.columns * p.depth;
    units = std::max(units, p.units());
  }
  const int64_t slices = std::clamp<int64_t>(multiplications / kWorth, 1, units);
  torch::stable::parallel_for(0, slices, 1, [&](int64_t begin, int64_t end) {
    for (const Product& p : all) kernels.multiply(p, begin * p.units() / slices, end * p.units() / slices);
  });
}

// Of rows, which have their channels first, in maps of so many pixels.
Order order_of(int64_t features, int64_t pixels, const char* name) {
  STD_TORCH_CHECK(pixels > 0 && features % pixels == 0, name, ": ", features, " numbers are no map of ", pixels,
                  " pixels");
  Order order;
  const int64_t channels = features / pixels;
  if (pixels == 1 || channels == 1) return order;
  order.features.resize(static_cast<size_t>(features));
  for (int64_t c = 0; c < channels; ++c) {
    for (int64_t pixel = 0; pixel < pixels; ++pixel) {
      const int64_t place = pixel * channels + c;
      order.features[static_cast<size_t>(place)] = static_cast<int64_t>(order.places.size());
      order.places.push_back(place);
    }
  }
  return order;
}

// A layer from `inputs` to `outputs`: its weight is [outputs, inputs], or [inputs, outputs] if it is transposed.
struct Layer {
  int64_t batch, inputs, outputs, biases;
  bool transposed;
  std::optional<float> slope;  // of the activation behind it
  Order below, above;

  Layer(int64_t batch, const Tensor& w, bool transposed, double slope, int64_t pixels_below, int64_t pixels_above)
      : batch(batch), transposed(transposed) {
    if (slope >= 0.0) this->slope = static_cast<float>(slope);
    STD_TORCH_CHECK(w.scalar_type() == ScalarType::Float, "weight: wrong dtype");
    STD_TORCH_CHECK(w.dim() > 1 && w.numel() > 0, "weight: expected 2 dimensions or more, and none empty");
    const int64_t first = w.size(0), others = w.numel() / first;
    inputs = transposed ? first : others;
    outputs = transposed ? others : first;
    biases = transposed ? w.size(w.dim() - 1) : first;
    STD_TORCH_CHECK(!transposed || (pixels_below == 1 && pixels_above == 1), "transposed: of maps as they are");
    below = order_of(inputs, pixels_below, "x");
    above = order_of(outputs, pixels_above, "y");
  }

  Matrix maps_below(float* data) const { return {data, inputs, &below}; }
  Matrix maps_above(float* data) const { return {data, outputs, &above}; }
};

// A matrix that is read alone.
float* read(const Tensor& x) { return const_cast<float*>(x.const_data_ptr<float>()); }

// y = x w^T of rows, or x w where w is not [numbers of y, numbers of x].
Product times_weight(int64_t batch, const Matrix& x, const Tensor& w, bool turned, const Matrix& y) {
  Product p{};
  p.depth = p.a_row = x.row;
  p.a_step = 1;
  p.c = y;
  p.b_turned = p.c_turned = turned;
  if (turned) {
    p.rows = y.row, p.columns = batch;
    p.a = read(w);
    p.b = x;
  } else {
    p.rows = batch, p.columns = y.row;
    p.a = x.data;
    p.b = {read(w), y.row};
  }
  return p;
}

// Layers one after another.
std::vector<Layer> layers_of(const Tensor& x, const std::vector<Tensor>& weights, const std::vector<bool>& transposed,
                             const std::vector<double>& slopes, const std::vector<int64_t>& pixels_below,
                             const std::vector<int64_t>& pixels_above) {
  STD_TORCH_CHECK(x.scalar_type() == ScalarType::Float, "x: wrong dtype");
  STD_TORCH_CHECK(x.dim() > 0, "x: expected rows");
  const size_t count = weights.size();
  STD_TORCH_CHECK(count > 0 && transposed.size() == count && slopes.size() == count && pixels_below.size() == count &&
                      pixels_above.size() == count,
                  "weights: as many as there are kinds, slopes and pixels, and one at least");
  std::vector<Layer> layers;
  int64_t numbers = pyvae::product(x, 1, x.dim());
  for (size_t i = 0; i < count; ++i) {
    layers.emplace_back(x.size(0), weights[i], transposed[i], slopes[i], pixels_below[i], pixels_above[i]);
    STD_TORCH_CHECK(layers[i].inputs == numbers, "x: has rows of ", numbers, " numbers, not of ", layers[i].inputs);
    numbers = layers[i].outputs;
  }
  return layers;
}

// What every layer makes.
std::vector<Tensor> forward(const Tensor& given_x, const std::vector<Tensor>& given_weights,
                            const std::vector<std::optional<Tensor>>& given_biases, const std::vector<bool>& transposed,
                            const std::vector<double>& slopes, const std::vector<int64_t>& pixels_below,
                            const std::vector<int64_t>& pixels_above) {
  const Kernels chosen = kernels();
  Tensor x = dense(given_x);
  const std::vector<Tensor> weights = all_dense(given_weights);
  const std::vector<Layer> layers = layers_of(x, weights, transposed, slopes, pixels_below, pixels_above);
  STD_TORCH_CHECK(given_biases.size() == layers.size(), "biases: one for each weight");
  std::vector<Tensor> made;
  for (size_t i = 0; i < layers.size(); ++i) {
    const Layer& layer = layers[i];
    // of whole panels
    std::vector<float> bias(static_cast<size_t>((layer.outputs + kPanel - 1) / kPanel * kPanel), 0.0f);
    if (given_biases[i]) {
      check(*given_biases[i], "bias", ScalarType::Float, 1);
      STD_TORCH_CHECK(given_biases[i]->numel() == layer.biases, "bias: expected ", layer.biases, " numbers");
      const Tensor source = dense(*given_biases[i]);
      for (int64_t n = 0; n < layer.outputs; n += layer.biases) {
        std::copy_n(source.const_data_ptr<float>(), layer.biases, &bias[static_cast<size_t>(n)]);
      }
    }
    made.push_back(torch::stable::new_empty(x, {layer.batch, layer.outputs}));
    Product p = times_weight(layer.batch, layer.maps_below(read(x)), weights[i], !layer.transposed,
                             layer.maps_above(made[i].mutable_data_ptr<float>()));
    p.bias = bias.data();
    p.activated = layer.slope.has_value();
    p.slope = layer.slope.value_or(0.0f);
    multiply({p}, chosen);
    x = made[i];
  }
  return made;
}

// The gradient before the activation, as rows; what it is summed over the batch goes to `biases`, if that is wanted.
Tensor masked(const Tensor& grad, const Tensor& y, const Layer& layer, Tensor* biases, const Kernels& chosen) {
  if (!layer.slope && layer.above.places.empty() && biases == nullptr) return grad;
  Tensor rows = torch::stable::new_empty(grad, {layer.batch, layer.outputs});
  std::vector<double> sums(static_cast<size_t>(layer.outputs));
  const Masked all{layer.batch,
                   layer.maps_above(read(grad)),
                   layer.maps_above(layer.slope ? read(y) : nullptr),
                   layer.slope.value_or(0.0f),
                   rows.mutable_data_ptr<float>(),
                   sums.data()};
  torch::stable::parallel_for(0, layer.outputs, std::max<int64_t>(64, kWorth / 16 / std::max<int64_t>(layer.batch, 1)),
                              [&](int64_t begin, int64_t end) { chosen.mask(all, begin, end); });
  if (biases == nullptr) return rows;
  float* out = biases->mutable_data_ptr<float>();
  for (int64_t b = 0; b < layer.biases; ++b) {
    double sum = 0.0;
    for (int64_t n = b; n < layer.outputs; n += layer.biases) sum += sums[static_cast<size_t>(n)];
    out[b] = static_cast<float>(sum);
  }
  return rows;
}

// Gradients of x, of the weights and of the biases from that of the last layer's output. maps are the inputs of all
// layers; y is the output, where an activation is behind the last. What is not wanted has shape [0].
std::tuple<Tensor, std::vector<Tensor>, std::vector<Tensor>> backward(
    const Tensor& given_grad, const std::vector<Tensor>& given_maps, const std::optional<Tensor>& given_y,
    const std::vector<Tensor>& given_weights, const std::vector<bool>& transposed, const std::vector<double>& slopes,
    const std::vector<int64_t>& pixels_below, const std::vector<int64_t>& pixels_above, bool wants_x,
    const std::vector<bool>& wants_weights, const std::vector<bool>& wants_biases) {
  const Kernels chosen = kernels();
  STD_TORCH_CHECK(!given_maps.empty() && given_maps.size() == given_weights.size(), "maps: one for each weight");
  std::vector<Tensor> maps = all_dense(given_maps);
  const std::vector<Tensor> weights = all_dense(given_weights);
  const std::vector<Layer> layers = layers_of(maps[0], weights, transposed, slopes, pixels_below, pixels_above);
  const size_t count = layers.size();
  STD_TORCH_CHECK(wants_weights.size() == count && wants_biases.size() == count, "wanted: of each layer");
  const auto check_rows = [&](const Tensor& t, const char* name, int64_t numbers) {
    STD_TORCH_CHECK(t.scalar_type() == ScalarType::Float, name, ": wrong dtype");
    STD_TORCH_CHECK(t.dim() > 0 && t.size(0) == layers[0].batch && t.numel() == t.size(0) * numbers, name,
                    ": expected ", layers[0].batch, " rows of ", numbers, " numbers");
  };
  for (size_t i = 0; i < count; ++i) check_rows(maps[i], "maps", layers[i].inputs);
  Tensor grad = dense(given_grad);
  check_rows(grad, "grad", layers.back().outputs);
  if (layers.back().slope) {
    STD_TORCH_CHECK(given_y.has_value(), "y: it is needed behind an activation");
    check_rows(*given_y, "y", layers.back().outputs);
  }
  maps.push_back(given_y ? dense(*given_y) : grad);
  const std::vector<int64_t> nothing{0};
  std::vector<Tensor> grad_weights, grad_biases;
  size_t lowest = wants_x ? 0 : count;  // whose gradients are wanted
  for (size_t i = 0; i < count; ++i) {
    if (wants_weights[i] || wants_biases[i]) lowest = std::min(lowest, i);
    grad_weights.push_back(torch::stable::new_empty(grad, wants_weights[i] ? weights[i].sizes() : nothing));
    grad_biases.push_back(torch::stable::new_empty(grad, {wants_biases[i] ? layers[i].biases : 0}));
  }
  for (size_t i = count; i-- > lowest;) {
    const Layer& layer = layers[i];
    const Tensor rows = masked(grad, maps[i + 1], layer, wants_biases[i] ? &grad_biases[i] : nullptr, chosen);
    const Matrix upper{read(rows), layer.outputs};
    Product down{}, across{};  // the gradient of x, and that of the weight
    if (i > lowest || wants_x) {
      grad = torch::stable::new_empty(grad, maps[i].sizes());
      down = times_weight(layer.batch, upper, weights[i], layer.transposed,
                          layer.maps_below(grad.mutable_data_ptr<float>()));
    }
    if (wants_weights[i]) {
      const Matrix lower = layer.maps_below(read(maps[i]));
      const Matrix &left = layer.transposed ? lower : upper, &right = layer.transposed ? upper : lower;
      across.depth = layer.batch;
      across.rows = left.row, across.columns = right.row;
      across.a = left.data;
      across.a_row = 1, across.a_step = left.row;
      across.b = right;
      across.c = {grad_weights[i].mutable_data_ptr<float>(), right.row};
    }
    multiply({down, across}, chosen);
  }
  return {wants_x ? grad : torch::stable::new_empty(grad, nothing), grad_weights, grad_biases};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pyvae_native, CPU, m) {
  m.impl("linears_fwd", TORCH_BOX(&forward));
  m.impl("linears_bwd", TORCH_BOX(&backward));
}
