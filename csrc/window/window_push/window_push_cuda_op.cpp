// window_push_ on CUDA tensors.
#include "cuda/cuda_adapter.h"
#include "window/window_push/largest_finite.h"
#include "window/window_push/window_push_checks.h"
#include "window/window_push/window_push_cuda.h"

namespace mfac::cuda {
namespace {

Tensor window_push_cuda(Tensor window, int64_t row, const Tensor& gradient, std::optional<Tensor> scales) {
  check_window_push(window, row, gradient, scales);
  const Device device("window_push_", window);
  device.check_same("gradient", gradient);
  device.check_same("scales", scales);
  const int64_t m = window.size(0), d = window.size(1), stride = window.stride(0);
  Tensor products = empty_f64(gradient, {m}), scratch = empty_f64(gradient, {push_scratch(m, d)});
  double *out = mutable_elements<double>(products), *scratch_data = mutable_elements<double>(scratch);
  dispatch_window(window, [&](auto* window_type) {
    dispatch_float(gradient, [&](auto* vector_type) {
      using T = element_t<decltype(window_type)>;
      using V = element_t<decltype(vector_type)>;
      const double limit = largest_finite<T>();
      if constexpr (!std::is_same_v<T, int8_t>)
        device.check_launch(window_push(mutable_elements<T>(window), stride, m, d, row, elements<V>(gradient), limit,
                                        out, scratch_data, device.stream()));
      else if constexpr (std::is_same_v<V, float>)
        device.check_launch(window_push_int8(mutable_elements<int8_t>(window), mutable_elements<float>(*scales), stride,
                                             m, d, row, elements<float>(gradient), limit, out, scratch_data,
                                             device.stream()));
    });
  });
  return products;
}

}  // namespace

MFAC_CUDA_LIBRARY_IMPL(m) { m.impl("window_push_", TORCH_BOX(&window_push_cuda)); }

}  // namespace mfac::cuda
