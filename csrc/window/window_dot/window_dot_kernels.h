// The CPU kernels of window_dot: rows of a window in T, vectors in V.
#pragma once

#include "cpu/instances.h"

namespace mfac {

template <typename T, typename V>
struct WindowDotKernels {
  // out[r] = Σ_j window[r, j]·v[j]
  void (*dot)(const T* window, int64_t stride, int64_t rows, int64_t cols, const V* v, double* out);
};

using WindowDotRoom = ForWindows<WindowDotKernels>;

}  // namespace mfac
