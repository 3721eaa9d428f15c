// CUDA kernel of block_inverse_diagonal: column norms of X = R⁻ᵀB, where B is G_b (dual) or the
// unit matrix (primal).
#pragma once

#include "curvature/block_fisher/block_tile.cuh"

namespace mfac::cuda {

// (1 - s)/λ for s = ‖X_:j‖² of a column of the window; where the subtraction cancels at least
// 1/F_jj, which bounds it from below.
template <typename T>
MFAC_DEVICE double dual_diagonal(const T* column, int64_t stride, int64_t rank, double damping, double num_terms,
                                 double s) {
  double rest = 1 - s;
  if (rest < kCancelled) {
    double sum = 0;
    for (int64_t r = 0; r < rank; ++r) {
      const double x = column[r * stride];
      sum += x * x;
    }
    const double least_rest = damping / (damping + sum / num_terms);
    if (rest < least_rest) rest = least_rest;
  }
  return rest / damping;
}

// Adds the squares of a tile of X, which is zero beyond the matrix, to the sums of a thread's
// columns.
MFAC_DEVICE void add_squares(const Tile& tile, double (&sums)[kOwn]) {
#pragma unroll
  for (int c = 0; c < kOwn; ++c)
#pragma unroll
    for (int r = 0; r < kOwn; ++r) sums[c] += tile[r][c] * tile[r][c];
}

// Thread j < kBlockTile returns the sum of column j. `of_band`: free before, and after the next
// barrier.
MFAC_DEVICE double column_sum(double (&sums)[kOwn], const Place& at,
                              double (&of_band)[kBlockTile / kBand][kBlockTile]) {
#pragma unroll
  for (int c = 0; c < kOwn; ++c) {
#pragma unroll
    for (int bits = kColumnStep; bits < kWarp; bits *= 2) sums[c] += __shfl_xor_sync(kAllLanes, sums[c], bits);
    if (at.row == at.band * kBand) of_band[at.band][at.column_of(c)] = sums[c];
  }
  __syncthreads();
  double total = 0;
  if (threadIdx.x < kBlockTile) {
#pragma unroll
    for (int band = 0; band < kBlockTile / kBand; ++band) total += of_band[band][threadIdx.x];
  }
  return total;
}

// out[j] <- (1 - ‖X_:j‖²)/λ (dual) or ‖X_:j‖² (primal).
// A block of threads owns 64 columns of a Fisher block, and others a grid further on, and of X a
// tile of 64 x 64 at a time; a thread 4 x 4 entries of the tile; shared memory: two panels of
// 32 x 64 that are multiplied, or a tile of R (33 KiB), rows of X and sums (3.5 KiB). Tiles of X
// above the one at hand lie in scratch, [blocks of threads, order, 64].
template <typename T>
MFAC_KERNEL(kTileThreads, kTileBlocks)
block_inverse_diagonal_kernel(const T* __restrict__ window, int64_t stride, Blocks blocks,
                              const double* __restrict__ factors, double damping, double num_terms,
                              double* __restrict__ out, double* scratch) {
  MFAC_SHARED(double, panels, [kBlockTile][kPanelStride]);
  MFAC_SHARED(Elimination, shared, [1]);
  MFAC_SHARED(double, of_band, [kBlockTile / kBand][kBlockTile]);
  const Place at;
  const int64_t stored = blocks.order(), tiles = ceil_div(blocks.block_size, kBlockTile);
  scratch += blockIdx.x * stored * kBlockTile;
  for (int64_t task = blockIdx.x; task < blocks.count() * tiles; task += gridDim.x) {
    const int64_t b = task / tiles, q = task % tiles * kBlockTile, order = blocks.order(b);
    if (q >= blocks.cols(b)) continue;
    const bool dual = blocks.is_dual(b);
    const int cols = least(blocks.cols(b) - q, kBlockTile);
    const T* columns = window + blocks.begin(b) + q;
    const double* factor = factors + b * stored * stored;
    double sums[kOwn] = {};
    const int64_t top = dual ? 0 : q;  // the unit matrix is zero above
    for (int64_t p = top; p < order; p += kBlockTile) {
      const int rows = least(order - p, kBlockTile);
      const bool needed = at.is_needed(rows, cols, false);
      Tile tile;
#pragma unroll
      for (int r = 0; r < kOwn; ++r)
#pragma unroll
        for (int c = 0; c < kOwn; ++c) {
          const int i = at.row_of(r), j = at.column_of(c);
          if (i >= rows || j >= cols) tile[r][c] = 0;
          else tile[r][c] = dual ? double(columns[(p + i) * stride + j]) : double(p == q && i == j);
        }
      __syncthreads();
      const Panel<double> left{factor + top * stored + p, stored, rows}, right{scratch, kBlockTile, cols};
      add_products<false, true>(left, right, p - top, at, needed, panels, tile);
      solve_tile(factor + p * stored + p, stored, rows, at, needed, panels, shared[0], tile);
      add_squares(tile, sums);
      if (p + kBlockTile >= order) continue;
#pragma unroll
      for (int r = 0; r < kOwn; ++r)
#pragma unroll
        for (int c = 0; c < kOwn; ++c) scratch[(p - top + at.row_of(r)) * kBlockTile + at.column_of(c)] = tile[r][c];
    }
    const double s = column_sum(sums, at, of_band);
    const int j = threadIdx.x;
    if (j >= cols) continue;
    out[blocks.begin(b) + q + j] = dual ? dual_diagonal(columns + j, stride, blocks.rank, damping, num_terms, s) : s;
  }
}

}  // namespace mfac::cuda
