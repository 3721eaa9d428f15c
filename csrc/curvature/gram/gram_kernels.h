// The CPU kernels of gram, in float64.
#pragma once

#include "cpu/instances.h"

namespace mfac {

template <typename T>
struct GramKernels {
  int64_t panel_rows, tile_rows;
  // Packs columns of `panel_rows` rows as [cols][panel_rows], zero below the last row.
  void (*pack)(const T* window, int64_t stride, int64_t rows, int64_t cols, double* panel);
  // sums[i, j] += Σ_k a[k, i]·b[k, j] for the first `tile_rows` rows i of a packed panel and at
  // least the first `cols` of another, of which sums has room for `panel_rows`. Panels have rows of
  // `panel_rows`, sums of `stride`.
  void (*tile)(const double* a, const double* b, int64_t cols, int64_t depth, double* sums, int64_t stride);
};

using GramRoom = ForVectors<GramKernels>;

}  // namespace mfac
