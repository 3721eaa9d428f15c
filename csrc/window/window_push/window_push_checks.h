// What window_push_ asks of its arguments, on every device.
#pragma once

#include "common/adapter.h"

namespace mfac {

inline void check_window_push(const Tensor& window, int64_t row, const Tensor& gradient,
                              const std::optional<Tensor>& scales) {
  constexpr const char* op = "window_push_";
  check_window(op, window, scales);
  const int64_t m = window.size(0), d = window.size(1);
  STD_TORCH_CHECK(is_float(gradient) || is_double(gradient), op, ": Parameter `gradient` should be float32 or float64.",
                  found(gradient));
  STD_TORCH_CHECK(!scales || is_float(gradient), op, ": Parameter `gradient` should be float32 for an int8 window.",
                  found(gradient));
  STD_TORCH_CHECK(gradient.is_contiguous(), op, ": Parameter `gradient` should be contiguous.", found(gradient));
  check_shape(op, "gradient", gradient, {d});
  STD_TORCH_CHECK(row >= 0 && row < m, op, ": Parameter `row` should be in [0, ", m, "). Found ", row, ".");
  STD_TORCH_CHECK(m <= 1 || window.stride(0) >= d, op, ": Parameter `window` should have rows that do not overlap.",
                  found(window));
}

}  // namespace mfac
