// What window_dot asks of its arguments, on every device.
#pragma once

#include "common/adapter.h"

namespace mfac {

inline void check_window_dot(const Tensor& window, const Tensor& vectors, const std::optional<Tensor>& scales) {
  check_window("window_dot", window, scales);
  check_rows("window_dot", "vectors", vectors);
  check_size("window_dot", "vectors", vectors.size(1), window.size(1));
}

}  // namespace mfac
