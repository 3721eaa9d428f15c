// What the operators on a layer's weight ask of their arguments, on every device.
#pragma once

#include "common/adapter.h"

namespace mfac {

// A float64 matrix [rows, cols] with contiguous rows.
inline void check_f64_matrix(const char* op, const char* name, const Tensor& t, int64_t rows, int64_t cols) {
  check_matrix(op, name, t);
  STD_TORCH_CHECK(is_double(t), op, ": Parameter `", name, "` should be float64.", found(t));
  check_shape(op, name, t, {rows, cols});
}

inline void check_bool_matrix(const char* op, const char* name, const Tensor& t, int64_t rows, int64_t cols) {
  check_matrix(op, name, t);
  STD_TORCH_CHECK(t.scalar_type() == ScalarType::Bool, op, ": Parameter `", name, "` should be bool.", found(t));
  check_shape(op, name, t, {rows, cols});
}

// `keep` of every `group`; keep = 0: no groups.
inline void check_groups(const char* op, int64_t keep, int64_t group) {
  STD_TORCH_CHECK(keep >= 0, op, ": Parameter `keep` should be >= 0. Found ", keep, ".");
  if (keep == 0) return;
  STD_TORCH_CHECK(group >= 1, op, ": Parameter `group` should be >= 1. Found ", group, ".");
  STD_TORCH_CHECK(keep <= group, op, ": Parameter `keep` should be in [0, ", group, "]. Found ", keep, ".");
}

// Whether there is a grid to quantise to; check(name, tensor) is called for both of its parts.
template <typename Check>
bool check_grid(const char* op, const std::optional<Tensor>& scales, const std::optional<Tensor>& zeros, int64_t levels,
                const Check& check) {
  STD_TORCH_CHECK(scales.has_value() == zeros.has_value(), op,
                  ": Parameter `zeros` should be given with `scales`, and only with them. Found ",
                  zeros ? "zeros without scales" : "scales without zeros", ".");
  if (!scales) return false;
  check("scales", *scales);
  check("zeros", *zeros);
  STD_TORCH_CHECK(levels >= 1, op, ": Parameter `levels` should be >= 1 where there are scales. Found ", levels, ".");
  return true;
}

}  // namespace mfac
