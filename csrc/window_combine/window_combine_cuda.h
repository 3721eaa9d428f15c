// Launchers of the CUDA twin of window_combine_: pointers to device memory, a stream, the launch's error.
#pragma once

#include "formats.h"

namespace mfac::cuda {

// out [k, d] <- alpha·out + beta·coefficients [k, m] G; alpha = 0 reads no out. scales null but for int8.
template <typename T, typename V>
int window_combine(const T* window, const float* scales, int64_t stride, int64_t m, int64_t d,
                   const double* coefficients, int64_t k, double alpha, double beta, V* out, int64_t out_stride,
                   void* stream);

}  // namespace mfac::cuda
