// Device code alone, free of torch and of CUDA's headers, so that a host compiler can run it too.
#pragma once
#include "../common/permutation.h"

namespace {

using namespace pyvae;

// A block for each (member, dimension): its words lie in shared memory, and every row counts those before it.
template <class T>
__global__ void __launch_bounds__(256)
    permute_kernel(const T* __restrict__ first, const T* __restrict__ z, const int64_t* __restrict__ key,
                   T* __restrict__ out, int64_t* __restrict__ order, int batch, int64_t columns, int64_t sharing,
                   uint32_t stream) {
  extern __shared__ uint32_t words[];
  const int64_t member = blockIdx.x / columns, column = blockIdx.x % columns;
  const int64_t* own_key = key + 2 * (member / sharing);
  const uint64_t seed = static_cast<uint64_t>(own_key[0]), step = static_cast<uint64_t>(own_key[1]);
  for (int i = threadIdx.x; i < batch; i += blockDim.x) {
    words[i] = permutation_word(seed, step, stream, member % sharing * batch + i, column, columns);
  }
  __syncthreads();
  const int64_t at = member * batch * columns + column;
  T* to = out + (first ? 2 : 1) * member * batch * columns + column;
  for (int i = threadIdx.x; i < batch; i += blockDim.x) {
    const uint32_t word = words[i];
    int rank = 0;
    for (int j = 0; j < batch; ++j) rank += stands_before(words[j], j, word, i);
    if (first) to[i * columns] = first[at + i * columns];
    to[((first ? batch : 0) + rank) * columns] = z[at + i * columns];
    order[at + rank * columns] = i;
  }
}

}  // namespace
