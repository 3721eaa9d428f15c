// Whether a vector can be written into a window of elements T.
#pragma once

#include <limits>

#include "window_dot/window_dot.h"

namespace mfac {

// The largest magnitude that does not round to an infinity.
template <typename T>
double largest_finite() {
  if constexpr (std::is_same_v<T, f16>) return 0x1.ffdffep15;  // the last float32 below 65520, which rounds up
  else if constexpr (std::is_same_v<T, bf16>) return 0x1.fefffep127;
  else if constexpr (std::is_same_v<T, double>) return std::numeric_limits<double>::max();
  else if constexpr (std::is_same_v<T, int8_t>) return 0x1.fff8p127;  // 127 scales, rounded up, are still finite
  else return std::numeric_limits<float>::max();
}

inline Magnitude magnitude_of(const float* v, int64_t n) { return kernels().magnitude_f32(v, n); }
inline Magnitude magnitude_of(const double* v, int64_t n) { return kernels().magnitude_f64(v, n); }

template <typename T, typename V>
bool is_storable(const V* v, int64_t d) {
  const int64_t width = chunk_columns(d);
  std::vector<Magnitude> parts(ceil_div(d, width));
  parallel_tasks(parts.size(), width, [&](int64_t begin, int64_t end) {
    for (int64_t p = begin; p < end; ++p) parts[p] = magnitude_of(v + p * width, std::min(width, d - p * width));
  });
  Magnitude size{0, 0};
  for (const Magnitude& part : parts) {
    size.largest = std::max(size.largest, part.largest);
    size.sum_of_squares += part.sum_of_squares;
  }
  return size.sum_of_squares <= std::numeric_limits<double>::max() && size.largest <= largest_finite<T>();
}

}  // namespace mfac
