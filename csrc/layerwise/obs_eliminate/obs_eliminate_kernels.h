// The CPU kernel of obs_eliminate: a row from start to end.
#pragma once

#include "cpu/instances.h"

namespace mfac {

// All rows; `scales` and `zeros` are [rows, n], or null.
struct Elimination {
  const double* weight;  // [rows, n], as `dropped` and `result`
  int64_t weight_stride;
  const double* inverse;  // [n, n]
  int64_t inverse_stride;
  const bool* dropped;
  int64_t dropped_stride;
  int64_t n, count, keep, group;
  const double* scales;
  int64_t scales_stride;
  const double* zeros;
  int64_t zeros_stride;
  double levels;
  int64_t* order;  // [rows, count], as `losses`
  double* losses;
  double* result;
};

struct ObsEliminateKernels {
  int64_t (*numbers)(int64_t n);   // doubles that a row may use
  int64_t (*integers)(int64_t n);  // and integers
  void (*eliminate)(const Elimination& elimination, int64_t row, double* numbers, int64_t* integers);
};

using ObsEliminateRoom = Instances<ObsEliminateKernels>;

}  // namespace mfac
