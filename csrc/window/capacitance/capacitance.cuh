// CUDA kernels of the capacitance: symmetric m x m matrices in float64 of which only the lower
// triangle is read and written, each entry once a kernel.
#pragma once

#include "cuda/reduce.cuh"
#include "window/capacitance/capacitance_cuda.h"

namespace mfac::cuda {

constexpr int kTileThreads = 256, kVectorThreads = 1024;
constexpr int kTileSide = kTriangleTile, kTileParts = kTileThreads / kTileSide, kPartSide = kTileSide / kTileParts;

// `count` vectors of m entries as sums that are taken where they are read: base + Σ_p parts[p],
// each [count, m].
struct Terms {
  const double* base;  // or null
  const double* parts;
  int64_t parts_count;
};

// Entry `at` of [count, m] = `size` entries.
MFAC_DEVICE double sum_of(const Terms& terms, int64_t size, int64_t at) {
  double sum = 0;
#pragma unroll 4
  for (int64_t p = 0; p < terms.parts_count; ++p) sum += terms.parts[p * size + at];
  return terms.base == nullptr ? sum : terms.base[at] + sum;
}

// The tile of the lower triangle that a block takes: rows from 64 i, columns from 64 j, j <= i.
struct TriangleTile {
  int64_t i, j;
  bool exists;
};

MFAC_DEVICE TriangleTile triangle_tile(int64_t block, int64_t tiles) {
  const int64_t pair = block / (tiles + 1), place = block % (tiles + 1), longer = tiles - pair;
  if (place < longer) return {longer - 1, place, true};
  return {pair, place - longer, 2 * pair + 1 != tiles};
}

MFAC_DEVICE double lower_entry(const double* lower, int64_t m, int64_t i, int64_t j) {
  return i < j ? lower[j * m + i] : lower[i * m + j];
}

// partial[p, v] <- the part of A x_v that the tiles in row or column p hold: tile·x for the rows of
// a tile (i, j) in part j, tileᵀ·x for its columns in part i. `left_out`: an entry of x taken for
// zero, or -1.
// A block owns one tile and one vector, the vectors of a tile being neighbours, so that it is in
// cache; a thread every fourth row of a column, then a quarter of a row; shared memory: the tile,
// its entries of x, and the sums of threads.
static MFAC_KERNEL(kTileThreads)
    symmetric_matvec_kernel(const double* __restrict__ lower, int64_t m, int64_t tiles, int64_t count, Terms x,
                            int64_t left_out, const Refinement* refinements, double* __restrict__ partial) {
  const int64_t vector = blockIdx.x % count, size = count * m;
  const TriangleTile tile = triangle_tile(blockIdx.x / count, tiles);
  if (!tile.exists || (refinements != nullptr && refinements[vector].done != 0)) return;
  MFAC_SHARED(double, entries, [kTileSide][kTileSide + 1]);
  MFAC_SHARED(double, x_of, [2][kTileSide]);
  MFAC_SHARED(double, sums, [2][kTileParts][kTileSide]);
  const int lane = threadIdx.x % kTileSide, part = threadIdx.x / kTileSide;
  const int64_t first_row = tile.i * kTileSide, column = tile.j * kTileSide + lane;

  double own[kPartSide];
#pragma unroll
  for (int q = 0; q < kPartSide; ++q) {
    const int64_t row = first_row + part + q * kTileParts;
    own[q] = row < m && column <= row ? lower[row * m + column] : 0;
  }
  if (part < 2) {
    const int64_t i = part == 0 ? first_row + lane : column;
    x_of[part][lane] = i < m && i != left_out ? sum_of(x, size, vector * m + i) : 0;
  }
  __syncthreads();

  double transposed = 0;
#pragma unroll
  for (int q = 0; q < kPartSide; ++q) {
    const int r = part + q * kTileParts;
    entries[r][lane] = own[q];
    if (tile.i != tile.j || r > lane) transposed += own[q] * x_of[0][r];
  }
  sums[1][part][lane] = transposed;
  __syncthreads();

  double direct = 0;
#pragma unroll
  for (int c = 0; c < kPartSide; ++c) direct += entries[lane][part * kPartSide + c] * x_of[1][part * kPartSide + c];
  sums[0][part][lane] = direct;
  __syncthreads();

  if (part >= 2) return;
  double sum = 0;
#pragma unroll
  for (int p = 0; p < kTileParts; ++p) sum += sums[part][p][lane];
  const int64_t i = part == 0 ? first_row + lane : column;
  if (tile.i != tile.j) {
    if (i < m) partial[(part == 0 ? tile.j : tile.i) * size + vector * m + i] = sum;
  } else if (part == 0 && i < m) {
#pragma unroll
    for (int p = 0; p < kTileParts; ++p) sum += sums[1][p][lane];
    partial[tile.i * size + vector * m + i] = sum;
  }
}

// product[v] <- Σ_p partial[p, v] for the vectors, of `size` entries in all, whose refinement goes
// on.
// A block owns 32 sums; a warp a share of the parts, a thread one of the 32 sums; shared memory: a
// sum for each warp and lane.
static MFAC_KERNEL(kSumWarps* kWarp)
    sum_product_kernel(const double* __restrict__ partial, int64_t tiles, int64_t m, int64_t size,
                       const Refinement* refinements, double* __restrict__ product) {
  const int64_t i = int64_t(blockIdx.x) * kWarp + threadIdx.x % kWarp;
  const bool is_wanted = i < size && (refinements == nullptr || refinements[i / m].done == 0);
  const double sum = sum_of_parts<kSumWarps>(partial, tiles, size, i, is_wanted);
  if (threadIdx.x < kWarp && is_wanted) product[i] = sum;
}

// From A b: a <- column `row` of A, y <- A b - a (aᵀb)/α, the pivot, and what the update asks for.
// One block owns everything; a thread every 1024th entry of the vectors; shared memory: the sums of
// warps.
static MFAC_KERNEL(kVectorThreads)
    replacement_pivot_kernel(const double* __restrict__ inverse, int64_t m, int64_t row,
                             const double* __restrict__ products, double shift, Terms product, double* __restrict__ a,
                             double* __restrict__ y, Replacement* __restrict__ replacement,
                             double* __restrict__ pivot) {
  double ab[1] = {};
  for (int64_t i = threadIdx.x; i < m; i += kVectorThreads) {
    const double entry = lower_entry(inverse, m, i, row);
    a[i] = entry;
    y[i] = sum_of(product, m, i);
    if (i != row) ab[0] += entry * products[i];
  }
  block_sums_everywhere<kVectorThreads>(ab);
  const double alpha = inverse[row * m + row];
  double by[1] = {};
  for (int64_t i = threadIdx.x; i < m; i += kVectorThreads) {
    const double entry = i == row ? 0 : y[i] - a[i] * (ab[0] / alpha);
    y[i] = entry;
    if (i != row) by[0] += products[i] * entry;
  }
  block_sums_everywhere<kVectorThreads>(by);
  if (threadIdx.x != 0) return;
  const double found = products[row] + shift - by[0];
  *replacement = {alpha, found < shift ? shift : found};
  *pivot = found;
}

// A <- A - a aᵀ/α + y yᵀ/s, its row and column `row` <- -y/s and 1/s, those of K <- products.
// A block owns a tile; a thread every fourth row of one column; no shared memory.
static MFAC_KERNEL(kTileThreads)
    replace_kernel(double* __restrict__ inverse, double* __restrict__ gram, int64_t m, int64_t tiles, int64_t row,
                   const double* __restrict__ products, const double* __restrict__ a, const double* __restrict__ y,
                   const Replacement* __restrict__ replacement) {
  const TriangleTile tile = triangle_tile(blockIdx.x, tiles);
  if (!tile.exists) return;
  const int lane = threadIdx.x % kTileSide, part = threadIdx.x / kTileSide;
  const int64_t j = tile.j * kTileSide + lane;
  if (j >= m) return;
  const double of_a = -1 / replacement->alpha, pivot = replacement->clamped_pivot, of_y = 1 / pivot;
  const double a_j = a[j], y_j = y[j];
#pragma unroll
  for (int q = 0; q < kPartSide; ++q) {
    const int64_t i = tile.i * kTileSide + part + q * kTileParts;
    if (i >= m || j > i) continue;
    double& entry = inverse[i * m + j];
    if (i != row && j != row) {
      entry += of_a * a[i] * a_j + of_y * y[i] * y_j;
    } else {
      const int64_t other = i == row ? j : i;
      entry = other == row ? of_y : -y[other] / pivot;
      gram[i * m + j] = products[other];
    }
  }
}

// Takes the next candidate x and its product with K: its residual, and whether it is the best
// solution so far; the first that is not ends the refinement, as does one at rounding.
// A block owns a vector; a thread every 1024th of its entries; shared memory: the sums of warps.
static MFAC_KERNEL(kVectorThreads)
    refine_kernel(const double* __restrict__ gram, int64_t m, double shift, const double* __restrict__ b,
                  Terms candidate, Terms product, bool is_first, Refinement* __restrict__ refinements, double* x,
                  double* residual, double* __restrict__ solutions, double* __restrict__ least_errors) {
  constexpr double kEpsilon = 0x1p-52;
  const int64_t vector = blockIdx.x, from = vector * m, size = gridDim.x * m;
  Refinement state{0, 1, 0, 0};
  if (!is_first) state = refinements[vector];
  if (state.done != 0) return;
  double sums[4] = {};  // ‖x‖², ‖b - C x‖², ‖b‖², tr K
  for (int64_t i = threadIdx.x; i < m; i += kVectorThreads) {
    const double entry = sum_of(candidate, size, from + i), right = b[from + i];
    const double left = right - shift * entry - sum_of(product, size, from + i);
    x[from + i] = entry;
    residual[from + i] = left;
    sums[0] += entry * entry;
    sums[1] += left * left;
    if (is_first) {
      sums[2] += right * right;
      sums[3] += gram[i * m + i];
    }
  }
  block_sums_everywhere<kVectorThreads>(sums);
  if (is_first) {
    state.vector_norm = std::sqrt(sums[2]);
    state.matrix_norm = shift + sums[3];  // >= ‖C‖
  }
  const double scale = state.matrix_norm * std::sqrt(sums[0]) + state.vector_norm;
  const double error = scale == 0 ? 0 : std::sqrt(sums[1]) / scale;
  const bool is_better = error < state.least_error;
  if (is_better || is_first)
    for (int64_t i = threadIdx.x; i < m; i += kVectorThreads) solutions[from + i] = is_better ? x[from + i] : 0;
  if (threadIdx.x != 0) return;
  if (is_better) state.least_error = error;
  state.done = !is_better || error <= kEpsilon;
  refinements[vector] = state;
  least_errors[vector] = state.least_error;
}

// largest [1] <- the largest of `count` numbers that are not negative, 0 of none.
// One block owns them; a thread every 256th; shared memory: the largest of each warp.
static MFAC_KERNEL(kTileThreads) largest_kernel(const double* __restrict__ x, int64_t count, double* largest) {
  double most = 0;
  for (int64_t i = threadIdx.x; i < count; i += kTileThreads) most = x[i] > most ? x[i] : most;
  most = block_max<kTileThreads>(most);
  if (threadIdx.x == 0) *largest = most;
}

}  // namespace mfac::cuda
