// CUDA kernel of obs_saliency: w²/(2 (F⁻¹)_pp) in float64.
#pragma once

#include "cuda/packet.cuh"
#include "pruning/obs_saliency/obs_saliency_cuda.h"

namespace mfac::cuda {

constexpr int kSaliencyThreads = 256;
constexpr int kSaliencyWidth = 4;  // entries of a thread: whole packets of float and of double

template <int width, typename T, typename D>
MFAC_DEVICE void write_saliencies(const T* __restrict__ weights, const D* __restrict__ diagonal, int64_t p,
                                  double* __restrict__ out) {
  T w[width];
  D inverse[width];
  double rho[width];
  load<width>(weights + p, w);
  load<width>(diagonal + p, inverse);
#pragma unroll
  for (int e = 0; e < width; ++e) rho[e] = double(w[e]) * double(w[e]) / (2 * double(inverse[e]));
  store<width>(out + p, rho);
}

// out[p] <- weights[p]²/(2 diagonal[p]).
// A block owns 256 times `width` weights; a thread `width` of them, in packets, or what is left;
// shared memory: none.
template <typename T, typename D, int width>
MFAC_KERNEL(kSaliencyThreads)
obs_saliency_kernel(const T* __restrict__ weights, const D* __restrict__ diagonal, int64_t d,
                    double* __restrict__ out) {
  const int64_t p = (int64_t(blockIdx.x) * kSaliencyThreads + threadIdx.x) * width;
  if (p + width <= d) return write_saliencies<width>(weights, diagonal, p, out);
  for (int64_t q = p; q < d; ++q) write_saliencies<1>(weights, diagonal, q, out);
}

}  // namespace mfac::cuda
