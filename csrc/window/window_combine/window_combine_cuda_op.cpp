// window_combine_ and window_descend_ on CUDA tensors.
#include "cuda/cuda_adapter.h"
#include "window/window_combine/descent_checks.h"
#include "window/window_combine/window_combine_checks.h"
#include "window/window_combine/window_combine_cuda.h"

namespace mfac::cuda {
namespace {

void window_combine_cuda(Tensor out, const Tensor& window, const Tensor& coefficients, double alpha, double beta,
                         std::optional<Tensor> scales) {
  check_window_combine(out, window, coefficients, scales);
  const Device device("window_combine_", out);
  device.check_same("window", window);
  device.check_same("coefficients", coefficients);
  device.check_same("scales", scales);
  dispatch_window(window, [&](auto* window_type) {
    dispatch_float(out, [&](auto* out_type) {
      using T = element_t<decltype(window_type)>;
      using V = element_t<decltype(out_type)>;
      device.check_launch(window_combine(elements<T>(window), elements_of(scales), window.stride(0), window.size(0),
                                         window.size(1), elements<double>(coefficients), out.size(0), alpha, beta,
                                         mutable_elements<V>(out), out.stride(0), device.stream()));
    });
  });
}

void window_descend_cuda(const std::vector<Tensor>& parameters, std::optional<Tensor> average, const Tensor& window,
                         const Tensor& coefficients, double beta, double momentum, const std::vector<int64_t>& columns,
                         const std::vector<double>& rates, const std::vector<double>& decays,
                         std::optional<Tensor> scales) {
  const DescentArguments descent{parameters, average, coefficients, beta, momentum, columns, rates, decays};
  check_window("window_descend_", window, scales);
  check_descent("window_descend_", descent, window.size(0), window.size(1));
  const Device device("window_descend_", window);
  for (const Tensor& parameter : parameters) device.check_same("parameters", parameter);
  device.check_same("average", average);
  device.check_same("coefficients", coefficients);
  device.check_same("scales", scales);
  dispatch_window(window, [&](auto* window_type) {
    dispatch_float(parameters[0], [&](auto* weight_type) {
      using T = element_t<decltype(window_type)>;
      using V = element_t<decltype(weight_type)>;
      device.check_launch(window_descend(elements<T>(window), elements_of(scales), window.stride(0), window.size(0),
                                         window.size(1), elements<double>(coefficients), pieces_of<V>(descent),
                                         device.stream()));
    });
  });
}

}  // namespace

MFAC_CUDA_LIBRARY_IMPL(m) {
  m.impl("window_combine_", TORCH_BOX(&window_combine_cuda));
  m.impl("window_descend_", TORCH_BOX(&window_descend_cuda));
}

}  // namespace mfac::cuda
