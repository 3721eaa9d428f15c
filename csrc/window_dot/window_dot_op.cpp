// window_dot(window, vectors) -> vectors Gᵀ, the pass over the window that every product with F⁻¹ begins with.
//
// A task is four rows by a chunk of columns; partial sums are added in the order of the chunks, so the
// result does not depend on the number of threads. All vectors meet a chunk of rows while it is in cache.
#include "adapter.h"

namespace mfac {
namespace {

constexpr int64_t kRows = 4;
constexpr int64_t kChunk = 32768;

template <typename T, typename V>
void window_dot(const T* window, int64_t stride, int64_t m, int64_t d, const V* vectors, int64_t vector_stride,
                int64_t k, double* out) {
  const int64_t groups = ceil_div(m, kRows), chunks = std::max<int64_t>(1, ceil_div(d, kChunk));
  std::vector<double> partial(chunks * k * m);  // [chunks, k, m]
  parallel_tasks(groups * chunks, kRows * std::min(d, kChunk) * k, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t chunk = task / groups, row = task % groups * kRows, column = chunk * kChunk;
      for (int64_t i = 0; i < k; ++i)
        window_kernels<T, V>().dot(window + row * stride + column, stride, std::min(kRows, m - row),
                                   std::min(kChunk, d - column), vectors + i * vector_stride + column,
                                   partial.data() + (chunk * k + i) * m + row);
    }
  });
  for (int64_t i = 0; i < k * m; ++i) {
    double sum = 0;
    for (int64_t chunk = 0; chunk < chunks; ++chunk) sum += partial[chunk * k * m + i];
    out[i] = sum;
  }
}

Tensor window_dot_cpu(const Tensor& window, const Tensor& vectors) {
  check_rows("window_dot", "window", window);
  check_rows("window_dot", "vectors", vectors);
  check_size("window_dot", "vectors", vectors.size(1), window.size(1));
  const int64_t m = window.size(0), d = window.size(1), k = vectors.size(0);
  Tensor out = empty_f64(window, {k, m});
  dispatch_float(window, [&](auto* window_type) {
    dispatch_float(vectors, [&](auto* vector_type) {
      using T = element_t<decltype(window_type)>;
      using V = element_t<decltype(vector_type)>;
      window_dot(window.const_data_ptr<T>(), window.stride(0), m, d, vectors.const_data_ptr<V>(), vectors.stride(0), k,
                 out.mutable_data_ptr<double>());
    });
  });
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(mfac, CPU, m) { m.impl("window_dot", TORCH_BOX(&window_dot_cpu)); }

}  // namespace mfac
