// window_dot(window, vectors, scales) -> vectors Gᵀ
#include "window/window_dot/window_dot.h"
#include "window/window_dot/window_dot_checks.h"

namespace mfac {
namespace {

Tensor window_dot_cpu(const Tensor& window, const Tensor& vectors, std::optional<Tensor> scales) {
  check_window_dot(window, vectors, scales);
  const int64_t m = window.size(0), d = window.size(1), k = vectors.size(0);
  Tensor out = empty_f64(vectors, {k, m});
  dispatch_window(window, [&](auto* window_type) {
    dispatch_float(vectors, [&](auto* vector_type) {
      using T = element_t<decltype(window_type)>;
      using V = element_t<decltype(vector_type)>;
      window_products(elements<T>(window), elements_of(scales), window.stride(0), m, d, elements<V>(vectors),
                      vectors.stride(0), k, out.mutable_data_ptr<double>());
    });
  });
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(mfac, CPU, m) { m.impl("window_dot", TORCH_BOX(&window_dot_cpu)); }

}  // namespace mfac
