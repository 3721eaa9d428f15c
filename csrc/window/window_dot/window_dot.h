// vectors Gᵀ in float64: the pass over the window that every product with F⁻¹ begins with. Shared
// by window_dot and window_push_.
//
// A task is eight rows by a chunk of columns; partial sums are added in the order of the chunks, so
// the result does not depend on the number of threads. All vectors meet a chunk of rows while it is
// in cache.
#pragma once

#include "common/adapter.h"

namespace mfac {

constexpr int64_t kDotRows = 8;
constexpr int64_t kDotColumns = 32768;  // at most
static_assert(kDotColumns % kScaleColumns == 0);

// Columns of a chunk, whole tiles of scales: about as many in each, and four chunks or a multiple,
// so that threads have about as much to do.
inline int64_t chunk_columns(int64_t d) {
  constexpr int64_t kShares = 4;
  const int64_t chunks = d <= kDotColumns ? 1 : ceil_div(d, kDotColumns * kShares) * kShares;
  return ceil_div(std::max<int64_t>(1, ceil_div(d, chunks)), kScaleColumns) * kScaleColumns;
}

// out [k, m] <- Σ over chunks of chunk_products(vector, row, rows, column, cols, out[rows])
template <typename F>
void for_each_chunk(int64_t m, int64_t d, int64_t k, double* out, const F& chunk_products) {
  const int64_t width = chunk_columns(d);
  const int64_t groups = ceil_div(m, kDotRows), chunks = std::max<int64_t>(1, ceil_div(d, width));
  std::vector<double> partial(chunks * k * m);  // [chunks, k, m]
  parallel_tasks(groups * chunks, kDotRows * std::min(d, width) * k, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t chunk = task / groups, row = task % groups * kDotRows, column = chunk * width;
      for (int64_t i = 0; i < k; ++i)
        chunk_products(i, row, std::min(kDotRows, m - row), column, std::min(width, d - column),
                       partial.data() + (chunk * k + i) * m + row);
    }
  });
  for (int64_t i = 0; i < k * m; ++i) {
    double sum = 0;
    for (int64_t chunk = 0; chunk < chunks; ++chunk) sum += partial[chunk * k * m + i];
    out[i] = sum;
  }
}

// `scales` is null but for int8.
template <typename T, typename V>
void window_products(const T* window, const float* scales, int64_t stride, int64_t m, int64_t d, const V* vectors,
                     int64_t vector_stride, int64_t k, double* out) {
  const auto dot = kernels<WindowDotKernels<T, V>>().dot;
  const int64_t tiles = scale_count(d);
  for_each_chunk(m, d, k, out, [&](int64_t i, int64_t row, int64_t rows, int64_t column, int64_t cols, double* sums) {
    const T* x = window + row * stride + column;
    const V* v = vectors + i * vector_stride + column;
    if (scales == nullptr) return dot(x, stride, rows, cols, v, sums);
    double of_tile[kDotRows];
    std::fill(sums, sums + rows, 0.0);
    for (int64_t j = 0; j < cols; j += kScaleColumns) {
      dot(x + j, stride, rows, std::min(kScaleColumns, cols - j), v + j, of_tile);
      for (int64_t r = 0; r < rows; ++r)
        sums[r] += double(scales[(row + r) * tiles + (column + j) / kScaleColumns]) * of_tile[r];
    }
  });
}

}  // namespace mfac
