// window_dot and squared_norms on CUDA tensors.
#include "cuda/cuda_adapter.h"
#include "window/window_dot/window_dot_checks.h"
#include "window/window_dot/window_dot_cuda.h"

namespace mfac::cuda {
namespace {

Tensor window_dot_cuda(const Tensor& window, const Tensor& vectors, std::optional<Tensor> scales) {
  check_window_dot(window, vectors, scales);
  const Device device("window_dot", window);
  device.check_same("vectors", vectors);
  device.check_same("scales", scales);
  const DotShape shape{window.size(0), window.size(1), vectors.size(0)};
  Tensor out = empty_f64(vectors, {shape.k, shape.m}), scratch = empty_f64(vectors, {shape.scratch()});
  dispatch_window(window, [&](auto* window_type) {
    dispatch_float(vectors, [&](auto* vector_type) {
      using T = element_t<decltype(window_type)>;
      using V = element_t<decltype(vector_type)>;
      device.check_launch(window_dot(elements<T>(window), elements_of(scales), window.stride(0), shape.m, shape.d,
                                     elements<V>(vectors), vectors.stride(0), shape.k, mutable_elements<double>(out),
                                     mutable_elements<double>(scratch), device.stream()));
    });
  });
  return out;
}

Tensor squared_norms_cuda(const Tensor& window) {
  check_rows("squared_norms", "window", window);
  const Device device("squared_norms", window);
  const DotShape shape{window.size(0), window.size(1), 1};
  Tensor norms = empty_f64(window, {shape.m}), scratch = empty_f64(window, {shape.scratch()});
  dispatch_float(window, [&](auto* type) {
    using T = element_t<decltype(type)>;
    device.check_launch(squared_norms(elements<T>(window), window.stride(0), shape.m, shape.d,
                                      mutable_elements<double>(norms), mutable_elements<double>(scratch),
                                      device.stream()));
  });
  return norms;
}

}  // namespace

MFAC_CUDA_LIBRARY_IMPL(m) {
  m.impl("window_dot", TORCH_BOX(&window_dot_cuda));
  m.impl("squared_norms", TORCH_BOX(&squared_norms_cuda));
}

}  // namespace mfac::cuda
