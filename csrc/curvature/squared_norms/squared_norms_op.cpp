// squared_norms(window) -> ‖g_i‖², [m] float64: one pass over the window, in window_dot's tasks.
// Not finite if and only if an entry is not, or if it overflows.
#include "window/window_dot/window_dot.h"

namespace mfac {
namespace {

Tensor squared_norms_cpu(const Tensor& window) {
  check_rows("squared_norms", "window", window);
  Tensor norms = empty_f64(window, {window.size(0)});
  dispatch_float(window, [&](auto* type) {
    using T = element_t<decltype(type)>;
    const T* from = elements<T>(window);
    const int64_t stride = window.stride(0);
    for_each_chunk(window.size(0), window.size(1), 1, norms.mutable_data_ptr<double>(),
                   [&](int64_t, int64_t row, int64_t rows, int64_t column, int64_t cols, double* sums) {
                     kernels<SquaredNormsKernels<T>>().squared_norms(from + row * stride + column, stride, rows, cols,
                                                                     sums);
                   });
  });
  return norms;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(mfac, CPU, m) { m.impl("squared_norms", TORCH_BOX(&squared_norms_cpu)); }

}  // namespace mfac
