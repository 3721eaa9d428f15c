// window_combine_(out, window, coefficients, alpha, beta): out <- alpha out + beta coefficients G, the pass
// over the window that every product with F⁻¹ ends with. A thread has a range of tiles of columns, and goes over all
// rows and all vectors of a piece of it at a time, as wide as the kernel takes.
#include "adapter.h"
#include "window_combine/window_combine_checks.h"

namespace mfac {
namespace {

template <typename T, typename V>
void window_combine(const T* window, const float* scales, int64_t stride, int64_t m, int64_t d,
                    const double* coefficients, int64_t k, double alpha, double beta, V* out, int64_t out_stride) {
  const int64_t tiles = scale_count(d);
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
        window_kernels<T, V>().combine(window + column, stride, m, cols, c,
                                       scales == nullptr ? kCombineColumns : kScaleColumns, alpha, beta,
                                       out + i * out_stride + column, scratch.data());
      }
    }
  });
}

void window_combine_cpu(Tensor out, const Tensor& window, const Tensor& coefficients, double alpha, double beta,
                        std::optional<Tensor> scales) {
  check_window_combine(out, window, coefficients, scales);
  const int64_t m = window.size(0), d = window.size(1), k = out.size(0);
  dispatch_window(window, [&](auto* window_type) {
    dispatch_float(out, [&](auto* out_type) {
      using T = element_t<decltype(window_type)>;
      using V = element_t<decltype(out_type)>;
      window_combine(elements<T>(window), elements_of(scales), window.stride(0), m, d, elements<double>(coefficients),
                     k, alpha, beta, out.mutable_data_ptr<V>(), out.stride(0));
    });
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(mfac, CPU, m) { m.impl("window_combine_", TORCH_BOX(&window_combine_cpu)); }

}  // namespace mfac
