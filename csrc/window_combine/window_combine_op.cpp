// window_combine_(out, window, coefficients, alpha, beta): out <- alpha out + beta coefficients G, the pass
// over the window that every product with F⁻¹ ends with. A task is a tile of columns, all of its rows and all vectors.
#include "adapter.h"

namespace mfac {
namespace {

template <typename T, typename V>
void window_combine(const T* window, int64_t stride, int64_t m, int64_t d, const double* coefficients, int64_t k,
                    double alpha, double beta, V* out, int64_t out_stride) {
  parallel_tasks(ceil_div(d, kCombineColumns), m * k * kCombineColumns, [&](int64_t begin, int64_t end) {
    for (int64_t tile = begin; tile < end; ++tile) {
      const int64_t column = tile * kCombineColumns, cols = std::min(kCombineColumns, d - column);
      for (int64_t i = 0; i < k; ++i)
        window_kernels<T, V>().combine(window + column, stride, m, cols, coefficients + i * m, alpha, beta,
                                       out + i * out_stride + column);
    }
  });
}

void window_combine_cpu(Tensor out, const Tensor& window, const Tensor& coefficients, double alpha, double beta) {
  check_rows("window_combine_", "out", out);
  check_rows("window_combine_", "window", window);
  check_dense_f64("window_combine_", "coefficients", coefficients);
  const int64_t m = window.size(0), d = window.size(1), k = out.size(0);
  check_size("window_combine_", "out", out.size(1), d);
  check_shape("window_combine_", "coefficients", coefficients, {k, m});
  STD_TORCH_CHECK(k <= 1 || out.stride(0) >= d,
                  "window_combine_: Parameter `out` should have rows that do not overlap.");
  dispatch_float(window, [&](auto* window_type) {
    dispatch_float(out, [&](auto* out_type) {
      using T = element_t<decltype(window_type)>;
      using V = element_t<decltype(out_type)>;
      window_combine(window.const_data_ptr<T>(), window.stride(0), m, d, coefficients.const_data_ptr<double>(), k,
                     alpha, beta, out.mutable_data_ptr<V>(), out.stride(0));
    });
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(mfac, CPU, m) { m.impl("window_combine_", TORCH_BOX(&window_combine_cpu)); }

}  // namespace mfac
