#include <algorithm>
#include <vector>

#include "../common/quadrature.h"
#include "launch.h"

namespace {

using namespace pyvae;

constexpr int kNodes = 3;       // of a thread: fewer would wait for the loads of the Gaussians from shared memory
constexpr int kMostThreads = 192;
constexpr int kPiece = 32;      // classes of the last factor whose sums a thread keeps in registers
constexpr int kStaged = 256;    // Gaussians in shared memory
constexpr int kRowsOfSlice = 1024;  // terms of a float32 sum
constexpr int kMostFactors = 16;

// The grid as [outer, middle, inner]: the last factor, the one before it, all others. A block takes one latent, a tile
// of nodes, a slice of outer, and a piece of inner.
struct Plan {
  int64_t rows;
  int nodes, outer, middle, inner, slices, pieces, outer_of_slice;
};

// each [D, slices, inner, nodes], second [D, slices, pieces, middle, nodes] (zeros), rest [D, pieces, outer, nodes]
template <int kInner>
__global__ void __launch_bounds__(kMostThreads, 2)
    density_kernel(const float* __restrict__ mu, const float* __restrict__ logvar, const double* __restrict__ low,
                   const double* __restrict__ step, float* __restrict__ each, float* __restrict__ second,
                   float* __restrict__ rest, Plan plan) {
  __shared__ Gaussian staged[kStaged];
  constexpr int kRuns = kStaged / kInner;
  // 32 bits each: registers are short
  const int d = blockIdx.y, piece = blockIdx.x % plan.pieces, slice = blockIdx.x / plan.pieces % plan.slices;
  const int first_node = blockIdx.x / (plan.pieces * plan.slices) * (kNodes * blockDim.x) + threadIdx.x;
  const int first_inner = piece * kPiece, classes = min(kInner, plan.inner - first_inner);
  float z[kNodes], of_inner[kInner][kNodes];
#pragma unroll
  for (int k = 0; k < kNodes; ++k) {
    z[k] = static_cast<float>(low[d] + static_cast<double>(first_node + k * blockDim.x) * step[d]);
#pragma unroll
    for (int y = 0; y < kInner; ++y) of_inner[y][k] = 0.0f;
  }
  const int64_t block = (static_cast<int64_t>(d) * plan.slices + slice) * plan.pieces + piece;
  float* of_middle = second + block * plan.middle * plan.nodes + first_node;
  int held = 0;  // how many of its nodes are nodes of the grid
#pragma unroll
  for (int k = 0; k < kNodes; ++k) held += first_node + k * blockDim.x < plan.nodes;
  const int last = min(plan.outer, (slice + 1) * plan.outer_of_slice);
  for (int o = slice * plan.outer_of_slice; o < last; ++o) {
    float of_outer[kNodes] = {};
    for (int start = 0; start < plan.middle; start += kRuns) {
      const int runs = min(kRuns, plan.middle - start);
      __syncthreads();
      // unrolled, these loops leave no registers for the sums
#pragma unroll 1
      for (int i = threadIdx.x; i < runs * kInner; i += blockDim.x) {
        const int64_t run = static_cast<int64_t>(o) * plan.middle + start + i / kInner;
        const int64_t row = d * plan.rows + run * plan.inner + first_inner;
        const int y = i % kInner;
        // classes that are not there weigh nothing
        staged[i] = y < classes ? gaussian(mu[row + y], logvar[row + y]) : Gaussian{0.0f, 0.0f, -1e30f, 0.0f};
      }
      __syncthreads();
#pragma unroll 1
      for (int run = 0; run < runs; ++run) {
        float of_run[kNodes] = {};
#pragma unroll
        for (int y = 0; y < kInner; ++y) {
          const Gaussian g = staged[run * kInner + y];
#pragma unroll
          for (int k = 0; k < kNodes; ++k) {
            const float p = density(g, z[k]);
            of_inner[y][k] += p;
            of_run[k] += p;
          }
        }
        float* sums = of_middle + static_cast<int64_t>(start + run) * plan.nodes;
#pragma unroll
        for (int k = 0; k < kNodes; ++k) {
          if (k < held) sums[k * blockDim.x] += of_run[k];
          of_outer[k] += of_run[k];
        }
      }
    }
#pragma unroll
    for (int k = 0; k < kNodes; ++k) {
      const int64_t at = ((static_cast<int64_t>(d) * plan.pieces + piece) * plan.outer + o) * plan.nodes + first_node;
      if (k < held) rest[at + k * blockDim.x] = of_outer[k];
    }
  }
#pragma unroll
  for (int y = 0; y < kInner; ++y) {
#pragma unroll
    for (int k = 0; k < kNodes; ++k) {
      const int64_t row = (static_cast<int64_t>(d) * plan.slices + slice) * plan.inner + first_inner + y;
      const int64_t at = row * plan.nodes + first_node;
      if (y < classes && k < held) each[at + k * blockDim.x] = of_inner[y][k];
    }
  }
}

struct Classes {
  int factors, total;
  int offset[kMostFactors];
  int64_t size[kMostFactors], stride[kMostFactors];  // stride in outer, of the factors there
};

// Partial sums to densities, in float64 and in a fixed order: a thread for each (latent, class, node).
__global__ void __launch_bounds__(256)
    collect_kernel(const float* __restrict__ each, const float* __restrict__ second, const float* __restrict__ rest,
                   double* __restrict__ density, int64_t columns, Plan plan, Classes classes) {
  const int64_t i = blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x;
  if (i >= columns * classes.total * plan.nodes) return;
  const int64_t node = i % plan.nodes, d = i / plan.nodes / classes.total;
  const int of_all = static_cast<int>(i / plan.nodes % classes.total);
  int f = classes.factors - 1;
  while (of_all < classes.offset[f]) --f;
  const int64_t c = of_all - classes.offset[f], parts = static_cast<int64_t>(plan.slices) * plan.pieces;
  double sum = 0.0;
  if (f == classes.factors - 1) {
    for (int64_t s = 0; s < plan.slices; ++s) sum += each[((d * plan.slices + s) * plan.inner + c) * plan.nodes + node];
  } else if (f == classes.factors - 2) {
    for (int64_t s = 0; s < parts; ++s) sum += second[((d * parts + s) * plan.middle + c) * plan.nodes + node];
  } else {
    const int64_t stride = classes.stride[f], period = stride * classes.size[f];
    for (int64_t p = 0; p < plan.pieces; ++p) {
      for (int64_t o = c * stride; o < plan.outer; o += period) {
        for (int64_t low = 0; low < stride; ++low) {
          sum += rest[((d * plan.pieces + p) * plan.outer + o + low) * plan.nodes + node];
        }
      }
    }
  }
  density[i] = sum * (static_cast<double>(classes.size[f]) / static_cast<double>(plan.rows));
}

Tensor posterior_density(const Tensor& given_mu, const Tensor& given_logvar, const Tensor& low, const Tensor& step,
                         std::vector<int64_t> factor_sizes, int64_t nodes) {
  check(given_mu, "mu", ScalarType::Float, 2);
  check(given_logvar, "logvar", ScalarType::Float, 2);
  check_same_shape(given_logvar, "logvar", given_mu);
  for (const Tensor* x : {&low, &step}) {
    check(*x, "low, step", ScalarType::Double, 1);
    STD_TORCH_CHECK(x->size(0) == given_mu.size(0) && x->is_contiguous(), "low, step: expected [D]");
  }
  const torch::stable::accelerator::DeviceGuard guard(given_mu.get_device_index());
  const Tensor mu = dense(given_mu), logvar = dense(given_logvar);
  const int64_t columns = mu.size(0);
  const int count = static_cast<int>(factor_sizes.size());
  STD_TORCH_CHECK(count >= 1 && count <= kMostFactors, "factor_sizes: 1 to ", kMostFactors, " factors");
  Classes classes{count, 0, {}, {}, {}};
  STD_TORCH_CHECK(mu.size(1) < (int64_t(1) << 31) && nodes < (1 << 24), "mu, nodes: too many");
  Plan plan{};
  plan.rows = mu.size(1);
  plan.nodes = static_cast<int>(nodes);
  plan.outer = 1;
  plan.middle = count > 1 ? static_cast<int>(factor_sizes[count - 2]) : 1;
  plan.inner = static_cast<int>(factor_sizes[count - 1]);
  for (int f = count - 1; f >= 0; --f) {
    classes.size[f] = factor_sizes[f];
    classes.stride[f] = plan.outer;
    if (f < count - 2) plan.outer *= static_cast<int>(factor_sizes[f]);
  }
  for (int f = 0; f < count; ++f) {
    classes.offset[f] = classes.total;
    classes.total += static_cast<int>(factor_sizes[f]);
  }
  STD_TORCH_CHECK(static_cast<int64_t>(plan.outer) * plan.middle * plan.inner == plan.rows && plan.rows > 0, "mu: not one row for each point");
  plan.outer_of_slice = std::max(1, kRowsOfSlice / plan.middle);
  plan.slices = (plan.outer + plan.outer_of_slice - 1) / plan.outer_of_slice;
  plan.pieces = (plan.inner + kPiece - 1) / kPiece;
  const int64_t tiles = (nodes + kNodes * kMostThreads - 1) / (kNodes * kMostThreads);
  const int64_t of_tile = (nodes + tiles - 1) / tiles;
  const int threads = static_cast<int>(((of_tile + kNodes - 1) / kNodes + 31) / 32 * 32);
  const auto f32 = ScalarType::Float;
  Tensor each = torch::stable::new_empty(mu, {columns, plan.slices, plan.inner, nodes}, f32);
  Tensor second = torch::stable::new_zeros(mu, {columns, plan.slices, plan.pieces, plan.middle, nodes}, f32);
  Tensor rest = torch::stable::new_empty(mu, {columns, plan.pieces, plan.outer, nodes}, f32);
  Tensor density = torch::stable::new_empty(mu, {columns, classes.total, nodes}, ScalarType::Double);
  const auto kernel = plan.inner <= 4    ? density_kernel<4>
                      : plan.inner <= 8  ? density_kernel<8>
                      : plan.inner <= 16 ? density_kernel<16>
                                         : density_kernel<kPiece>;
  const dim3 grid(static_cast<unsigned>(tiles * plan.slices * plan.pieces), static_cast<unsigned>(columns));
  kernel<<<grid, threads, 0, stream_of(mu)>>>(mu.const_data_ptr<float>(), logvar.const_data_ptr<float>(),
                                              low.const_data_ptr<double>(), step.const_data_ptr<double>(),
                                              each.mutable_data_ptr<float>(), second.mutable_data_ptr<float>(),
                                              rest.mutable_data_ptr<float>(), plan);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  const int64_t all = columns * classes.total * nodes;
  collect_kernel<<<static_cast<unsigned>((all + 255) / 256), 256, 0, stream_of(mu)>>>(
      each.const_data_ptr<float>(), second.const_data_ptr<float>(), rest.const_data_ptr<float>(),
      density.mutable_data_ptr<double>(), columns, plan, classes);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  return density;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pyvae_native, CUDA, m) { m.impl("posterior_density", TORCH_BOX(&posterior_density)); }
