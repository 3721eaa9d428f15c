// A tile of 64 x 64 float64 in the registers of a block of threads: products of panels are added to
// it, and it is factored or solved where it lies, row after row.
#pragma once

#include "cuda/reduce.cuh"
#include "curvature/block_fisher/block_fisher_cuda.h"

namespace mfac::cuda {

constexpr int kTileThreads = 256;
constexpr int kTileBlocks = 3;                // on a multiprocessor: while one waits for its next row, others multiply
constexpr int kPanelDepth = 32;               // of a panel in shared memory
constexpr int kPanelStride = kBlockTile + 1;  // odd: entries one above the other lie in different banks
constexpr int kOwn = 4;                       // rows, and columns, of a thread
constexpr int kRowStep = 4, kColumnStep = 8;  // between them: a warp's lanes are neighbours
constexpr int kBand = kOwn * kRowStep;        // rows of a warp, which has half of the columns

// Two panels of kPanelDepth rows, left and right, or one tile.
using Panels = double[kBlockTile][kPanelStride];
using Tile = double[kOwn][kOwn];

MFAC_DEVICE int least(int64_t a, int64_t b) { return int(a < b ? a : b); }

// Which entries of a tile a thread owns: rows row + kRowStep·r, columns column + kColumnStep·c.
struct Place {
  int band, row, column;

  MFAC_DEVICE Place() {
    const int thread = threadIdx.x, warp = thread / kWarp, lane = thread % kWarp;
    band = warp / 2;
    row = band * kBand + lane / kColumnStep;
    column = warp % 2 * (kOwn * kColumnStep) + lane % kColumnStep;
  }
  MFAC_DEVICE int row_of(int r) const { return row + kRowStep * r; }
  MFAC_DEVICE int column_of(int c) const { return column + kColumnStep * c; }

