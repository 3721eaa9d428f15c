// Whether a vector can be written into a window of elements T.
#pragma once

#include <limits>

#include "window/window_dot/window_dot.h"
#include "window/window_push/largest_finite.h"

namespace mfac {

template <typename T, typename V>
bool is_storable(const V* v, int64_t d) {
  const int64_t width = chunk_columns(d);
  std::vector<Magnitude> parts(ceil_div(d, width));
  parallel_tasks(parts.size(), width, [&](int64_t begin, int64_t end) {
    for (int64_t p = begin; p < end; ++p)
      parts[p] = kernels<MagnitudeKernels<V>>().magnitude(v + p * width, std::min(width, d - p * width));
  });
  Magnitude size{0, 0};
  for (const Magnitude& part : parts) {
    size.largest = std::max(size.largest, part.largest);
    size.sum_of_squares += part.sum_of_squares;
  }
  return size.sum_of_squares <= std::numeric_limits<double>::max() && size.largest <= largest_finite<T>();
}

}  // namespace mfac
