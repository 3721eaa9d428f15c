// obs_eliminate(weight, inverse, dropped, count, keep, group, scales, zeros, levels) -> order, losses,
// weight: greedy Optimal Brain Surgeon, and with a grid Optimal Brain Quantizer, of every row on its
// own. Each step takes the weight that raises δHδᵀ least, and the others of the row move to make up
// for it.
#include "layerwise/obs_eliminate/obs_eliminate_checks.h"

namespace mfac {
namespace {

std::tuple<Tensor, Tensor, Tensor> obs_eliminate_cpu(const Tensor& weight, const Tensor& inverse, const Tensor& dropped,
                                                     int64_t count, int64_t keep, int64_t group,
                                                     const std::optional<Tensor>& scales,
                                                     const std::optional<Tensor>& zeros, int64_t levels) {
  const bool quantises = check_eliminate(weight, inverse, dropped, count, keep, group, scales, zeros, levels);
  const int64_t rows = weight.size(0), n = weight.size(1);
  Tensor order = torch::stable::new_empty(weight, {rows, count}, ScalarType::Long);
  Tensor losses = empty_f64(weight, {rows, count}), result = empty_f64(weight, {rows, n});
  const Elimination elimination = {elements<double>(weight),
                                   weight.stride(0),
                                   elements<double>(inverse),
                                   inverse.stride(0),
                                   elements<bool>(dropped),
                                   dropped.stride(0),
                                   n,
                                   count,
                                   keep,
                                   group,
                                   quantises ? elements<double>(*scales) : nullptr,
                                   quantises ? scales->stride(0) : 0,
                                   quantises ? elements<double>(*zeros) : nullptr,
                                   quantises ? zeros->stride(0) : 0,
                                   double(levels),
                                   mutable_elements<int64_t>(order),
                                   mutable_elements<double>(losses),
                                   mutable_elements<double>(result)};
  const ObsEliminateKernels& table = kernels<ObsEliminateKernels>();
  parallel_tasks(rows, n * n, [&](int64_t begin, int64_t end) {
    Buffer<double> numbers(table.numbers(n));
    Buffer<int64_t> integers(table.integers(n));
    for (int64_t row = begin; row < end; ++row) table.eliminate(elimination, row, numbers.data(), integers.data());
  });
  return {order, losses, result};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(mfac, CPU, m) { m.impl("obs_eliminate", TORCH_BOX(&obs_eliminate_cpu)); }

}  // namespace mfac
