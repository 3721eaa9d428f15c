// Launcher of the CUDA twin of whitened_norms: pointers to device memory, a stream, the launch's
// error.
#pragma once

#include "common/formats.h"

namespace mfac::cuda {

constexpr int kPanelRows = 256;  // of L⁻¹ that a block of threads takes at a time

// Where the entry (i, 0) of L⁻¹ lies in the memory packed for the product: panels of
// kPanelRows rows, [m, kPanelRows] each.
MFAC_HOST_DEVICE inline int64_t packed_factor(int64_t i, int64_t m) {
  return i / kPanelRows * kPanelRows * m + i % kPanelRows;
}

// Entries of all panels.
inline int64_t packed_factor_size(int64_t m) { return (m + kPanelRows - 1) / kPanelRows * kPanelRows * m; }

// Float64 scratch memory: L⁻¹ packed for the product, a weight a row (whitened_norms_bound.h), two
// numbers, and the weights in arithmetic of the products.
inline int64_t whitened_norms_scratch(int64_t m) { return packed_factor_size(m) + 2 * m + 2; }

// norms, errors [d] <- ‖U_:j‖² with U = L⁻¹G in arithmetic of type C, and bounds on their errors.
// scratch: whitened_norms_scratch(m) float64, aligned to 16 bytes
template <typename T, typename C>
int whitened_norms(const T* window, int64_t stride, int64_t m, int64_t d, const double* inverse_factor, double* norms,
                   double* errors, double* scratch, void* stream);

}  // namespace mfac::cuda