  // Whether the warp owns any entry of a tile of rows x cols and, if it is on the diagonal, any
  // that is not below it.
  MFAC_DEVICE bool is_needed(int rows, int cols, bool on_diagonal) const {
    const int first_row = band * kBand, first_column = column / (kOwn * kColumnStep) * (kOwn * kColumnStep);
    return first_row < rows && first_column < cols && !(on_diagonal && first_row >= first_column + kOwn * kColumnStep);
  }
};

// One factor of a product over a depth: its entry (k, i) is data[k·stride + i], or
// data[i·stride + k] where rows lie along the depth.
template <typename T>
struct Panel {
  const T* data;
  int64_t stride;
  int count;
};

template <bool along_depth, typename T>
MFAC_DEVICE void load_panel(const Panel<T>& from, int64_t first, int depth, double (*panel)[kPanelStride]) {
  constexpr int kAlong = along_depth ? kPanelDepth : kBlockTile, kStep = kTileThreads / kAlong;
  const int along = threadIdx.x % kAlong, begin = threadIdx.x / kAlong;
  const T* data = from.data + (along_depth ? first : first * from.stride) + begin * from.stride + along;
#pragma unroll 4
  for (int turn = 0; turn < kPanelDepth * kBlockTile / kTileThreads; ++turn) {
    const int across = begin + turn * kStep, k = along_depth ? along : across, i = along_depth ? across : along;
    panel[k][i] = k < depth && i < from.count ? double(*data) : 0.0;
    data += kStep * from.stride;
  }
}

// tile[i, j] ± Σ_k left(k, i)·right(k, j). Every thread of the block calls it; `panels` are free
// before, and free to be written after the next barrier.
template <bool along_depth, bool subtract, typename T>
MFAC_DEVICE void add_products(const Panel<T>& left, const Panel<T>& right, int64_t depth, const Place& at, bool needed,
                              Panels& panels, Tile& tile) {
  const bool same = left.data == right.data;
  double (*const panel_i)[kPanelStride] = panels;
  double (*const panel_j)[kPanelStride] = same ? panels : panels + kPanelDepth;
  for (int64_t first = 0; first < depth; first += kPanelDepth) {
    const int steps = least(depth - first, kPanelDepth);
    if (first > 0) __syncthreads();
    load_panel<along_depth>(left, first, steps, panel_i);
    if (!same) load_panel<along_depth>(right, first, steps, panel_j);
    __syncthreads();
    if (!needed) continue;
#pragma unroll 1
    for (int k = 0; k < steps; ++k) {
      double x[kOwn], y[kOwn];
#pragma unroll
      for (int r = 0; r < kOwn; ++r) x[r] = subtract ? -panel_i[k][at.row_of(r)] : panel_i[k][at.row_of(r)];
#pragma unroll
      for (int c = 0; c < kOwn; ++c) y[c] = panel_j[k][at.column_of(c)];
#pragma unroll
      for (int r = 0; r < kOwn; ++r)
#pragma unroll
        for (int c = 0; c < kOwn; ++c) tile[r][c] += x[r] * y[c];
    }
  }
}

// What the elimination of a tile shares: rows as they become final, in turn, so that one barrier a
// row is enough; and the inverse of the diagonal of R.
struct Elimination {
  double row[2][kBlockTile];
  double inverse[kBlockTile];
};

// On the diagonal (`factors`): the tile, symmetric, becomes the upper R of RᵀR; junk below the
// diagonal. -1, or the failing pivot, the same in every thread. Off it: the tile B becomes R⁻ᵀB,
// for R and the inverse of its diagonal in shared memory. `count` rows are eliminated.
template <bool factors>
MFAC_DEVICE int eliminate(int count, const Place& at, bool needed, const Panels& upper, Elimination& shared,
                          Tile& tile) {
  const int thread = threadIdx.x;
#pragma unroll 1
  for (int band = 0; band * kBand < count; ++band) {
#pragma unroll
    for (int own = 0; own < kOwn; ++own) {
#pragma unroll 1
      for (int step = 0; step < kRowStep; ++step) {
        const int i = band * kBand + own * kRowStep + step;
        if (i >= count) break;
        double* row = shared.row[i % 2];
        if (at.band == band && at.row == band * kBand + step) {
#pragma unroll
          for (int c = 0; c < kOwn; ++c) {
            if (!factors) tile[own][c] *= shared.inverse[i];
            row[at.column_of(c)] = tile[own][c];
          }
        }
        __syncthreads();
        double inverse = 1;
        if (factors) {
          // Rows stay unscaled, as in LDLᵀ, until the end: a root less between one pivot and the
          // next.
          const double pivot = row[i];
          if (!(pivot > 0)) return i;  // also catches NaN
          if (thread == 0) shared.inverse[i] = pivot;
          inverse = 1 / pivot;
        }
        if (!needed || at.band < band) continue;
        double y[kOwn];
#pragma unroll
        for (int c = 0; c < kOwn; ++c) y[c] = row[at.column_of(c)];
#pragma unroll
        for (int r = 0; r < kOwn; ++r) {
          if (at.row_of(r) <= i) continue;
          const double x = factors ? -row[at.row_of(r)] * inverse : -upper[i][at.row_of(r)];
#pragma unroll
          for (int c = 0; c < kOwn; ++c) tile[r][c] += x * y[c];
        }
      }
    }
  }
  if (factors) {
    __syncthreads();
    if (thread < count) shared.inverse[thread] = 1 / sqrt(shared.inverse[thread]);
    __syncthreads();
#pragma unroll
    for (int r = 0; r < kOwn; ++r)
#pragma unroll
      for (int c = 0; c < kOwn; ++c)
        if (at.row_of(r) < count) tile[r][c] *= shared.inverse[at.row_of(r)];
  }
  return -1;
}

// tile <- R⁻ᵀ tile for the `count` x `count` tile on the diagonal that R begins with. Every thread
// of the block calls it.
MFAC_DEVICE void solve_tile(const double* upper, int64_t stride, int count, const Place& at, bool needed,
                            Panels& panels, Elimination& shared, Tile& tile) {
  __syncthreads();
  for (int e = threadIdx.x; e < kBlockTile * kBlockTile; e += kTileThreads) {
    const int i = e / kBlockTile, j = e % kBlockTile;
    const double x = i <= j && j < count ? upper[i * stride + j] : 0.0;
    panels[i][j] = x;
    if (i == j) shared.inverse[i] = 1 / x;
  }
  __syncthreads();
  eliminate<false>(count, at, needed, panels, shared, tile);
}

}  // namespace mfac::cuda
