// CUDA kernel of window_combine_: u = Gᵀc in float64, with what it is added to read and written
// once.
#pragma once

#include "cuda/packet.cuh"
#include "cuda/reduce.cuh"
#include "window/window_combine/window_combine_cuda.h"

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

// output(i, j, Σ_r coefficients[i, r]·window[r, j]) for every output i and column j from block
// `first_block` on.
// A block owns 32 packets of columns and `vectors` of the outputs; a thread one packet of every
// eighth row, and then columns of the output; shared memory: the sums of every warp for one output.
template <typename T, int width, int vectors, typename Output>
MFAC_KERNEL(kCombineThreads, 1)
window_combine_kernel(const T* __restrict__ window, const float* __restrict__ scales, int64_t stride, int64_t m,
                      int64_t d, const double* __restrict__ coefficients, int64_t k, int64_t first_block,
                      const MFAC_GRID_CONSTANT Output output) {
  constexpr int kColumns = kWarp * width;
  MFAC_SHARED(double, of_warp, [kCombineWarps][kColumns]);
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int64_t vector_groups = ceil_div(k, vectors);  // neighbours: the window comes from memory once for all of them
  const int64_t vector = blockIdx.x % vector_groups * vectors,
                begin = (first_block + blockIdx.x / vector_groups) * kColumns;
  const int64_t column = begin + int64_t(lane) * width, tiles = ceil_div(d, kScaleColumns);
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
    for (int j = threadIdx.x; j < kColumns && begin + j < d; j += kCombineThreads) {
      double total = 0;
#pragma unroll
      for (int w = 0; w < kCombineWarps; ++w) total += of_warp[w][j];
      output(vector + i, begin + j, total, false);
    }
    __syncthreads();
  }
}

// `blocks` blocks of columns from `first_block` on, for all k outputs.
template <typename T, int width, int vectors, typename Output>
int launch_combine(const T* window, const float* scales, int64_t stride, int64_t m, int64_t d,
                   const double* coefficients, int64_t k, int64_t first_block, int64_t blocks, const Output& output,
                   void* stream) {
  return MFAC_LAUNCH((window_combine_kernel<T, width, vectors, Output>), dim3(unsigned(blocks * ceil_div(k, vectors))),
                     dim3(kCombineThreads), stream, window, scales, stride, m, d, coefficients, k, first_block, output);
}

}  // namespace mfac::cuda
