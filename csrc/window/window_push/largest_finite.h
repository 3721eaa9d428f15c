// The largest magnitude of an entry that a window of elements T can hold: it does not round to an
// infinity.
#pragma once

#include <limits>
#include <type_traits>

#include "common/formats.h"

namespace mfac {

template <typename T>
constexpr double largest_finite() {
  if constexpr (std::is_same_v<T, f16>) return 0x1.ffdffep15;  // the last float32 below 65520, which rounds up
  else if constexpr (std::is_same_v<T, bf16>) return 0x1.fefffep127;
  else if constexpr (std::is_same_v<T, double>) return std::numeric_limits<double>::max();
  else if constexpr (std::is_same_v<T, int8_t>) return 0x1.fff8p127;  // 127 scales, rounded up, are still finite
  else return std::numeric_limits<float>::max();
}

}  // namespace mfac
