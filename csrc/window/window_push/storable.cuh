// Whether a vector can be stored in a window, decided on the device: a kernel takes the magnitudes
// of its parts, and every block of the next one comes to the same decision from them.
#pragma once

#include "cuda/reduce.cuh"

namespace mfac::cuda {

constexpr int kPushThreads = 256;
constexpr double kLargestDouble = 0x1.fffffffffffffp1023;

// magnitudes[part] <- the largest |v_j|, magnitudes[parts + part] <- Σ v_j², over a part of v.
// A block owns a part, `width` columns; a thread every 256th of them; shared memory: two values a
// warp.
template <typename V>
MFAC_KERNEL(kPushThreads)
magnitude_kernel(const V* __restrict__ v, int64_t d, int64_t width, double* __restrict__ magnitudes) {
  const int64_t begin = blockIdx.x * width, end = begin + width < d ? begin + width : d;
  double largest = 0, squares = 0;
  for (int64_t j = begin + threadIdx.x; j < end; j += kPushThreads) {
    const double x = v[j], size = x < 0 ? -x : x;
    largest = size > largest ? size : largest;
    squares += x * x;
  }
  const double most = block_max<kPushThreads>(largest), sum = block_sum<kPushThreads>(squares);
  if (threadIdx.x == 0) {
    magnitudes[blockIdx.x] = most;
    magnitudes[gridDim.x + blockIdx.x] = sum;
  }
}

// Whether a vector with these magnitudes cannot be stored; the same in every thread. Shared memory:
// two values a warp and one.
template <int threads>
MFAC_DEVICE bool is_refused(const double* __restrict__ magnitudes, int parts, double limit) {
  MFAC_SHARED(bool, refused, [1]);
  double largest = 0, squares = 0;
  for (int part = threadIdx.x; part < parts; part += threads) {
    largest = magnitudes[part] > largest ? magnitudes[part] : largest;
    squares += magnitudes[parts + part];
  }
  const double most = block_max<threads>(largest), sum = block_sum<threads>(squares);
  if (threadIdx.x == 0) refused[0] = !(sum <= kLargestDouble && most <= limit);  // also where the sum is NaN
  __syncthreads();
  return refused[0];
}

}  // namespace mfac::cuda
