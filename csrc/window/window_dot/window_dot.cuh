// CUDA kernels of window_dot: k = G g in float64.
#pragma once

#include "cuda/packet.cuh"
#include "cuda/reduce.cuh"
#include "window/window_dot/window_dot_cuda.h"

namespace mfac::cuda {

// sum[r][i] += Σ_e row_r[e]·v_i[e] over `width` columns from `column` on, for the rows of a block.
// int8 rows carry the scale of that tile of columns.
template <int width, int rows, int vectors, typename T, typename V>
MFAC_DEVICE void add_dots(const T* __restrict__ window, const float* __restrict__ scales, int64_t stride, int64_t tiles,
                          int count, const V* __restrict__ v, int64_t vector_stride, int vector_count, bool packed,
                          int64_t column, double (&sum)[rows * vectors]) {
  T x[rows][width];
#pragma unroll
  for (int r = 0; r < rows; ++r)
    if (r < count) load<width>(window + r * stride + column, x[r]);
#pragma unroll
  for (int i = 0; i < vectors; ++i) {
    if (i >= vector_count) break;
    V y[width];
    load_any<width>(v + i * vector_stride + column, packed, y);
#pragma unroll
    for (int r = 0; r < rows; ++r) {
      if (r >= count) break;
      double dot = 0;
#pragma unroll
      for (int e = 0; e < width; ++e) dot += double(widen(x[r][e])) * double(y[e]);
      if constexpr (std::is_same_v<T, int8_t>) dot *= scales[r * tiles + column / kScaleColumns];
      sum[r * vectors + i] += dot;
    }
  }
}

// partial[chunk, i, r] <- Σ_j window[r, j]·vectors[i, j] over the columns of the chunk.
// A block owns `rows` rows, `vectors` vectors and a chunk of columns, neighbours the same piece of
// the window and other vectors; a thread every 256th packet of the chunk, of all these rows; shared
// memory: a sum for each warp, row and vector.
template <typename T, typename V, int width, int rows, int vectors>
MFAC_KERNEL(kDotThreads, 1)
window_dot_kernel(const T* __restrict__ window, const float* __restrict__ scales, int64_t stride, int64_t m, int64_t d,
                  const V* __restrict__ v, int64_t vector_stride, int64_t k, int64_t chunk,
                  double* __restrict__ partial) {
  const int64_t row_groups = ceil_div(m, rows), vector_groups = ceil_div(k, vectors);
  const int64_t tiles = ceil_div(d, kScaleColumns);
  const int64_t vector = blockIdx.x % vector_groups * vectors, piece = blockIdx.x / vector_groups;
  const int64_t row = piece % row_groups * rows, part = piece / row_groups;
  const int count = int(m - row < rows ? m - row : rows);
  const int vector_count = int(k - vector < vectors ? k - vector : vectors);
  const int64_t begin = part * chunk, end = begin + chunk < d ? begin + chunk : d;
  const int64_t packed_end = begin + (end - begin) / width * width;
  const bool packed = is_aligned(v, k == 1 ? 0 : vector_stride);
  window += row * stride;
  v += vector * vector_stride;
  if (scales != nullptr) scales += row * tiles;

  double sum[rows * vectors] = {};
  for (int64_t j = begin + int64_t(threadIdx.x) * width; j < packed_end; j += kDotThreads * width)
    add_dots<width, rows, vectors>(window, scales, stride, tiles, count, v, vector_stride, vector_count, packed, j,
                                   sum);
  if (packed_end + threadIdx.x < end)
    add_dots<1, rows, vectors>(window, scales, stride, tiles, count, v, vector_stride, vector_count, packed,
                               packed_end + threadIdx.x, sum);

  const double total = block_sums<kDotThreads>(sum);
  const int r = threadIdx.x / vectors, i = threadIdx.x % vectors;
  if (r < count && i < vector_count) partial[(part * k + vector + i) * m + row + r] = total;
}

// partial[chunk, r] <- Σ_j window[r, j]² over the columns of the chunk.
// A block owns 8 rows and a chunk of columns; a thread every 256th packet of it; shared memory: a
// sum for each warp and row.
template <typename T, int width, int rows>
MFAC_KERNEL(kDotThreads)
squared_norms_kernel(const T* __restrict__ window, int64_t stride, int64_t m, int64_t d, int64_t chunk,
                     double* __restrict__ partial) {
  const int64_t row_groups = ceil_div(m, rows);
  const int64_t row = blockIdx.x % row_groups * rows, part = blockIdx.x / row_groups;
  const int count = int(m - row < rows ? m - row : rows);
  const int64_t begin = part * chunk, end = begin + chunk < d ? begin + chunk : d;
  const int64_t packed_end = begin + (end - begin) / width * width;
  window += row * stride;

  double sum[rows] = {};
  const auto add = [&](int64_t column, auto packet) {
    constexpr int kWidth = decltype(packet)::value;
    T x[rows][kWidth];
#pragma unroll
    for (int r = 0; r < rows; ++r)
      if (r < count) load<kWidth>(window + r * stride + column, x[r]);
#pragma unroll
    for (int r = 0; r < rows; ++r) {
      if (r >= count) break;
#pragma unroll
      for (int e = 0; e < kWidth; ++e) sum[r] += double(x[r][e]) * double(x[r][e]);
    }
  };
  for (int64_t j = begin + int64_t(threadIdx.x) * width; j < packed_end; j += kDotThreads * width)
    add(j, std::integral_constant<int, width>());
  if (packed_end + threadIdx.x < end) add(packed_end + threadIdx.x, std::integral_constant<int, 1>());

  const double total = block_sums<kDotThreads>(sum);
  if (threadIdx.x < count) partial[part * m + row + threadIdx.x] = total;
}

}  // namespace mfac::cuda
