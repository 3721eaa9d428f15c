// Sums that come out the same every time: lanes by shuffles, warps in order by way of shared
// memory, blocks in order by a second kernel. No floats are added by atomics.
#pragma once

#include "cuda/simt.h"

namespace mfac::cuda {

// The sum over the lanes, in lane 0.
template <typename T>
MFAC_DEVICE T warp_sum(T x) {
#pragma unroll
  for (int by = kWarp / 2; by > 0; by /= 2) x += __shfl_down_sync(kAllLanes, x, by);
  return x;
}

// The sum over the lanes, in every lane.
template <typename T>
MFAC_DEVICE T warp_sum_everywhere(T x) {
#pragma unroll
  for (int bits = kWarp / 2; bits > 0; bits /= 2) x += __shfl_xor_sync(kAllLanes, x, bits);
  return x;
}

template <typename T>
MFAC_DEVICE T warp_max_everywhere(T x) {
#pragma unroll
  for (int bits = kWarp / 2; bits > 0; bits /= 2) {
    const T other = __shfl_xor_sync(kAllLanes, x, bits);
    x = other > x ? other : x;
  }
  return x;
}

// Sums of `count` values over a block of `threads` threads; thread i < count returns the i-th.
// Shared memory: a value a warp and sum, free to be used again after the next barrier.
template <int threads, int count, typename T>
MFAC_DEVICE T block_sums(const T (&x)[count]) {
  static_assert(count <= threads);
  MFAC_SHARED(T, of_warp, [threads / kWarp][count]);
  const int thread = threadIdx.x;
#pragma unroll
  for (int i = 0; i < count; ++i) {
    const T sum = warp_sum(x[i]);
    if (thread % kWarp == 0) of_warp[thread / kWarp][i] = sum;
  }
  __syncthreads();
  T total = 0;
  if (thread < count) {
#pragma unroll
    for (int warp = 0; warp < threads / kWarp; ++warp) total += of_warp[warp][thread];
  }
  return total;
}

template <int threads, typename T>
MFAC_DEVICE T block_sum(T x) {
  const T values[1] = {x};
  return block_sums<threads>(values);
}

// x <- its sums over the block, in every thread. Shared memory as above and a value a sum; may be
// called repeatedly.
template <int threads, int count, typename T>
MFAC_DEVICE void block_sums_everywhere(T (&x)[count]) {
  MFAC_SHARED(T, totals, [count]);
  const T total = block_sums<threads>(x);
  if (threadIdx.x < count) totals[threadIdx.x] = total;
  __syncthreads();
#pragma unroll
  for (int i = 0; i < count; ++i) x[i] = totals[i];
}

// The largest of a value over the block, in every thread; no NaN comes out of the maximum. Shared
// memory: a value a warp.
template <int threads>
MFAC_DEVICE double block_max(double x) {
  MFAC_SHARED(double, of_warp, [threads / kWarp]);
  const double largest = warp_max_everywhere(x);
  if (threadIdx.x % kWarp == 0) of_warp[threadIdx.x / kWarp] = largest;
  __syncthreads();
  double total = 0;
#pragma unroll
  for (int warp = 0; warp < threads / kWarp; ++warp) total = of_warp[warp] > total ? of_warp[warp] : total;
  return total;
}

__host__ __device__ inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

constexpr int kSumWarps = 16;

// Σ_p partial[p, i] in the first warp, a lane a sum: often there are few sums, of more parts than
// one thread should wait for. A warp takes a share of the parts, in order. Shared memory: a sum for
// each warp and lane.
template <int warps>
MFAC_DEVICE double sum_of_parts(const double* __restrict__ partial, int64_t parts, int64_t count, int64_t i,
                                bool is_wanted) {
  MFAC_SHARED(double, of_warp, [warps][kWarp]);
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int64_t share = ceil_div(parts, warps);
  const int64_t begin = warp * share, end = begin + share < parts ? begin + share : parts;
  double sum = 0;
  if (is_wanted) {
#pragma unroll 8
    for (int64_t p = begin; p < end; ++p) sum += partial[p * count + i];
  }
  of_warp[warp][lane] = sum;
  __syncthreads();
  double total = 0;
  if (warp == 0) {
#pragma unroll
    for (int w = 0; w < warps; ++w) total += of_warp[w][lane];
  }
  return total;
}

// out[i] <- Σ_p partial[p, i], or NaN where `refused` says so.
// A block owns 32 sums; a warp a share of the parts, a thread one of the 32 sums; shared memory: a
// sum for each warp and lane.
template <int warps>
MFAC_KERNEL(warps* kWarp)
sum_parts_kernel(const double* __restrict__ partial, int64_t parts, int64_t count, const int* refused,
                 double* __restrict__ out) {
  const int64_t i = int64_t(blockIdx.x) * kWarp + threadIdx.x % kWarp;
  const double total = sum_of_parts<warps>(partial, parts, count, i, i < count);
  if (threadIdx.x < kWarp && i < count) out[i] = refused != nullptr && *refused ? nan("") : total;
}

inline int sum_parts(const double* partial, int64_t parts, int64_t count, const int* refused, double* out,
                     void* stream) {
  if (count == 0) return 0;
  return MFAC_LAUNCH((sum_parts_kernel<kSumWarps>), dim3(unsigned(ceil_div(count, kWarp))), dim3(kSumWarps * kWarp),
                     stream, partial, parts, count, refused, out);
}

}  // namespace mfac::cuda
