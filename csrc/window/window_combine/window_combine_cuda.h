// Launchers of the CUDA twins of window_combine_ and window_descend_: pointers to device memory, a
// stream, the launch's error. scales are null but for int8.
#pragma once

#include "common/formats.h"
#include "window/window_combine/descent.h"

namespace mfac::cuda {

// out [k, d] <- alpha·out + beta·coefficients [k, m] G; alpha = 0 reads no out.
template <typename T, typename V>
int window_combine(const T* window, const float* scales, int64_t stride, int64_t m, int64_t d,
                   const double* coefficients, int64_t k, double alpha, double beta, V* out, int64_t out_stride,
                   void* stream);

// Weights move along descent.beta·coefficients [m] G.
template <typename T, typename V>
int window_descend(const T* window, const float* scales, int64_t stride, int64_t m, int64_t d,
                   const double* coefficients, const DescentPieces<V>& descent, void* stream);

}  // namespace mfac::cuda
