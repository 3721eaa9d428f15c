// The CPU kernel of obs_sweep_: rows [begin, end) of a block of columns.
#pragma once

#include "cpu/instances.h"

namespace mfac {

// A block of `width` columns; `scales` and `zeros` have an entry a row, or are null.
struct Sweep {
  double* weight;  // [rows, width], as `carried` and `kept`
  int64_t weight_stride;
  double* carried;
  int64_t carried_stride;
  const double* factor;  // [width, width]
  int64_t factor_stride;
  bool* kept;
  int64_t kept_stride;
  int64_t width, keep, group;
  const double *scales, *zeros;
  double levels;
};

struct ObsSweepKernels {
  int64_t panel_rows;  // that go side by side
  // scratch: 4·width·panel_rows
  void (*sweep)(const Sweep& sweep, int64_t begin, int64_t end, double* scratch);
};

using ObsSweepRoom = Instances<ObsSweepKernels>;

}  // namespace mfac
