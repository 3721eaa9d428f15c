// What obs_saliency asks of its arguments, on every device.
#pragma once

#include "common/adapter.h"

namespace mfac {

inline void check_obs_saliency(const Tensor& weights, const Tensor& inverse_diagonal) {
  constexpr const char* op = "obs_saliency";
  const auto check_vector = [&](const char* name, const Tensor& t) {
    STD_TORCH_CHECK(is_float(t) || is_double(t), op, ": Parameter `", name, "` should be float32 or float64.",
                    found(t));
    STD_TORCH_CHECK(t.dim() == 1 && t.is_contiguous(), op, ": Parameter `", name, "` should be a contiguous vector.",
                    found(t));
  };
  check_vector("weights", weights);
  check_vector("inverse_diagonal", inverse_diagonal);
  check_shape(op, "inverse_diagonal", inverse_diagonal, {weights.size(0)});
}

}  // namespace mfac
