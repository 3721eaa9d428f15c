// The CPU kernel of restricted_solve: a row from start to end.
#pragma once

#include "cpu/instances.h"

namespace mfac {

struct RestrictedSolve {
  const double* matrix;  // [n, n]
  int64_t matrix_stride;
  const double* target;  // [rows, n]
  int64_t target_stride;
  const bool* kept;  // [rows, n]
  int64_t kept_stride;
  int64_t n;
  double* result;  // [rows, n]
};

struct RestrictedSolveKernels {
  int64_t (*numbers)(int64_t kept);  // doubles that a row may use
  // NaN where the matrix is not positive definite. columns: [n] integers to use
  void (*solve)(const RestrictedSolve& problem, int64_t row, double* numbers, int64_t* columns);
};

using RestrictedSolveRoom = Instances<RestrictedSolveKernels>;

}  // namespace mfac
