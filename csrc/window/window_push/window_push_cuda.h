// Launchers of the CUDA twin of window_push_: pointers to device memory, a stream, the launch's
// error.
#pragma once

#include "window/window_dot/window_dot_cuda.h"

namespace mfac::cuda {

constexpr int kMagnitudeParts = 128;  // at most, of a vector

// Scratch of a push, in float64: what window_dot takes, the magnitudes of the gradient's parts, and
// the decision.
inline int64_t push_scratch(int64_t m, int64_t d) { return DotShape{m, d, 1}.scratch() + 2 * kMagnitudeParts + 1; }

// Row `row` <- gradient rounded to T; products [m] <- its products with every row. Where the
// gradient cannot be stored (it is not finite, its squared norm is not, or an entry exceeds
// `limit`) nothing is written, and products are NaN.
template <typename T, typename V>
int window_push(T* window, int64_t stride, int64_t m, int64_t d, int64_t row, const V* gradient, double limit,
                double* products, double* scratch, void* stream);

// The same for int8 rows, with the scales of the row.
int window_push_int8(int8_t* window, float* scales, int64_t stride, int64_t m, int64_t d, int64_t row,
                     const float* gradient, double limit, double* products, double* scratch, void* stream);

}  // namespace mfac::cuda
