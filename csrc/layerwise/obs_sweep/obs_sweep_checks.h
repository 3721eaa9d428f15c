// What obs_sweep_ asks of its arguments, on every device.
#pragma once

#include "layerwise/obs_sweep/layerwise_checks.h"

namespace mfac {

// Whether there is a grid.
inline bool check_sweep(const Tensor& weight, const Tensor& carried, const Tensor& factor, const Tensor& kept,
                        int64_t keep, int64_t group, const std::optional<Tensor>& scales,
                        const std::optional<Tensor>& zeros, int64_t levels) {
  constexpr const char* op = "obs_sweep_";
  check_matrix(op, "weight", weight);
  const int64_t rows = weight.size(0), width = weight.size(1);
  check_f64_matrix(op, "weight", weight, rows, width);
  check_f64_matrix(op, "carried", carried, rows, width);
  check_f64_matrix(op, "factor", factor, width, width);
  check_bool_matrix(op, "kept", kept, rows, width);
  check_groups(op, keep, group);
  STD_TORCH_CHECK(keep == 0 || group <= kMostInGroup, op, ": Parameter `group` should be in [1, ", kMostInGroup,
                  "]. Found ", group, ".");
  return check_grid(op, scales, zeros, levels, [&](const char* name, const Tensor& t) {
    check_dense_f64(op, name, t);
    check_shape(op, name, t, {rows});
  });
}

}  // namespace mfac
