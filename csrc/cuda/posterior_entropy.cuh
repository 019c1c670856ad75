// Device code alone, free of torch and of CUDA's headers, so that a host compiler can run it too.
#pragma once
#include "../common/quadrature.h"

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

struct Classes {
  int factors, total;
  int offset[kMostFactors];
  int64_t size[kMostFactors], stride[kMostFactors];  // stride in outer, of the factors there
};

inline Plan plan_of(const int64_t* factor_sizes, int factors, int64_t rows, int64_t nodes, Classes& classes) {
  Plan plan{};
  plan.rows = rows;
  plan.nodes = static_cast<int>(nodes);
  plan.outer = 1;
  plan.middle = factors > 1 ? static_cast<int>(factor_sizes[factors - 2]) : 1;
  plan.inner = static_cast<int>(factor_sizes[factors - 1]);
  classes.factors = factors;
  for (int f = factors - 1; f >= 0; --f) {
    classes.size[f] = factor_sizes[f];
    classes.stride[f] = plan.outer;
    if (f < factors - 2) plan.outer *= static_cast<int>(factor_sizes[f]);
  }
  classes.total = 0;
  for (int f = 0; f < factors; ++f) {
    classes.offset[f] = classes.total;
    classes.total += static_cast<int>(factor_sizes[f]);
  }
  plan.outer_of_slice = plan.middle < kRowsOfSlice ? kRowsOfSlice / plan.middle : 1;
  plan.slices = (plan.outer + plan.outer_of_slice - 1) / plan.outer_of_slice;
  plan.pieces = (plan.inner + kPiece - 1) / kPiece;
  return plan;
}

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

}  // namespace
