// CUDA kernel of nm_mask: each score is compared with its whole group, in shared memory.
#pragma once

#include "cuda/simt.h"
#include "pruning/nm_mask/nm_mask_cuda.h"

namespace mfac::cuda {

constexpr int kMaskThreads = 512;
constexpr int kMaskItems = kMaskEntries / kMaskThreads;

// Integers in the order of the scores, which no GPU is slow to compare: -0 is 0, and all NaN are
// one, above infinity. One more than a key is still an integer.
MFAC_DEVICE int32_t order_key(float x) {
  if (x != x) return INT32_MAX - 1;
  const float positive_zero = x + 0.0f;
  int32_t bits;
  __builtin_memcpy(&bits, &positive_zero, sizeof(bits));
  return bits ^ (bits >> 31 & INT32_MAX);
}

MFAC_DEVICE int64_t order_key(double x) {
  if (x != x) return INT64_MAX - 1;
  const double positive_zero = x + 0.0;
  int64_t bits;
  __builtin_memcpy(&bits, &positive_zero, sizeof(bits));
  return bits ^ (bits >> 63 & INT64_MAX);
}

// mask[e] <- whether all but `keep` of the scores of e's group are below that of e.
// A block owns slabs, or columns of one, 2048 entries at most; a thread every 512th of them, so
// that neighbours read and write neighbours; shared memory: the scores as integers of their order.
template <typename T>
MFAC_KERNEL(kMaskThreads)
nm_mask_kernel(const T* __restrict__ scores, int64_t outer, int64_t axis, int64_t inner, int keep, int group,
               int columns, int slabs, int64_t column_blocks, bool* __restrict__ mask) {
  using Key = decltype(order_key(T()));
  MFAC_SHARED(Key, keys, [kMaskEntries]);
  const int64_t groups = (axis + group - 1) / group, slab = blockIdx.x / column_blocks * slabs;
  const int64_t column = blockIdx.x % column_blocks * columns;
  const int in_slab = group * columns;

  int64_t at[kMaskItems];  // of an entry in memory; -1: there is none
  int first[kMaskItems], rows[kMaskItems];
#pragma unroll
  for (int q = 0; q < kMaskItems; ++q) {
    const int e = q * kMaskThreads + int(threadIdx.x), s = e / in_slab;
    const int row = e % in_slab / columns, j = e % in_slab % columns;
    const int64_t place = (slab + s) % groups * group, index = (slab + s) / groups;
    rows[q] = int(axis - place < group ? axis - place : group);
    first[q] = s * in_slab + j;
    at[q] = -1;
    if (s >= slabs || index >= outer || row >= rows[q] || column + j >= inner) continue;
    at[q] = (index * axis + place + row) * inner + column + j;
    keys[e] = order_key(scores[at[q]]);
  }
  __syncthreads();
#pragma unroll
  for (int q = 0; q < kMaskItems; ++q) {
    if (at[q] < 0) continue;
    const int e = q * kMaskThreads + int(threadIdx.x);
    const Key key = keys[e];
    int below = 0;
    for (int r = 0, other = first[q]; r < rows[q]; ++r, other += columns)
      below += keys[other] < key + (other < e);  // of equal ones the later is the higher
    mask[at[q]] = below >= rows[q] - keep;
  }
}

}  // namespace mfac::cuda
