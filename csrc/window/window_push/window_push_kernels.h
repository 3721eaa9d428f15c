// The CPU kernels of window_push_: what a new row needs before its products, and the products of
// int8 rows.
#pragma once

#include "cpu/instances.h"

namespace mfac {

// Largest magnitude and sum of squares of a vector; the sum is not finite if and only if an entry
// is not, or if it overflows.
struct Magnitude {
  double largest, sum_of_squares;
};

template <typename V>
struct MagnitudeKernels {
  Magnitude (*magnitude)(const V* v, int64_t cols);
};

template <typename T, typename V>
struct RoundKernels {
  // row[j] <- v[j] rounded to T, rounded[j] <- its value
  void (*round)(const V* v, int64_t cols, T* row, V* rounded);
};

// For at most kScaleColumns columns.
struct Int8PushKernels {
  // row[j] <- v[j]/scale rounded; the scale
  float (*quantize)(const float* v, int64_t cols, int8_t* row);
  // out[r] = Σ_j window[r, j]·v[j], exactly
  void (*dot)(const int8_t* window, int64_t stride, int64_t rows, int64_t cols, const int8_t* v, int32_t* out);
};

using WindowPushRoom = Instances<ForVectors<MagnitudeKernels>, ForFloatWindows<RoundKernels>, Int8PushKernels>;

}  // namespace mfac
