// whitened_norms on CUDA tensors.
#include <tuple>

#include "cuda/cuda_adapter.h"
#include "curvature/whitened_norms/whitened_norms_checks.h"
#include "curvature/whitened_norms/whitened_norms_cuda.h"

namespace mfac::cuda {
namespace {

std::tuple<Tensor, Tensor> whitened_norms_cuda(const Tensor& window, const Tensor& inverse_factor, bool single) {
  check_whitened_norms(window, inverse_factor, single);
  const Device device("whitened_norms", window);
  device.check_same("inverse_factor", inverse_factor);
  const int64_t m = window.size(0), d = window.size(1);
  Tensor norms = empty_f64(window, {d}), errors = empty_f64(window, {d});
  Tensor scratch = empty_f64(window, {whitened_norms_scratch(m)});
  const auto run = [&](auto* window_type, auto* arithmetic) {
    using T = element_t<decltype(window_type)>;
    device.check_launch(whitened_norms<T, element_t<decltype(arithmetic)>>(
        elements<T>(window), window.stride(0), m, d, elements<double>(inverse_factor), mutable_elements<double>(norms),
        mutable_elements<double>(errors), mutable_elements<double>(scratch), device.stream()));
  };
  dispatch_float(window, [&](auto* type) {
    if (single) run(static_cast<float*>(nullptr), static_cast<float*>(nullptr));
    else run(type, static_cast<double*>(nullptr));
  });
  return {norms, errors};
}

}  // namespace

MFAC_CUDA_LIBRARY_IMPL(m) { m.impl("whitened_norms", TORCH_BOX(&whitened_norms_cuda)); }

}  // namespace mfac::cuda
