// CUDA kernels of whitened_norms: a triangular matrix product U = L⁻¹G of which only sums over its columns are kept,
// and the weights of their error bound (whitened_norms_bound.h).
#pragma once

#include "cuda/packet.cuh"
#include "cuda/reduce.cuh"
#include "whitened_norms/whitened_norms_bound.h"
#include "whitened_norms/whitened_norms_cuda.h"

namespace mfac::cuda {

constexpr int kWhitenThreads = 256, kWhitenWarps = kWhitenThreads / kWarp;
constexpr int kWhitenSide = 16;               // threads along either side of a tile of U
constexpr int kWhitenRows = 4 * kWhitenSide;  // of L⁻¹ that a block takes at a time, four a thread
constexpr int kWhitenDepth = 16;              // of its columns, as many rows of the window
static_assert(kSingleDepth % kWhitenDepth == 0);
// Columns of a thread, two packets: sixteen bytes of shared memory a load.
template <typename C>
constexpr int kWhitenColumns = 2 * kPacket<C>;

// Operands as they lie in shared memory.
template <typename C>
struct alignas(kPacketBytes) Operands {
  C x[kPacket<C>];
};

// weights[i] <- w_i.
// A block owns eight rows of L⁻¹, a warp one of them, a thread every 32nd entry; no shared memory.
template <typename C>
MFAC_KERNEL(kWhitenThreads)
error_weights_kernel(const double* __restrict__ inverse_factor, int64_t m, double* __restrict__ weights) {
  const int64_t i = int64_t(blockIdx.x) * kWhitenWarps + threadIdx.x / kWarp;
  if (i >= m) return;
  double squares = 0;
  for (int64_t k = threadIdx.x % kWarp; k <= i; k += kWarp) {
    const double entry = inverse_factor[i * m + k];
    squares += entry * entry;
  }
  squares = warp_sum(squares);
  if (threadIdx.x % kWarp == 0) weights[i] = error_weight<C>(i, m, squares);
}

// relative[i] <- w_i in units of the largest; scale <- that unit and Σ w_i².
// One block owns them; a thread every 256th; shared memory: the largest and the sum of each warp.
template <typename C>
MFAC_KERNEL(kWhitenThreads)
relative_weights_kernel(const double* __restrict__ weights, int64_t m, C* __restrict__ relative,
                        double* __restrict__ scale) {
  double largest = 0, squares[1] = {};
  for (int64_t i = threadIdx.x; i < m; i += kWhitenThreads) {
    const double weight = weights[i];
    largest = weight > largest ? weight : largest;
    squares[0] += weight * weight;
  }
  largest = block_max<kWhitenThreads>(largest);
  block_sums_everywhere<kWhitenThreads>(squares);
  const double unit = weight_unit(largest);
  for (int64_t i = threadIdx.x; i < m; i += kWhitenThreads) relative[i] = C(weights[i] / unit);
  if (threadIdx.x == 0) {
    scale[0] = unit;
    scale[1] = squares[0];
  }
}

// norms[j], errors[j] <- Σ_i U_ij² and its bound. `scale` as above; sums of kSingleDepth products join those before.
// A block owns 128 (float32) or 64 columns, all of U's rows in turn; a thread a tile of 4 rows and 8 or 4 columns;
// shared memory: 16 columns of 64 rows of L⁻¹, the rows of the window that meet them, and the sums of warps.
template <typename T, typename C>
MFAC_KERNEL(kWhitenThreads, 1)
whitened_norms_kernel(const T* __restrict__ window, int64_t stride, int64_t m, int64_t d,
                      const double* __restrict__ inverse_factor, const C* __restrict__ relative,
                      const double* __restrict__ scale, double* __restrict__ norms, double* __restrict__ errors) {
  constexpr int kPack = kPacket<C>, kOwn = kWhitenColumns<C>, kWidth = kWhitenSide * kOwn;
  constexpr int kRowPacks = 4 / kPack, kColumnPacks = kOwn / kPack;
  constexpr int kFactorStep = kWhitenThreads / kWhitenDepth, kFactorLoads = kWhitenRows * kWhitenDepth / kWhitenThreads;
  constexpr int kWindowLoads = kWidth * kWhitenDepth / kWhitenThreads, kLoaders = kWhitenThreads / kWidth;
  MFAC_SHARED(Operands<C>, factor_tile, [kWhitenDepth][kWhitenRows / kPack + 1]);  // transposed; a packet against
  MFAC_SHARED(Operands<C>, window_tile, [kWhitenDepth][kWidth / kPack]);           // conflicts of banks
  MFAC_SHARED(C, sums, [2][kWhitenWarps][kWidth]);
  MFAC_SHARED(C, squares_of, [kLoaders][kWidth]);
  const int thread = threadIdx.x, x = thread % kWhitenSide, y = thread / kWhitenSide;
  // What it loads: column k of every 16th row of L⁻¹'s tile; one column of some rows of the window's.
  const int factor_k = thread % kWhitenDepth, factor_row = thread / kWhitenDepth;
  const int lane = thread % kWidth, loader = thread / kWidth;
  const int64_t column = int64_t(blockIdx.x) * kWidth + lane;
  const bool is_column = column < d;
  const double* __restrict__ factor = inverse_factor + factor_row * m + factor_k;
  window += loader * stride + column;

  C squares = 0;
  for (int64_t first = 0; first < m; first += kWhitenRows) {
    const int64_t end = first + kWhitenRows < m ? first + kWhitenRows : m;
    C factor_ahead[kFactorLoads];
    T window_ahead[kWindowLoads];
    const int rows = int(end - first);
    const auto fetch = [&](int64_t from) {
      const double* factor_from = factor + first * m + from;
      const T* window_from = window + from * stride;
      const int above = int(from - first) + factor_k;
      const int depth = int(end - from < kWhitenDepth ? end - from : kWhitenDepth);
#pragma unroll
      for (int q = 0; q < kFactorLoads; ++q) {
        const int row = factor_row + q * kFactorStep;
        factor_ahead[q] = row < rows && above <= row ? C(factor_from[q * kFactorStep * m]) : C(0);
      }
#pragma unroll
      for (int q = 0; q < kWindowLoads; ++q)
        window_ahead[q] = is_column && loader + q * kLoaders < depth ? window_from[q * kLoaders * stride] : T(0);
    };
    C total[4][kOwn] = {}, sum[4][kOwn] = {};
    fetch(0);
    for (int64_t from = 0; from < end; from += kWhitenDepth) {
#pragma unroll
      for (int q = 0; q < kFactorLoads; ++q) {
        const int row = factor_row + q * kFactorStep;
        factor_tile[factor_k][row / kPack].x[row % kPack] = factor_ahead[q];
      }
#pragma unroll
      for (int q = 0; q < kWindowLoads; ++q) {
        const C entry = C(window_ahead[q]);
        window_tile[loader + q * kLoaders][lane / kPack].x[lane % kPack] = entry;
        if (end == m) squares += entry * entry;  // the last rows meet all of the window
      }
      __syncthreads();
      if (from + kWhitenDepth < end) fetch(from + kWhitenDepth);
#pragma unroll
      for (int k = 0; k < kWhitenDepth; ++k) {
        Operands<C> a[kRowPacks], b[kColumnPacks];
#pragma unroll
        for (int p = 0; p < kRowPacks; ++p) a[p] = factor_tile[k][y * kRowPacks + p];
#pragma unroll
        for (int p = 0; p < kColumnPacks; ++p) b[p] = window_tile[k][p * kWhitenSide + x];
#pragma unroll
        for (int r = 0; r < 4; ++r)
#pragma unroll
          for (int c = 0; c < kOwn; ++c) sum[r][c] += a[r / kPack].x[r % kPack] * b[c / kPack].x[c % kPack];
      }
      __syncthreads();
      if ((from + kWhitenDepth) % kSingleDepth != 0 && from + kWhitenDepth < end) continue;
#pragma unroll
      for (int r = 0; r < 4; ++r)
#pragma unroll
        for (int c = 0; c < kOwn; ++c) {
          total[r][c] += sum[r][c];
          sum[r][c] = 0;
        }
    }
    // The two rows of threads of a warp join by a shuffle, and the sums of those before in shared memory: registers
    // are short.
    C weight[4];
#pragma unroll
    for (int r = 0; r < 4; ++r) {
      const int64_t i = first + y * 4 + r;
      weight[r] = i < m ? relative[i] : C(0);
    }
#pragma unroll
    for (int c = 0; c < kOwn; ++c) {
      C norm = 0, weighted = 0;
#pragma unroll
      for (int r = 0; r < 4; ++r) {
        const C u = total[r][c];
        norm += u * u;
        weighted += weight[r] * (u < 0 ? -u : u);
      }
      norm += __shfl_xor_sync(kAllLanes, norm, kWhitenSide);
      weighted += __shfl_xor_sync(kAllLanes, weighted, kWhitenSide);
      const int at = (c / kPack * kWhitenSide + x) * kPack + c % kPack, warp = thread / kWarp;
      if (y % 2 == 0) {
        sums[0][warp][at] = first == 0 ? norm : sums[0][warp][at] + norm;
        sums[1][warp][at] = first == 0 ? weighted : sums[1][warp][at] + weighted;
      }
    }
  }
  squares_of[loader][lane] = squares;
  __syncthreads();
  if (thread >= kWidth || column >= d) return;
  C s = 0, magnitude = 0;
#pragma unroll
  for (int warp = 0; warp < kWhitenWarps; ++warp) {
    s += sums[0][warp][lane];
    magnitude += sums[1][warp][lane];
  }
  squares = 0;
#pragma unroll
  for (int q = 0; q < kLoaders; ++q) squares += squares_of[q][lane];
  norms[column] = s;
  errors[column] = error_bound<C>(m, squares, s, magnitude, scale[0], scale[1]);
}

}  // namespace mfac::cuda
