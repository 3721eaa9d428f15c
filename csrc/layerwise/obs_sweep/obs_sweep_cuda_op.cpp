// obs_sweep_ on CUDA tensors.
#include "cuda/cuda_adapter.h"
#include "layerwise/obs_sweep/obs_sweep_checks.h"
#include "layerwise/obs_sweep/obs_sweep_cuda.h"

namespace mfac::cuda {
namespace {

void obs_sweep_cuda(Tensor weight, Tensor carried, const Tensor& factor, Tensor kept, int64_t keep, int64_t group,
                    const std::optional<Tensor>& scales, const std::optional<Tensor>& zeros, int64_t levels) {
  const bool quantises = check_sweep(weight, carried, factor, kept, keep, group, scales, zeros, levels);
  const Device device("obs_sweep_", weight);
  device.check_same("carried", carried);
  device.check_same("factor", factor);
  device.check_same("kept", kept);
  device.check_same("scales", scales);
  device.check_same("zeros", zeros);
  const SweepArguments sweep = {mutable_elements<double>(weight),
                                weight.stride(0),
                                mutable_elements<double>(carried),
                                carried.stride(0),
                                elements<double>(factor),
                                factor.stride(0),
                                mutable_elements<bool>(kept),
                                kept.stride(0),
                                weight.size(0),
                                weight.size(1),
                                int(keep),
                                keep == 0 ? 1 : int(group),
                                quantises ? elements<double>(*scales) : nullptr,
                                quantises ? elements<double>(*zeros) : nullptr,
                                double(levels)};
  device.check_launch(obs_sweep(sweep, device.stream()));
}

}  // namespace

MFAC_CUDA_LIBRARY_IMPL(m) { m.impl("obs_sweep_", TORCH_BOX(&obs_sweep_cuda)); }

}  // namespace mfac::cuda
