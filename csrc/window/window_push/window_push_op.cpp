// window_push_(window, row, gradient, scales) -> products [m]: the gradient is rounded into its
// row, and the products of the row as rounded with every row are returned, so that they are exactly
// the Gram matrix's of what is stored.
//
// The rounded row is kept as a vector of d floats, which in every format holds it exactly; its
// chunks are in cache when the rows go by. int8 rows meet it as int8, in integer arithmetic. A
// gradient that is not finite, or not when rounded, leaves the window as it is; the product with
// itself is then NaN.
#include <limits>
#include <memory>

#include "window/window_dot/window_dot.h"
#include "window/window_push/storable.h"
#include "window/window_push/window_push_checks.h"

namespace mfac {
namespace {

template <typename T, typename V>
void push(T* window, int64_t stride, int64_t m, int64_t d, int64_t row, const V* gradient, double* products) {
  const std::unique_ptr<V[]> rounded(new V[d]);  // not set to zero
  const int64_t width = chunk_columns(d);
  parallel_tasks(ceil_div(d, width), width, [&](int64_t begin, int64_t end) {
    const int64_t first = begin * width, last = std::min(end * width, d);
    kernels<RoundKernels<T, V>>().round(gradient + first, last - first, window + row * stride + first,
                                        rounded.get() + first);
  });
  window_products<T, V>(window, nullptr, stride, m, d, rounded.get(), d, 1, products);
}

void push_int8(int8_t* window, float* scales, int64_t stride, int64_t m, int64_t d, int64_t row, const float* gradient,
               double* products) {
  const int64_t tiles = scale_count(d);
  const int8_t* newest = window + row * stride;
  float* scale = scales + row * tiles;
  parallel_tasks(tiles, kScaleColumns, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      const int64_t first = t * kScaleColumns;
      scale[t] = kernels<Int8PushKernels>().quantize(gradient + first, std::min(kScaleColumns, d - first),
                                                     window + row * stride + first);
    }
  });
  for_each_chunk(m, d, 1, products,
                 [&](int64_t, int64_t first, int64_t rows, int64_t column, int64_t cols, double* sums) {
                   int32_t of_tile[kDotRows];
                   std::fill(sums, sums + rows, 0.0);
                   for (int64_t j = column; j < column + cols; j += kScaleColumns) {
                     kernels<Int8PushKernels>().dot(window + first * stride + j, stride, rows,
                                                    std::min(kScaleColumns, column + cols - j), newest + j, of_tile);
                     const int64_t t = j / kScaleColumns;
                     for (int64_t r = 0; r < rows; ++r)
                       sums[r] += double(scales[(first + r) * tiles + t]) * double(scale[t]) * of_tile[r];
                   }
                 });
}

Tensor window_push_cpu(Tensor window, int64_t row, const Tensor& gradient, std::optional<Tensor> scales) {
  check_window_push(window, row, gradient, scales);
  const int64_t m = window.size(0), d = window.size(1);
  Tensor products = empty_f64(gradient, {m});
  double* out = products.mutable_data_ptr<double>();
  dispatch_window(window, [&](auto* window_type) {
    dispatch_float(gradient, [&](auto* vector_type) {
      using T = element_t<decltype(window_type)>;
      using V = element_t<decltype(vector_type)>;
      const V* g = elements<V>(gradient);
      if (!is_storable<T>(g, d)) std::fill(out, out + m, std::numeric_limits<double>::quiet_NaN());
      else if constexpr (!std::is_same_v<T, int8_t>)
        push(mutable_elements<T>(window), window.stride(0), m, d, row, g, out);
      else if constexpr (std::is_same_v<V, float>)
        push_int8(mutable_elements<int8_t>(window), mutable_elements<float>(*scales), window.stride(0), m, d, row, g,
                  out);
    });
  });
  return products;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(mfac, CPU, m) { m.impl("window_push_", TORCH_BOX(&window_push_cpu)); }

}  // namespace mfac
