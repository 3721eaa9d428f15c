// CUDA kernel of window_combine_: u = Gᵀc in float64, with what it is added to read and written once.
#pragma once

#include "cuda/packet.cuh"
#include "window_combine/window_combine_cuda.h"

namespace mfac::cuda {

constexpr int kCombineThreads = 256;
constexpr int kCombineWarps = kCombineThreads / kWarp;
constexpr int kCombineRows = 4;  // loads of a thread that are on their way at once

// sum[i][e] += Σ_r coefficients[i, r]·window[r, column + e] over the rows first, first + step, ...
template <int width, int vectors, typename T>
MFAC_DEVICE void add_rows(const T* __restrict__ window, const float* __restrict__ scales, int64_t stride, int64_t m,
                          int64_t tiles, const double* __restrict__ coefficients, int vector_count, int64_t first,
                          int64_t step, int64_t column, double (&sum)[vectors][width]) {
  for (int64_t r = first; r < m; r += kCombineRows * step) {
    T x[kCombineRows][width];
#pragma unroll
    for (int q = 0; q < kCombineRows; ++q)
      if (r + q * step < m) load<width>(window + (r + q * step) * stride + column, x[q]);
#pragma unroll
    for (int q = 0; q < kCombineRows; ++q) {
      const int64_t row = r + q * step;
      if (row >= m) break;
#pragma unroll
      for (int i = 0; i < vectors; ++i) {
        if (i >= vector_count) break;
        double c = coefficients[i * m + row];
        if constexpr (std::is_same_v<T, int8_t>) c *= scales[row * tiles + column / kScaleColumns];
#pragma unroll
        for (int e = 0; e < width; ++e) sum[i][e] += c * double(widen(x[q][e]));
      }
    }
  }
}

// out[i, j] <- alpha·out[i, j] + beta·Σ_r coefficients[i, r]·window[r, j].
// A block owns 32 packets of columns and `vectors` of the outputs; a thread one packet of every eighth row, and then
// columns of out; shared memory: the sums of every warp for one output.
template <typename T, typename V, int width, int vectors>
MFAC_KERNEL(kCombineThreads, 1)
window_combine_kernel(const T* __restrict__ window, const float* __restrict__ scales, int64_t stride, int64_t m,
                      int64_t d, const double* __restrict__ coefficients, int64_t k, double alpha, double beta,
                      V* __restrict__ out, int64_t out_stride) {
  constexpr int kColumns = kWarp * width;
  MFAC_SHARED(double, of_warp, [kCombineWarps][kColumns]);
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int64_t begin = int64_t(blockIdx.x) * kColumns, column = begin + int64_t(lane) * width;
  const int64_t tiles = (d + kScaleColumns - 1) / kScaleColumns, vector = int64_t(blockIdx.y) * vectors;
  const int vector_count = int(k - vector < vectors ? k - vector : vectors);
  coefficients += vector * m;

  double sum[vectors][width] = {};
  if (column + width <= d) {
    add_rows<width, vectors>(window, scales, stride, m, tiles, coefficients, vector_count, warp, kCombineWarps, column,
                             sum);
  } else {
#pragma unroll
    for (int e = 0; e < width; ++e) {  // the last packet, cut off
      if (column + e >= d) break;
      double single[vectors][1] = {};
      add_rows<1, vectors>(window, scales, stride, m, tiles, coefficients, vector_count, warp, kCombineWarps,
                           column + e, single);
#pragma unroll
      for (int i = 0; i < vectors; ++i) sum[i][e] = single[i][0];
    }
  }

#pragma unroll
  for (int i = 0; i < vectors; ++i) {
    if (i >= vector_count) break;
#pragma unroll
    for (int e = 0; e < width; ++e) of_warp[warp][lane * width + e] = sum[i][e];
    __syncthreads();
    V* to = out + (vector + i) * out_stride + begin;
    for (int j = threadIdx.x; j < kColumns && begin + j < d; j += kCombineThreads) {
      double total = 0;
#pragma unroll
      for (int w = 0; w < kCombineWarps; ++w) total += of_warp[w][j];
      to[j] = V(alpha == 0 ? beta * total : alpha * double(to[j]) + beta * total);
    }
    __syncthreads();
  }
}

}  // namespace mfac::cuda
