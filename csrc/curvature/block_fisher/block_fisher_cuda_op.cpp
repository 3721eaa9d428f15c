// The block-diagonal Fisher on CUDA tensors.
#include "cuda/cuda_adapter.h"
#include "curvature/block_fisher/block_fisher_checks.h"
#include "curvature/block_fisher/block_fisher_cuda.h"

namespace mfac::cuda {
namespace {

std::tuple<Tensor, Tensor> block_factor_cuda(const Tensor& window, int64_t block_size, double damping,
                                             double num_terms) {
  const Blocks blocks = check_blocks("block_factor", window, block_size);
  const Device device("block_factor", window);
  Tensor factors = empty_f64(window, {blocks.count(), blocks.order(), blocks.order()});
  Tensor failed = torch::stable::new_empty(window, {blocks.count()}, ScalarType::Long);
  dispatch_float(window, [&](auto* type) {
    using T = element_t<decltype(type)>;
    device.check_launch(block_factor(elements<T>(window), window.stride(0), blocks, damping, num_terms,
                                     mutable_elements<double>(factors), mutable_elements<int64_t>(failed),
                                     device.stream()));
  });
  return {factors, failed};
}

Tensor block_ihvp_cuda(const Tensor& window, const Tensor& factors, const Tensor& vectors, int64_t block_size,
                       double damping, double /*num_terms: in the factors*/) {
  const Blocks blocks = check_blocks("block_ihvp", window, block_size);
  check_factors("block_ihvp", factors, blocks);
  check_vectors("block_ihvp", vectors, blocks);
  const Device device("block_ihvp", window);
  device.check_same("factors", factors);
  device.check_same("vectors", vectors);
  const int64_t k = vectors.size(0);
  Tensor out = empty_f64(vectors, {k, blocks.dim}), scratch = empty_f64(vectors, {ihvp_scratch(blocks, k)});
  dispatch_float(window, [&](auto* type) {
    using T = element_t<decltype(type)>;
    device.check_launch(block_ihvp(elements<T>(window), window.stride(0), blocks, elements<double>(factors),
                                   elements<double>(vectors), k, damping, mutable_elements<double>(out),
                                   mutable_elements<double>(scratch), device.stream()));
  });
  return out;
}

Tensor block_matvec_cuda(const Tensor& window, const Tensor& vectors, int64_t block_size, double damping,
                         double num_terms) {
  const Blocks blocks = check_blocks("block_matvec", window, block_size);
  check_vectors("block_matvec", vectors, blocks);
  const Device device("block_matvec", window);
  device.check_same("vectors", vectors);
  const int64_t k = vectors.size(0);
  Tensor out = empty_f64(vectors, {k, blocks.dim});
  dispatch_float(window, [&](auto* type) {
    using T = element_t<decltype(type)>;
    device.check_launch(block_matvec(elements<T>(window), window.stride(0), blocks, elements<double>(vectors), k,
                                     damping, num_terms, mutable_elements<double>(out), device.stream()));
  });
  return out;
}

Tensor block_inverse_diagonal_cuda(const Tensor& window, const Tensor& factors, int64_t block_size, double damping,
                                   double num_terms) {
  const Blocks blocks = check_blocks("block_inverse_diagonal", window, block_size);
  check_factors("block_inverse_diagonal", factors, blocks);
  const Device device("block_inverse_diagonal", window);
  device.check_same("factors", factors);
  Tensor out = empty_f64(window, {blocks.dim}), scratch = empty_f64(window, {diagonal_scratch(blocks)});
  dispatch_float(window, [&](auto* type) {
    using T = element_t<decltype(type)>;
    device.check_launch(block_inverse_diagonal(elements<T>(window), window.stride(0), blocks, elements<double>(factors),
                                               damping, num_terms, mutable_elements<double>(out),
                                               mutable_elements<double>(scratch), device.stream()));
  });
  return out;
}

}  // namespace

MFAC_CUDA_LIBRARY_IMPL(m) {
  m.impl("block_factor", TORCH_BOX(&block_factor_cuda));
  m.impl("block_ihvp", TORCH_BOX(&block_ihvp_cuda));
  m.impl("block_matvec", TORCH_BOX(&block_matvec_cuda));
  m.impl("block_inverse_diagonal", TORCH_BOX(&block_inverse_diagonal_cuda));
}

}  // namespace mfac::cuda
