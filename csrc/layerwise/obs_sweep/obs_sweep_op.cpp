// obs_sweep_(weight, carried, factor, kept, keep, group, scales, zeros, levels): the column sweep of
// SparseGPT and GPTQ over one block of columns, of every row on its own. H = R Rᵀ with R upper
// triangular, w becomes q, and S what e = (w - q) R is: the errors of the block's columns.
#include "layerwise/obs_sweep/obs_sweep_checks.h"

namespace mfac {
namespace {

void obs_sweep_cpu(Tensor weight, Tensor carried, const Tensor& factor, Tensor kept, int64_t keep, int64_t group,
                   const std::optional<Tensor>& scales, const std::optional<Tensor>& zeros, int64_t levels) {
  const bool quantises = check_sweep(weight, carried, factor, kept, keep, group, scales, zeros, levels);
  const int64_t rows = weight.size(0), width = weight.size(1);
  const ObsSweepKernels& table = kernels<ObsSweepKernels>();
  const Sweep sweep = {mutable_elements<double>(weight),
                       weight.stride(0),
                       mutable_elements<double>(carried),
                       carried.stride(0),
                       elements<double>(factor),
                       factor.stride(0),
                       mutable_elements<bool>(kept),
                       kept.stride(0),
                       width,
                       keep,
                       group,
                       quantises ? elements<double>(*scales) : nullptr,
                       quantises ? elements<double>(*zeros) : nullptr,
                       double(levels)};
  const int64_t panel = table.panel_rows;
  parallel_tasks(ceil_div(rows, panel), panel * width * ceil_div(width, 2), [&](int64_t begin, int64_t end) {
    Buffer<double> scratch(4 * width * panel);
    table.sweep(sweep, begin * panel, std::min(rows, end * panel), scratch.data());
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(mfac, CPU, m) { m.impl("obs_sweep_", TORCH_BOX(&obs_sweep_cpu)); }

}  // namespace mfac
