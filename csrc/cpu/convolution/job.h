// What the kernels of convolution.cpp are told, whatever the instruction set.
#pragma once
#include <cstdint>

#include "../scratch.h"

namespace pyvae::convolution {

// What becomes of a sum of products.
enum class Finish {
  kLinear,     // the bias is added
  kActivated,  // and a ReLU follows, leaky if it has a slope
  kMasked,     // a gradient, which goes through the activation whose output lies at the same place
  kSummed,     // a gradient, as it is
};

struct Job {
  int height, width;  // of the small map
  const float* big = nullptr;
  const float* small = nullptr;
  const void* weights = nullptr;  // made ready for their product
  float* out = nullptr;
  Finish finish = Finish::kLinear;
  float slope = 0.0f;
  const float* bias = nullptr;
  const float* mask = nullptr;    // outputs of the activation, laid out as `out`
  float* sums = nullptr;          // of a gradient, over pixels: added to
  float* weight_sums = nullptr;   // products for the weights' gradient: added to

  bool is_gradient() const { return finish == Finish::kMasked || finish == Finish::kSummed; }
};

// Layers of one kind between so many channels of the big and of the small map.
struct Kernels {
  int strip;        // tiles of a strip
  int tile;         // pixels of a tile's side in the small map
  int64_t weights;  // numbers in `weights` and in `weight_sums`
  void (*prepare_down)(const float* w, void* weights);
  void (*prepare_up)(const float* w, void* weights);
  // from the big map to the small one and back, tiles [first, last)
  void (*down)(const Job&, int64_t first, int64_t last);
  void (*up)(const Job&, int64_t first, int64_t last);
  // gradients of a convolution (`small` is the gradient) and of a transposed one (`big` is)
  void (*down_backward)(const Job&, int64_t first, int64_t last);
  void (*up_backward)(const Job&, int64_t first, int64_t last);
  // rows [first, last) of the weights' gradient, from `parts` sums of products
  void (*weight_gradient)(const float* sums, int64_t parts, float* grad, int first, int last);
};

inline thread_local Scratch maps_scratch;  // of what goes from layer to layer

}  // namespace pyvae::convolution
