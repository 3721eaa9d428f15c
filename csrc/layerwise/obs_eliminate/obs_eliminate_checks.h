// What obs_eliminate asks of its arguments, on every device.
#pragma once

#include "layerwise/obs_sweep/layerwise_checks.h"

namespace mfac {

// Whether there is a grid.
inline bool check_eliminate(const Tensor& weight, const Tensor& inverse, const Tensor& dropped, int64_t count,
                            int64_t keep, int64_t group, const std::optional<Tensor>& scales,
                            const std::optional<Tensor>& zeros, int64_t levels) {
  constexpr const char* op = "obs_eliminate";
  check_matrix(op, "weight", weight);
  const int64_t rows = weight.size(0), n = weight.size(1);
  check_f64_matrix(op, "weight", weight, rows, n);
  check_f64_matrix(op, "inverse", inverse, n, n);
  check_bool_matrix(op, "dropped", dropped, rows, n);
  STD_TORCH_CHECK(count >= 0 && count <= n, op, ": Parameter `count` should be in [0, ", n, "]. Found ", count, ".");
  check_groups(op, keep, group);
  return check_grid(op, scales, zeros, levels,
                    [&](const char* name, const Tensor& t) { check_f64_matrix(op, name, t, rows, n); });
}

}  // namespace mfac
