// Launcher of the CUDA twin of whitened_norms: pointers to device memory, a stream, the launch's error.
#pragma once

#include "formats.h"

namespace mfac::cuda {

// Float64 scratch memory: a weight a row (whitened_norms_bound.h), the same in arithmetic of the products, and two
// numbers.
inline int64_t whitened_norms_scratch(int64_t m) { return 2 * m + 2; }

// norms, errors [d] <- ‖U_:j‖² with U = L⁻¹G in arithmetic of type C, and bounds on their errors.
// scratch: whitened_norms_scratch(m) float64
template <typename T, typename C>
int whitened_norms(const T* window, int64_t stride, int64_t m, int64_t d, const double* inverse_factor, double* norms,
                   double* errors, double* scratch, void* stream);

}  // namespace mfac::cuda
