// What window_combine_ asks of its arguments, on every device.
#pragma once

#include "common/adapter.h"

namespace mfac {

inline void check_window_combine(const Tensor& out, const Tensor& window, const Tensor& coefficients,
                                 const std::optional<Tensor>& scales) {
  check_rows("window_combine_", "out", out);
  check_window("window_combine_", window, scales);
  check_dense_f64("window_combine_", "coefficients", coefficients);
  const int64_t m = window.size(0), d = window.size(1), k = out.size(0);
  check_size("window_combine_", "out", out.size(1), d);
  check_shape("window_combine_", "coefficients", coefficients, {k, m});
  STD_TORCH_CHECK(k <= 1 || out.stride(0) >= d,
                  "window_combine_: Parameter `out` should have rows that do not overlap.", found(out));
}

}  // namespace mfac
