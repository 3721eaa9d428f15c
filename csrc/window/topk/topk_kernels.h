// The CPU kernels of sparse rows in T against vectors in V: `count` entries of one row inside one
// block of columns, with uint16 offsets.
#pragma once

#include "cpu/instances.h"

namespace mfac {

template <typename T, typename V>
struct TopKKernels {
  // Σ_p values[p]·v[indices[p]]
  double (*dot)(const T* values, const uint16_t* indices, int64_t count, const V* v);
  // sums[indices[p]] += c·values[p]
  void (*add)(double c, const T* values, const uint16_t* indices, int64_t count, double* sums);
};

using TopKRoom = ForFloatWindows<TopKKernels>;

}  // namespace mfac
