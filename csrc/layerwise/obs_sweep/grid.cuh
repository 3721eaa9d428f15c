// The nearest value of a uniform grid, (level - zero)·scale with whole levels from 0 to `levels`.
#pragma once

#include "cuda/simt.h"

namespace mfac::cuda {

MFAC_DEVICE double quantized(double x, double scale, double zero, double levels) {
  double level = rint(x / scale) + zero;
  level = level < 0 ? 0 : level;
  level = level > levels ? levels : level;
  return (level - zero) * scale;
}

}  // namespace mfac::cuda
