// CUDA kernel of block_factor: the matrix of a diagonal block is formed, factored and written a
// tile at a time, from the rows of R above it (left-looking), so that it goes through global memory
// once, as R.
#pragma once

#include "curvature/block_fisher/block_tile.cuh"

namespace mfac::cuda {

// Zeros into what no tile on or above the diagonal covers: left of the tiles on it and beyond the
// order.
MFAC_DEVICE void clear_outside(double* factor, int64_t stride, int64_t order) {
  for (int64_t i = threadIdx.x / kWarp; i < stride; i += kTileThreads / kWarp) {
    const int64_t begin = i < order ? i / kBlockTile * kBlockTile : stride;
    for (int64_t j = threadIdx.x % kWarp; j < stride; j += kWarp)
      if (j < begin || j >= order) factor[i * stride + j] = 0;
  }
}

MFAC_DEVICE void clear_rows(double* factor, int64_t stride, int64_t first) {
  for (int64_t e = first * stride + threadIdx.x; e < stride * stride; e += kTileThreads) factor[e] = 0;
}

// The columns of the window that one Fisher block has.
template <typename T>
struct BlockColumns {
  const T* data;
  int64_t stride, rank, cols;
  bool is_dual;
};

// Tile (p, q) of nλI + G_b G_bᵀ or λI + G_bᵀ G_b / n, for its first row and column.
template <typename T>
MFAC_DEVICE void form_tile(const BlockColumns<T>& block, int64_t p, int rows, int64_t q, int cols, double damping,
                           double num_terms, const Place& at, bool needed, Panels& panels, Tile& tile) {
  if (block.is_dual) {
    const Panel<T> left{block.data + p * block.stride, block.stride, rows};
    const Panel<T> right{block.data + q * block.stride, block.stride, cols};
    add_products<true, false>(left, right, block.cols, at, needed, panels, tile);
  } else {
    const Panel<T> left{block.data + p, block.stride, rows}, right{block.data + q, block.stride, cols};
    add_products<false, false>(left, right, block.rank, at, needed, panels, tile);
  }
  // Sixteen divisions would take more registers than the whole kernel has.
  const double scale = block.is_dual ? 1.0 : 1 / num_terms, shift = block.is_dual ? num_terms * damping : damping;
#pragma unroll
  for (int r = 0; r < kOwn; ++r)
#pragma unroll
    for (int c = 0; c < kOwn; ++c) {
      tile[r][c] *= scale;
      if (p == q && at.row_of(r) == at.column_of(c)) tile[r][c] += shift;
    }
}

// -1, or the failing pivot: from its tile on R is then zero.
template <typename T>
MFAC_DEVICE int64_t factor_block(const BlockColumns<T>& block, int64_t order, double damping, double num_terms,
                                 Panels& panels, Elimination& shared, double* factor, int64_t stride) {
  const Place at;
  for (int64_t p = 0; p < order; p += kBlockTile) {
    const int rows = least(order - p, kBlockTile);
    for (int64_t q = p; q < order; q += kBlockTile) {
      const int cols = least(order - q, kBlockTile);
      const bool needed = at.is_needed(rows, cols, p == q);
      Tile tile = {};
      __syncthreads();
      form_tile(block, p, rows, q, cols, damping, num_terms, at, needed, panels, tile);
      __syncthreads();
      const Panel<double> left{factor + p, stride, rows}, right{factor + q, stride, cols};
      add_products<false, true>(left, right, p, at, needed, panels, tile);
      if (p == q) {
        const int failed = eliminate<true>(rows, at, needed, panels, shared, tile);
        if (failed >= 0) {
          clear_rows(factor, stride, p);
          return p + failed;
        }
      } else {
        solve_tile(factor + p * stride + p, stride, rows, at, needed, panels, shared, tile);
      }
#pragma unroll
      for (int r = 0; r < kOwn; ++r)
#pragma unroll
        for (int c = 0; c < kOwn; ++c) {
          const int i = at.row_of(r), j = at.column_of(c);
          if (i < rows && j < cols) factor[(p + i) * stride + q + j] = p == q && i > j ? 0.0 : tile[r][c];
        }
    }
  }
  return -1;
}

// factors[b] <- R, failed[b] <- -1 or the failing pivot.
// A block of threads owns a Fisher block and, of its matrix, a tile of 64 x 64 at a time; a thread
// 4 x 4 entries of the tile; shared memory: two panels of 32 x 64 that are multiplied, or a tile of
// R (33 KiB), and rows of R (1.5 KiB).
template <typename T>
MFAC_KERNEL(kTileThreads, kTileBlocks)
block_factor_kernel(const T* __restrict__ window, int64_t stride, Blocks blocks, double damping, double num_terms,
                    double* factors, int64_t* __restrict__ failed) {
  MFAC_SHARED(double, panels, [kBlockTile][kPanelStride]);
  MFAC_SHARED(Elimination, shared, [1]);
  const int64_t stored = blocks.order();
  for (int64_t b = blockIdx.x; b < blocks.count(); b += gridDim.x) {
    const BlockColumns<T> block{window + blocks.begin(b), stride, blocks.rank, blocks.cols(b), blocks.is_dual(b)};
    clear_outside(factors + b * stored * stored, stored, blocks.order(b));
    const int64_t pivot = factor_block(block, blocks.order(b), damping, num_terms, panels, shared[0],
                                       factors + b * stored * stored, stored);
    if (threadIdx.x == 0) failed[b] = pivot;
  }
}

}  // namespace mfac::cuda
