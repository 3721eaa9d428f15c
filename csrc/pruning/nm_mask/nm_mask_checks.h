// What nm_mask asks of its arguments, on every device.
#pragma once

#include "common/adapter.h"

namespace mfac {

inline void check_nm_mask(const Tensor& scores, int64_t keep, int64_t group) {
  constexpr const char* op = "nm_mask";
  STD_TORCH_CHECK(is_float(scores) || is_double(scores), op, ": Parameter `scores` should be float32 or float64.",
                  found(scores));
  STD_TORCH_CHECK(scores.dim() == 3 && scores.is_contiguous(), op,
                  ": Parameter `scores` should be contiguous and have 3 dimensions: outer, axis, inner.",
                  found(scores));
  STD_TORCH_CHECK(group >= 1 && group <= kMostInGroup, op, ": Parameter `group` should be in [1, ", kMostInGroup,
                  "]. Found ", group, ".");
  STD_TORCH_CHECK(keep >= 0 && keep <= group, op, ": Parameter `keep` should be in [0, ", group, "]. Found ", keep,
                  ".");
}

}  // namespace mfac
