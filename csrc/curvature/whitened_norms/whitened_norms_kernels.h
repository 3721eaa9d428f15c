// The CPU kernels of whitened_norms, for a window in T and arithmetic in C.
#pragma once

#include "cpu/instances.h"

namespace mfac {

template <typename T, typename C>
struct WhitenKernels {
  int64_t panel_columns, tile_rows;
  // Packs at most `panel_columns` columns as [rows][panel_columns], zero beyond the last;
  // squares[j] <- Σ_k g_kj².
  void (*pack)(const T* window, int64_t stride, int64_t rows, int64_t cols, C* panel, C* squares);
  // With U_rj = Σ_{k<depth} inverse_factor[k, r]·panel[k, j] for the tile's rows r:
  // norms[j] += Σ_r U_rj² and weighted[j] += Σ_r weights[r]·|U_rj|.
  void (*tile)(const C* inverse_factor, const C* panel, int64_t depth, const C* weights, C* norms, C* weighted);
};

using WhitenedNormsRoom =
    Instances<WhitenKernels<float, float>, WhitenKernels<float, double>, WhitenKernels<double, double>>;

}  // namespace mfac
