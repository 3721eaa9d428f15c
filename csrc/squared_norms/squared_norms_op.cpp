// squared_norms(window) -> ‖g_i‖², [m] float64: one pass over the window, in window_dot's tasks. Not finite if and only
// if an entry is not, or if it overflows.
#include "window_dot/window_dot.h"

namespace mfac {
namespace {

template <typename T>
void squared_norms(const T* window, int64_t stride, int64_t m, int64_t d, double* out) {
  for_each_chunk(m, d, 1, out, [&](int64_t, int64_t row, int64_t rows, int64_t column, int64_t cols, double* sums) {
    const T* x = window + row * stride + column;
    if constexpr (std::is_same_v<T, float>) kernels().squared_norms_f32(x, stride, rows, cols, sums);
    else kernels().squared_norms_f64(x, stride, rows, cols, sums);
  });
}

Tensor squared_norms_cpu(const Tensor& window) {
  check_rows("squared_norms", "window", window);
  Tensor norms = empty_f64(window, {window.size(0)});
  dispatch_float(window, [&](auto* type) {
    squared_norms(elements<element_t<decltype(type)>>(window), window.stride(0), window.size(0), window.size(1),
                  norms.mutable_data_ptr<double>());
  });
  return norms;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(mfac, CPU, m) { m.impl("squared_norms", TORCH_BOX(&squared_norms_cpu)); }

}  // namespace mfac
