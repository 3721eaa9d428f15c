// The CPU kernel of squared_norms.
#pragma once

#include "cpu/instances.h"

namespace mfac {

template <typename T>
struct SquaredNormsKernels {
  // out[r] = Σ_j window[r, j]²
  void (*squared_norms)(const T* window, int64_t stride, int64_t rows, int64_t cols, double* out);
};

using SquaredNormsRoom = ForVectors<SquaredNormsKernels>;

}  // namespace mfac
