// obs_eliminate on CUDA tensors.
#include "cuda/cuda_adapter.h"
#include "layerwise/obs_eliminate/obs_eliminate_checks.h"
#include "layerwise/obs_eliminate/obs_eliminate_cuda.h"

namespace mfac::cuda {
namespace {

std::tuple<Tensor, Tensor, Tensor> obs_eliminate_cuda(const Tensor& weight, const Tensor& inverse,
                                                      const Tensor& dropped, int64_t count, int64_t keep, int64_t group,
                                                      const std::optional<Tensor>& scales,
                                                      const std::optional<Tensor>& zeros, int64_t levels) {
  const bool quantises = check_eliminate(weight, inverse, dropped, count, keep, group, scales, zeros, levels);
  const Device device("obs_eliminate", weight);
  device.check_same("inverse", inverse);
  device.check_same("dropped", dropped);
  device.check_same("scales", scales);
  device.check_same("zeros", zeros);
  const int64_t rows = weight.size(0), n = weight.size(1), slots = elimination_slots(rows, n);
  Tensor order = torch::stable::new_empty(weight, {rows, count}, ScalarType::Long);
  Tensor losses = empty_f64(weight, {rows, count}), result = empty_f64(weight, {rows, n});
  Tensor numbers = empty_f64(weight, {slots * slot_numbers(n)});
  Tensor integers = torch::stable::new_empty(weight, {slots * slot_integers(n)}, ScalarType::Long);
  const EliminationArguments elimination = {elements<double>(weight),
                                            weight.stride(0),
                                            elements<double>(inverse),
                                            inverse.stride(0),
                                            elements<bool>(dropped),
                                            dropped.stride(0),
                                            rows,
                                            n,
                                            count,
                                            keep,
                                            keep == 0 ? 1 : group,
                                            quantises ? elements<double>(*scales) : nullptr,
                                            quantises ? scales->stride(0) : 0,
                                            quantises ? elements<double>(*zeros) : nullptr,
                                            quantises ? zeros->stride(0) : 0,
                                            double(levels),
                                            mutable_elements<int64_t>(order),
                                            mutable_elements<double>(losses),
                                            mutable_elements<double>(result)};
  device.check_launch(obs_eliminate(elimination, slots, mutable_elements<double>(numbers),
                                    mutable_elements<int64_t>(integers), device.stream()));
  return {order, losses, result};
}

}  // namespace

MFAC_CUDA_LIBRARY_IMPL(m) { m.impl("obs_eliminate", TORCH_BOX(&obs_eliminate_cuda)); }

}  // namespace mfac::cuda
