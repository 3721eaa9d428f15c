// topk_dot, topk_combine_ and topk_push_ on CUDA tensors. Unlike on the CPU the offsets are not
// read to be checked, which would have to wait for the GPU: the kernels leave out what lies outside
// of a block.
#include "cuda/cuda_adapter.h"
#include "window/topk/topk_checks.h"
#include "window/topk/topk_cuda.h"
#include "window/window_push/largest_finite.h"

namespace mfac::cuda {
namespace {

Tensor topk_dot_cuda(const Tensor& values, const Tensor& indices, const Tensor& vectors, int64_t block_size) {
  const TopKShape shape{check_topk_dot(values, indices, vectors, block_size)};
  const Device device("topk_dot", values);
  device.check_same("indices", indices);
  device.check_same("vectors", vectors);
  const int64_t k = vectors.size(0);
  Tensor out = empty_f64(vectors, {k, shape.layout.rank}), scratch = empty_f64(vectors, {shape.dot_scratch(k)});
  dispatch_float_window(values, [&](auto* value_type) {
    dispatch_float(vectors, [&](auto* vector_type) {
      using T = element_t<decltype(value_type)>;
      using V = element_t<decltype(vector_type)>;
      device.check_launch(topk_dot(elements<T>(values), elements<uint16_t>(indices), shape, elements<V>(vectors),
                                   vectors.stride(0), k, mutable_elements<double>(out),
                                   mutable_elements<double>(scratch), device.stream()));
    });
  });
  return out;
}

void topk_combine_cuda(Tensor out, const Tensor& values, const Tensor& indices, const Tensor& coefficients,
                       double alpha, double beta, int64_t block_size, const std::optional<Tensor>& boundaries) {
  const TopKShape shape{check_topk_combine(out, values, indices, coefficients, block_size, boundaries)};
  const Device device("topk_combine_", out);
  device.check_same("values", values);
  device.check_same("indices", indices);
  device.check_same("coefficients", coefficients);
  device.check_same("boundaries", boundaries);
  Tensor scratch = torch::stable::new_empty(indices, {boundaries ? 0 : shape.combine_scratch()}, ScalarType::UInt16);
  dispatch_float_window(values, [&](auto* value_type) {
    dispatch_float(out, [&](auto* out_type) {
      using T = element_t<decltype(value_type)>;
      using V = element_t<decltype(out_type)>;
      device.check_launch(topk_combine(
          elements<T>(values), elements<uint16_t>(indices), shape, elements<double>(coefficients), out.size(0), alpha,
          beta, mutable_elements<V>(out), out.stride(0), boundaries ? elements<uint16_t>(*boundaries) : nullptr,
          mutable_elements<uint16_t>(scratch), device.stream()));
    });
  });
}

void topk_descend_cuda(const std::vector<Tensor>& parameters, std::optional<Tensor> average, const Tensor& values,
                       const Tensor& indices, const Tensor& coefficients, double beta, double momentum, int64_t newest,
                       const std::vector<int64_t>& columns, const std::vector<double>& rates,
                       const std::vector<double>& decays, int64_t dim, int64_t block_size,
                       const std::optional<Tensor>& boundaries) {
  const DescentArguments descent{parameters, average, coefficients, beta, momentum, columns, rates, decays};
  const TopKShape shape{check_topk_descend(descent, values, indices, newest, dim, block_size, boundaries)};
  const Device device("topk_descend_", values);
  for (const Tensor& parameter : parameters) device.check_same("parameters", parameter);
  device.check_same("average", average);
  device.check_same("indices", indices);
  device.check_same("coefficients", coefficients);
  device.check_same("boundaries", boundaries);
  Tensor scratch = torch::stable::new_empty(indices, {boundaries ? 0 : shape.combine_scratch()}, ScalarType::UInt16);
  dispatch_float_window(values, [&](auto* value_type) {
    dispatch_float(parameters[0], [&](auto* weight_type) {
      using T = element_t<decltype(value_type)>;
      using V = element_t<decltype(weight_type)>;
      device.check_launch(topk_descend(elements<T>(values), elements<uint16_t>(indices), shape,
                                       elements<double>(coefficients), pieces_of<V>(descent), newest,
                                       boundaries ? elements<uint16_t>(*boundaries) : nullptr,
                                       mutable_elements<uint16_t>(scratch), device.stream()));
    });
  });
}

Tensor topk_push_cuda(Tensor values, Tensor indices, Tensor error, int64_t row, const Tensor& gradient,
                      int64_t block_size, std::optional<Tensor> boundaries) {
  const TopKShape shape{check_topk_push(values, indices, error, row, gradient, block_size, boundaries)};
  const Device device("topk_push_", values);
  device.check_same("indices", indices);
  device.check_same("error", error);
  device.check_same("gradient", gradient);
  device.check_same("boundaries", boundaries);
  Tensor products = empty_f64(gradient, {shape.layout.rank}), scratch = empty_f64(gradient, {shape.push_scratch()});
  dispatch_float_window(values, [&](auto* value_type) {
    dispatch_float(gradient, [&](auto* vector_type) {
      using T = element_t<decltype(value_type)>;
      using V = element_t<decltype(vector_type)>;
      device.check_launch(topk_push(
          mutable_elements<T>(values), mutable_elements<uint16_t>(indices), shape, mutable_elements<V>(error), row,
          elements<V>(gradient), largest_finite<T>(), boundaries ? mutable_elements<uint16_t>(*boundaries) : nullptr,
          mutable_elements<double>(products), mutable_elements<double>(scratch), device.stream()));
    });
  });
  return products;
}

}  // namespace

MFAC_CUDA_LIBRARY_IMPL(m) {
  m.impl("topk_dot", TORCH_BOX(&topk_dot_cuda));
  m.impl("topk_combine_", TORCH_BOX(&topk_combine_cuda));
  m.impl("topk_descend_", TORCH_BOX(&topk_descend_cuda));
  m.impl("topk_push_", TORCH_BOX(&topk_push_cuda));
}

}  // namespace mfac::cuda
