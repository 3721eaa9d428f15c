// ‖g_i‖², [m] float64, in window_dot's tasks. Shared by squared_norms and gram.
#pragma once

#include "window/window_dot/window_dot.h"

namespace mfac {

template <typename T>
void squared_norms(const T* window, int64_t stride, int64_t m, int64_t d, double* out) {
  for_each_chunk(m, d, 1, out, [&](int64_t, int64_t row, int64_t rows, int64_t column, int64_t cols, double* sums) {
    const T* x = window + row * stride + column;
    if constexpr (std::is_same_v<T, float>) kernels().squared_norms_f32(x, stride, rows, cols, sums);
    else kernels().squared_norms_f64(x, stride, rows, cols, sums);
  });
}

}  // namespace mfac
