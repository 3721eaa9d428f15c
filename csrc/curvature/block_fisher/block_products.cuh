// CUDA kernels of block_ihvp and block_matvec.
#pragma once

#include "cuda/reduce.cuh"
#include "curvature/block_fisher/block_fisher_cuda.h"

namespace mfac::cuda {

constexpr int kProductThreads = 128;
constexpr int kProductBlocks = 7;  // on a multiprocessor: while one solves, which one warp does, others read the window
constexpr int kProductWarps = kProductThreads / kWarp;
constexpr int kDotRows = 4;  // of a warp at a time: as many loads are under way

using SolveTile = double[kWarp][kWarp + 1];

// c[r] <- (G_b v)_r / divisor for `rows` rows. A warp takes four rows at a time.
template <typename T>
MFAC_DEVICE void dot_rows(const T* __restrict__ window, int64_t stride, int64_t rows, int64_t cols,
                          const double* __restrict__ v, double divisor, double* c) {
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  for (int64_t row = warp * kDotRows; row < rows; row += kProductWarps * kDotRows) {
    double sum[kDotRows] = {};
#pragma unroll 2
    for (int64_t j = lane; j < cols; j += kWarp) {
#pragma unroll
      for (int r = 0; r < kDotRows; ++r)
        if (row + r < rows) sum[r] += double(window[(row + r) * stride + j]) * v[j];
    }
#pragma unroll
    for (int r = 0; r < kDotRows; ++r) {
      const double total = warp_sum(sum[r]);
      if (lane == 0 && row + r < rows) c[row + r] = total / divisor;
    }
  }
}

// Σ_r c[r]·G_b[r, j] for one column.
template <typename T>
MFAC_DEVICE double column_dot(const T* __restrict__ column, int64_t stride, int64_t rows, const double* c) {
  double sum = 0;
#pragma unroll 8
  for (int64_t r = 0; r < rows; ++r) sum += c[r] * double(column[r * stride]);
  return sum;
}

// The tile of R on the diagonal from `first` on, a unit matrix beyond R. What is zero in R is not
// read.
MFAC_DEVICE void load_solve_tile(const double* __restrict__ upper, int64_t stride, int64_t first, int count,
                                 SolveTile& tile) {
  const int j = threadIdx.x % kWarp;
  int i = threadIdx.x / kWarp;
  const double* from = upper + (first + i) * stride + first + j;
#pragma unroll
  for (int turn = 0; turn < kWarp / kProductWarps; ++turn) {
    tile[i][j] = i <= j && j < count ? *from : double(i == j);
    i += kProductWarps;
    from += kProductWarps * stride;
  }
}

// x <- tile⁻ᵀx, or tile⁻¹x, for an upper tile, by one warp, a lane an entry.
template <bool transposed>
MFAC_DEVICE double solve_lane(const SolveTile& tile, double x) {
  const int lane = threadIdx.x % kWarp;
  const double inverse = 1 / tile[lane][lane];
#pragma unroll 8
  for (int turn = 0; turn < kWarp; ++turn) {
    const int p = transposed ? turn : kWarp - 1 - turn;
    const double solved = __shfl_sync(kAllLanes, x * inverse, p);
    if (transposed ? lane > p : lane < p) x -= (transposed ? tile[p][lane] : tile[lane][p]) * solved;
  }
  return x * inverse;
}

// c <- R⁻¹ R⁻ᵀ c, in tiles of 32. Every thread of the block calls it; c is complete in all threads
// after the call.
MFAC_DEVICE void solve_block(const double* __restrict__ upper, int64_t stride, int64_t order, SolveTile& tile,
                             double* c) {
  const int thread = threadIdx.x, warp = thread / kWarp, lane = thread % kWarp;
  for (int64_t first = 0; first < order; first += kWarp) {
    const int count = int(order - first < kWarp ? order - first : kWarp);
    __syncthreads();
    load_solve_tile(upper, stride, first, count, tile);
    __syncthreads();
    if (warp == 0) {
      const double x = solve_lane<true>(tile, lane < count ? c[first + lane] : 0.0);
      if (lane < count) c[first + lane] = x;
    }
    __syncthreads();
    for (int64_t j = first + kWarp + thread; j < order; j += kProductThreads) {
      double sum = c[j];
#pragma unroll 4
      for (int p = 0; p < kWarp; ++p) sum -= upper[(first + p) * stride + j] * c[first + p];
      c[j] = sum;
    }
  }
  for (int64_t first = (order - 1) / kWarp * kWarp; first >= 0; first -= kWarp) {
    const int count = int(order - first < kWarp ? order - first : kWarp);
    __syncthreads();
    load_solve_tile(upper, stride, first, count, tile);
    for (int i = warp; i < count; i += kProductWarps) {
      double sum = 0;
#pragma unroll 4
      for (int64_t j = first + kWarp + lane; j < order; j += kWarp) sum += upper[(first + i) * stride + j] * c[j];
      sum = warp_sum(sum);
      if (lane == 0) c[first + i] -= sum;
    }
    __syncthreads();
    if (warp == 0) {
      const double x = solve_lane<false>(tile, lane < count ? c[first + lane] : 0.0);
      if (lane < count) c[first + lane] = x;
    }
  }
  __syncthreads();
}

// out[i] <- (v_i - G_bᵀ C_b⁻¹ G_b v_i)/λ (dual) or F_b⁻¹ v_i (primal).
// A block of threads owns a Fisher block and a vector, neighbours the same Fisher block; a warp
// every fourth four rows of G_b v, then a thread every 128th column; shared memory: G_b v or, of a
// primal block, the vector itself, up to 1024 entries (8 KiB), and a tile of R (8.25 KiB). What is
// longer lies in scratch (dual) or in `out` (primal).
template <typename T>
MFAC_KERNEL(kProductThreads, kProductBlocks)
block_ihvp_kernel(const T* __restrict__ window, int64_t stride, Blocks blocks, const double* __restrict__ factors,
                  const double* __restrict__ vectors, int64_t k, double damping, double* out, double* scratch) {
  MFAC_SHARED(double, shared_c, [kSharedOrder]);
  MFAC_SHARED(double, tile, [kWarp][kWarp + 1]);
  const int64_t stored = blocks.order(), rank = blocks.rank;
  for (int64_t task = blockIdx.x; task < blocks.count() * k; task += gridDim.x) {
    const int64_t b = task / k, first = task % k * blocks.dim + blocks.begin(b);
    const int64_t cols = blocks.cols(b), order = blocks.order(b);
    const T* columns = window + blocks.begin(b);
    const double *factor = factors + b * stored * stored, *v = vectors + first;
    double* result = out + first;
    __syncthreads();
    if (blocks.is_dual(b)) {
      double* c = order <= kSharedOrder ? shared_c : scratch + task * rank;
      dot_rows(columns, stride, rank, cols, v, 1.0, c);
      solve_block(factor, stored, order, tile, c);
      for (int64_t j = threadIdx.x; j < cols; j += kProductThreads)
        result[j] = (v[j] - column_dot(columns + j, stride, rank, c)) / damping;
    } else {
      double* c = order <= kSharedOrder ? shared_c : result;
      for (int64_t j = threadIdx.x; j < cols; j += kProductThreads) c[j] = v[j];
      solve_block(factor, stored, order, tile, c);
      if (c != result)
        for (int64_t j = threadIdx.x; j < cols; j += kProductThreads) result[j] = c[j];
    }
  }
}

// out[i] <- λv_i + G_bᵀ (G_b v_i)/n.
// A block of threads owns a Fisher block and a vector, neighbours the same Fisher block; a warp
// every fourth four rows of G_b v, then a thread every 128th column; shared memory: 1024 entries of
// G_b v (8 KiB), so many rows at a time.
template <typename T>
MFAC_KERNEL(kProductThreads, kProductBlocks)
block_matvec_kernel(const T* __restrict__ window, int64_t stride, Blocks blocks, const double* __restrict__ vectors,
                    int64_t k, double damping, double num_terms, double* __restrict__ out) {
  MFAC_SHARED(double, c, [kSharedOrder]);
  for (int64_t task = blockIdx.x; task < blocks.count() * k; task += gridDim.x) {
    const int64_t b = task / k, first = task % k * blocks.dim + blocks.begin(b), cols = blocks.cols(b);
    const double* v = vectors + first;
    double* result = out + first;
    for (int64_t j = threadIdx.x; j < cols; j += kProductThreads) result[j] = damping * v[j];
    for (int64_t row = 0; row < blocks.rank; row += kSharedOrder) {
      const int64_t rows = blocks.rank - row < kSharedOrder ? blocks.rank - row : kSharedOrder;
      const T* columns = window + row * stride + blocks.begin(b);
      __syncthreads();
      dot_rows(columns, stride, rows, cols, v, num_terms, c);
      __syncthreads();
      for (int64_t j = threadIdx.x; j < cols; j += kProductThreads)
        result[j] += column_dot(columns + j, stride, rows, c);
    }
  }
}

}  // namespace mfac::cuda
