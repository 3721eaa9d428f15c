// obs_saliency on CUDA tensors.
#include "cuda/cuda_adapter.h"
#include "pruning/obs_saliency/obs_saliency_checks.h"
#include "pruning/obs_saliency/obs_saliency_cuda.h"

namespace mfac::cuda {
namespace {

Tensor obs_saliency_cuda(const Tensor& weights, const Tensor& inverse_diagonal) {
  check_obs_saliency(weights, inverse_diagonal);
  const Device device("obs_saliency", weights);
  device.check_same("inverse_diagonal", inverse_diagonal);
  Tensor out = empty_f64(weights, {weights.size(0)});
  dispatch_float(weights, [&](auto* type) {
    dispatch_float(inverse_diagonal, [&](auto* diagonal_type) {
      using T = element_t<decltype(type)>;
      using D = element_t<decltype(diagonal_type)>;
      device.check_launch(obs_saliency(elements<T>(weights), elements<D>(inverse_diagonal), weights.size(0),
                                       mutable_elements<double>(out), device.stream()));
    });
  });
  return out;
}

}  // namespace

MFAC_CUDA_LIBRARY_IMPL(m) { m.impl("obs_saliency", TORCH_BOX(&obs_saliency_cuda)); }

}  // namespace mfac::cuda
