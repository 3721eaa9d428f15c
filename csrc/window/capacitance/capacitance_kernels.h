// The CPU kernels of the capacitance: rows [begin, end) of a symmetric matrix of which the lower
// triangle is stored.
#pragma once

#include "cpu/instances.h"

namespace mfac {

struct CapacitanceKernels {
  // y += the part of A·x that the rows hold
  void (*symmetric_matvec)(const double* lower, int64_t size, int64_t begin, int64_t end, const double* x, double* y);
  // A[i, :i+1] += alpha·a[i]·a + beta·b[i]·b
  void (*symmetric_rank2)(double* lower, int64_t size, int64_t begin, int64_t end, double alpha, const double* a,
                          double beta, const double* b);
};

using CapacitanceRoom = Instances<CapacitanceKernels>;

}  // namespace mfac
