// Launcher of the CUDA twin of obs_sweep_: pointers to device memory, a stream, the launch's error.
#pragma once

#include "common/formats.h"

namespace mfac::cuda {

// weight, carried and kept [rows, width], factor [width, width]; scales and zeros [rows] or null.
struct SweepArguments {
  double* weight;
  int64_t weight_stride;
  double* carried;
  int64_t carried_stride;
  const double* factor;
  int64_t factor_stride;
  bool* kept;
  int64_t kept_stride;
  int64_t rows, width;
  int keep, group;
  const double *scales, *zeros;
  double levels;
};

int obs_sweep(const SweepArguments& sweep, void* stream);

}  // namespace mfac::cuda
