// window_combine_(out, window, coefficients, alpha, beta): out <- alpha out + beta coefficients G,
// the pass over the window that every product with F⁻¹ ends with. A thread has a range of tiles of
// columns, and goes over all rows and all vectors of a piece of it at a time, as wide as the kernel
// takes. window_descend_ moves weights along what it computes, while that is in cache.
#include "common/adapter.h"
#include "window/window_combine/descent_checks.h"
#include "window/window_combine/window_combine_checks.h"

namespace mfac {
namespace {

// Calls f(i, column, cols, combine) for all pieces of columns of all vectors: combine(alpha, beta,
// out) is out[0, cols) <- alpha·out + beta·(coefficients of vector i)·G over the columns from
// `column` on.
template <typename T, typename V, typename F>
void for_combinations(const Tensor& window_tensor, const std::optional<Tensor>& scales_tensor,
                      const Tensor& coefficients_tensor, const F& f) {
  const T* window = elements<T>(window_tensor);
  const float* scales = elements_of(scales_tensor);
  const double* coefficients = elements<double>(coefficients_tensor);
  const int64_t m = window_tensor.size(0), d = window_tensor.size(1), stride = window_tensor.stride(0);
  const int64_t k = coefficients_tensor.size(0), tiles = scale_count(d);
  parallel_tasks(tiles, m * k * kScaleColumns, [&](int64_t begin, int64_t end) {
    const int64_t pieces = ceil_div(end - begin, kCombineColumns / kScaleColumns);
    const int64_t width = ceil_div(end - begin, pieces);
    std::vector<double> scaled(scales == nullptr ? 0 : m * width);
    Buffer<double> scratch(kCombineScratch<T>);
    for (int64_t first = begin; first < end; first += width) {
      const int64_t last = std::min(first + width, end), column = first * kScaleColumns;
      const int64_t cols = std::min(last * kScaleColumns, d) - column;
      for (int64_t i = 0; i < k; ++i) {
        const double* c = coefficients + i * m;
        if (scales != nullptr) {
          for (int64_t t = first; t < last; ++t)
            for (int64_t r = 0; r < m; ++r) scaled[(t - first) * m + r] = c[r] * double(scales[r * tiles + t]);
          c = scaled.data();
        }
        f(i, column, cols, [&](double alpha, double beta, V* out) {
          kernels<WindowCombineKernels<T, V>>().combine(window + column, stride, m, cols, c,
                                                        scales == nullptr ? kCombineColumns : kScaleColumns, alpha,
                                                        beta, out, scratch.data());
        });
      }
    }
  });
}

void window_combine_cpu(Tensor out, const Tensor& window, const Tensor& coefficients, double alpha, double beta,
                        std::optional<Tensor> scales) {
  check_window_combine(out, window, coefficients, scales);
  dispatch_window(window, [&](auto* window_type) {
    dispatch_float(out, [&](auto* out_type) {
      using T = element_t<decltype(window_type)>;
      using V = element_t<decltype(out_type)>;
      V* const first = mutable_elements<V>(out);
      for_combinations<T, V>(window, scales, coefficients,
                             [&](int64_t i, int64_t column, int64_t, const auto& combine) {
                               combine(alpha, beta, first + i * out.stride(0) + column);
                             });
    });
  });
}

void window_descend_cpu(const std::vector<Tensor>& parameters, std::optional<Tensor> average, const Tensor& window,
                        const Tensor& coefficients, double beta, double momentum, const std::vector<int64_t>& columns,
                        const std::vector<double>& rates, const std::vector<double>& decays,
                        std::optional<Tensor> scales) {
  const DescentArguments arguments{parameters, average, coefficients, beta, momentum, columns, rates, decays};
  check_window("window_descend_", window, scales);
  check_descent("window_descend_", arguments, window.size(0), window.size(1));
  dispatch_window(window, [&](auto* window_type) {
    dispatch_float(parameters[0], [&](auto* weight_type) {
      using T = element_t<decltype(window_type)>;
      using V = element_t<decltype(weight_type)>;
      const DescentPieces<V> descent = pieces_of<V>(arguments);
      for_combinations<T, V>(window, scales, coefficients,
                             [&](int64_t, int64_t column, int64_t cols, const auto& combine) {
                               std::vector<V> unaveraged(descent.average == nullptr ? cols : 0);
                               V* const move = unaveraged.empty() ? descent.average + column : unaveraged.data();
                               if (descent.average == nullptr) combine(0, beta, move);
                               else combine(momentum, (1 - momentum) * beta, move);
                               descend(descent.pieces, column, cols, move);
                             });
    });
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(mfac, CPU, m) {
  m.impl("window_combine_", TORCH_BOX(&window_combine_cpu));
  m.impl("window_descend_", TORCH_BOX(&window_descend_cpu));
}

}  // namespace mfac
