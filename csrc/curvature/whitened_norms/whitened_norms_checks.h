// What whitened_norms asks of its arguments, on every device.
#pragma once

#include "common/adapter.h"

namespace mfac {

inline void check_whitened_norms(const Tensor& window, const Tensor& inverse_factor, bool single) {
  constexpr const char* op = "whitened_norms";
  check_rows(op, "window", window);
  check_dense_f64(op, "inverse_factor", inverse_factor);
  check_shape(op, "inverse_factor", inverse_factor, {window.size(0), window.size(0)});
  STD_TORCH_CHECK(!single || is_float(window), op,
                  ": Parameter `single` should be False for a float64 window. Found True.");
}

}  // namespace mfac
