// nm_mask on CUDA tensors.
#include "cuda/cuda_adapter.h"
#include "pruning/nm_mask/nm_mask_checks.h"
#include "pruning/nm_mask/nm_mask_cuda.h"

namespace mfac::cuda {
namespace {

Tensor nm_mask_cuda(const Tensor& scores, int64_t keep, int64_t group) {
  check_nm_mask(scores, keep, group);
  const Device device("nm_mask", scores);
  const MaskShape shape(scores.size(0), scores.size(1), scores.size(2), keep, group);
  Tensor mask = torch::stable::new_empty(scores, {shape.outer, shape.axis, shape.inner}, ScalarType::Bool);
  dispatch_float(scores, [&](auto* type) {
    using T = element_t<decltype(type)>;
    device.check_launch(nm_mask(elements<T>(scores), shape, mutable_elements<bool>(mask), device.stream()));
  });
  return mask;
}

}  // namespace

MFAC_CUDA_LIBRARY_IMPL(m) { m.impl("nm_mask", TORCH_BOX(&nm_mask_cuda)); }

}  // namespace mfac::cuda
