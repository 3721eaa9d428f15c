// CUDA kernel of obs_sweep_: a tile of columns is solved in shared memory, a thread a row, and then
// taken to all later columns, a thread a column.
#pragma once

#include "layerwise/obs_sweep/grid.cuh"
#include "layerwise/obs_sweep/obs_sweep_cuda.h"

namespace mfac::cuda {

constexpr int kSweepThreads = 256;
constexpr int kSweepRows = 16;  // of a block
constexpr int kSweepBlocks = 2;  // on a multiprocessor, each with the registers of four
constexpr int kSweepTile = kMostInGroup;
constexpr int kSweepOwn = kSweepRows * kSweepTile / kSweepThreads;  // rows of a thread, of one column

// Of one row, in shared memory: entries of threads side by side lie in different banks.
using SweepRow = double[kSweepTile + 1];

// Whether, of scores one after the other, the later is the higher: NaN is above infinity.
MFAC_DEVICE bool later_is_higher(double earlier, double later) { return later >= earlier || later != later; }

// kept <- which of a group of a row are kept: the highest (u_j R_jj)² with u = w + S R⁻¹. `roots`
// has room for them.
MFAC_DEVICE void choose(const double* factor, int64_t stride, const double* weight, const double* sums, int columns,
                        int keep, double* roots, bool* kept) {
  for (int j = 0; j < columns; ++j) {
    double sum = sums[j];
    for (int i = 0; i < j; ++i) sum -= factor[i * stride + j] * roots[i];
    roots[j] = sum / factor[j * stride + j];
  }
  for (int j = 0; j < columns; ++j) roots[j] = (weight[j] + roots[j]) * factor[j * stride + j];
  for (int j = 0; j < columns; ++j) {
    const double score = roots[j] * roots[j];
    int below = 0;
    for (int i = 0; i < j; ++i) below += later_is_higher(roots[i] * roots[i], score);
    for (int i = j + 1; i < columns; ++i) below += !later_is_higher(score, roots[i] * roots[i]);
    kept[j] = below >= columns - keep;
  }
}

// weight <- q and carried <- S + (w - q) R.
// A block owns 16 rows and goes through their columns in tiles of 64 at most, of whole groups; a
// thread a row of a tile, then four rows of every 64th later column; shared memory: weights, sums
// and scores of a tile, and its mask (25.4 KiB).
MFAC_KERNEL(kSweepThreads, kSweepBlocks)
obs_sweep_kernel(SweepArguments sweep) {
  MFAC_SHARED(SweepRow, weights, [kSweepRows]);
  MFAC_SHARED(SweepRow, sums, [kSweepRows]);
  MFAC_SHARED(SweepRow, roots, [kSweepRows]);
  MFAC_SHARED(bool, mask, [kSweepRows][kSweepTile]);
  const int thread = threadIdx.x;
  const int64_t row = int64_t(blockIdx.x) * kSweepRows;
  const int rows = int(sweep.rows - row < kSweepRows ? sweep.rows - row : kSweepRows);
  const int tile = sweep.keep == 0 ? kSweepTile : kSweepTile / sweep.group * sweep.group;
  double *const weight = sweep.weight + row * sweep.weight_stride,
                *carried = sweep.carried + row * sweep.carried_stride;
  bool* const kept = sweep.kept + row * sweep.kept_stride;
  for (int64_t begin = 0; begin < sweep.width; begin += tile) {
    const int columns = int(sweep.width - begin < tile ? sweep.width - begin : tile);
    const double* factor = sweep.factor + begin * sweep.factor_stride + begin;
    for (int e = thread; e < rows * kSweepTile; e += kSweepThreads) {
      const int r = e / kSweepTile, j = e % kSweepTile;
      if (j >= columns) continue;
      weights[r][j] = weight[r * sweep.weight_stride + begin + j];
      sums[r][j] = carried[r * sweep.carried_stride + begin + j];
      if (sweep.keep == 0) mask[r][j] = kept[r * sweep.kept_stride + begin + j];
    }
    __syncthreads();
    if (thread < rows) {
      const double scale = sweep.scales == nullptr ? 1.0 : sweep.scales[row + thread];
      const double zero = sweep.zeros == nullptr ? 0.0 : sweep.zeros[row + thread];
      double *const w = weights[thread], *const sum = sums[thread];
      for (int j = 0; j < columns; ++j) {
        if (sweep.keep > 0 && j % sweep.group == 0)
          choose(factor + j * sweep.factor_stride + j, sweep.factor_stride, w + j, sum + j,
                 columns - j < sweep.group ? columns - j : sweep.group, sweep.keep, roots[thread], mask[thread] + j);
        const double* of_column = factor + j * sweep.factor_stride;
        const double best = w[j] + sum[j] / of_column[j];
        double q = sweep.scales == nullptr ? best : quantized(best, scale, zero, sweep.levels);
        q = mask[thread][j] ? q : 0.0;
        const double move = w[j] - q;
        sum[j] = (best - q) * of_column[j];  // exactly zero where best itself is kept
        for (int k = j + 1; k < columns; ++k) sum[k] += of_column[k] * move;
        w[j] = q;
      }
    }
    __syncthreads();
    for (int e = thread; e < rows * kSweepTile; e += kSweepThreads) {
      const int r = e / kSweepTile, j = e % kSweepTile;
      if (j >= columns) continue;
      double& at = weight[r * sweep.weight_stride + begin + j];
      const double q = weights[r][j];
      weights[r][j] = at - q;  // the move
      at = q;
      carried[r * sweep.carried_stride + begin + j] = sums[r][j];
      if (sweep.keep > 0) kept[r * sweep.kept_stride + begin + j] = mask[r][j];
    }
    __syncthreads();
    const int first = thread / kSweepTile * kSweepOwn;
    for (int64_t k = columns + thread % kSweepTile; k < sweep.width - begin; k += kSweepTile) {
      double added[kSweepOwn] = {};
      for (int j = 0; j < columns; ++j) {
        const double entry = factor[j * sweep.factor_stride + k];
#pragma unroll
        for (int r = 0; r < kSweepOwn; ++r)
          if (first + r < rows) added[r] += weights[first + r][j] * entry;
      }
#pragma unroll
      for (int r = 0; r < kSweepOwn; ++r)
        if (first + r < rows) carried[(first + r) * sweep.carried_stride + begin + k] += added[r];
    }
    __syncthreads();
  }
}

}  // namespace mfac::cuda
