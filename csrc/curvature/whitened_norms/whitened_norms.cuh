// CUDA kernels of whitened_norms: a triangular matrix product U = L⁻¹G of which only sums over its
// columns are kept, and the weights of their error bound (whitened_norms_bound.h).
#pragma once

#include "cuda/packet.cuh"
#include "cuda/reduce.cuh"
#include "curvature/whitened_norms/whitened_norms_bound.h"
#include "curvature/whitened_norms/whitened_norms_cuda.h"

namespace mfac::cuda {

constexpr int kWeightThreads = 256, kWeightWarps = kWeightThreads / kWarp;

constexpr int kWhitenThreads = 512, kWhitenWarps = kWhitenThreads / kWarp;
// U's rows are taken in panels, and panels in bands: a band of columns of L⁻¹ that lies above the
// diagonal is skipped.
constexpr int kBandRows = 16, kPanelBands = kPanelRows / kBandRows;
static_assert(kPanelRows % kBandRows == 0);
// Two warps side by side have two bands, the first and the last of the bands that are left:
// together as much of the triangle as any other pair of bands. Of either band a thread has kOwnRows
// rows, and of U's columns a packet.
constexpr int kWarpsAside = 2, kWarpsDown = kWhitenWarps / kWarpsAside;
constexpr int kOwnRows = 4, kThreadsDown = kBandRows / kOwnRows, kThreadsAside = kWarp / kThreadsDown;
static_assert(2 * kWarpsDown == kPanelBands);
template <typename C>
constexpr int kWhitenColumns = kWarpsAside * kThreadsAside * kPacket<C>;
// Columns of L⁻¹ at a time, as many rows of the window.
template <typename C>
constexpr int kWhitenDepth = 4 * kPacket<C>;

// Operands as they lie in shared memory.
template <typename C>
struct alignas(kPacketBytes) Operands {
  C x[kPacket<C>];
};

// packed <- L⁻¹ in arithmetic of the products, a panel of its rows after the other, as
// packed_factor says; zeros up to the end of a band. weights[i] <- w_i.
// A block owns eight rows of L⁻¹, a warp one of them, a thread every 32nd entry; no shared memory.
template <typename C>
MFAC_KERNEL(kWeightThreads)
pack_factor_kernel(const double* __restrict__ inverse_factor, int64_t m, C* __restrict__ packed,
                   double* __restrict__ weights) {
  const int64_t i = int64_t(blockIdx.x) * kWeightWarps + threadIdx.x / kWarp;
  const int64_t band_end = (i / kBandRows + 1) * kBandRows, end = band_end < m ? band_end : m;
  packed += packed_factor(i, m);
  double squares = 0;
  for (int64_t k = threadIdx.x % kWarp; k < end; k += kWarp) {
    const double entry = i < m && k <= i ? inverse_factor[i * m + k] : 0.0;
    squares += entry * entry;
    packed[k * kPanelRows] = C(entry);
  }
  squares = warp_sum(squares);
  if (threadIdx.x % kWarp == 0 && i < m) weights[i] = error_weight<C>(i, m, squares);
}

// relative[i] <- w_i in units of the largest; scale <- that unit and Σ w_i².
// One block owns them; a thread every 256th; shared memory: the largest and the sum of each warp.
template <typename C>
MFAC_KERNEL(kWeightThreads)
relative_weights_kernel(const double* __restrict__ weights, int64_t m, C* __restrict__ relative,
                        double* __restrict__ scale) {
  double largest = 0, squares[1] = {};
  for (int64_t i = threadIdx.x; i < m; i += kWeightThreads) {
    const double weight = weights[i];
    largest = weight > largest ? weight : largest;
    squares[0] += weight * weight;
  }
  largest = block_max<kWeightThreads>(largest);
  block_sums_everywhere<kWeightThreads>(squares);
  const double unit = weight_unit(largest);
  for (int64_t i = threadIdx.x; i < m; i += kWeightThreads) relative[i] = C(weights[i] / unit);
  if (threadIdx.x == 0) {
    scale[0] = unit;
    scale[1] = squares[0];
  }
}

// norms[j], errors[j] <- Σ_i U_ij² and its bound. `scale` as above; sums of kSingleDepth products
// join earlier sums. A block owns 64 (float32) or 32 columns, 256 of U's rows at a time; a thread 8
// of the rows and 4 or 2 of the columns; shared memory, all but the sums twice, one to read and one
// to fill: 16 or 8 columns of 256 rows of L⁻¹, the rows of the window that meet them, and the sums
// of warps.
template <typename T, typename C>
MFAC_KERNEL(kWhitenThreads, 1)
whitened_norms_kernel(const T* __restrict__ window, int64_t stride, int64_t m, int64_t d, const C* __restrict__ packed,
                      const C* __restrict__ relative, const double* __restrict__ scale, double* __restrict__ norms,
                      double* __restrict__ errors) {
  constexpr int kPack = kPacket<C>, kWidth = kWhitenColumns<C>, kDepth = kWhitenDepth<C>;
  constexpr int kPanelPacks = kPanelRows / kPack, kRowPacks = kOwnRows / kPack;
  constexpr int kFactorStep = kWhitenThreads / kPanelPacks, kFactorLoads = kDepth / kFactorStep;
  constexpr int kLoaders = kWarpsDown, kWindowLoads = kDepth / kLoaders;
  static_assert(kSingleDepth % kDepth == 0 && kLoaders * kWidth <= kWhitenThreads);
  MFAC_SHARED(Operands<C>, factor_tile, [2][kDepth][kPanelPacks]);  // transposed
  MFAC_SHARED(Operands<C>, window_tile, [2][kDepth][kWidth / kPack]);
  MFAC_SHARED(C, sums, [3][kWarpsDown][kWidth]);
  const int thread = threadIdx.x, warp = thread / kWarp, warp_y = warp / kWarpsAside;
  const int x = warp % kWarpsAside * kThreadsAside + thread % kThreadsAside, y = thread % kWarp / kThreadsAside;
  const int bands[2] = {warp_y, kPanelBands - 1 - warp_y};
  // What it loads: a packet of rows of some columns of L⁻¹'s tile; one column of some rows of the
  // window's.
  const int factor_pack = thread % kPanelPacks, factor_k = thread / kPanelPacks;
  const int lane = thread % kWidth, loader = thread / kWidth;
  const int64_t column = int64_t(blockIdx.x) * kWidth + lane;
  const bool is_loader = loader < kLoaders, is_column = is_loader && column < d;
  window += loader * stride + column;

  C squares = 0;
  for (int64_t first = 0; first < m; first += kPanelRows) {
    const int64_t end = first + kPanelRows < m ? first + kPanelRows : m;
    const int rows = int(end - first);
    const C* __restrict__ factor = packed + packed_factor(first, m) + factor_k * kPanelRows + factor_pack * kPack;
    // Whether a band has rows, and entries of L⁻¹ from column `from` on.
    const auto has_entries = [&](int band, int64_t from) {
      return band * kBandRows < rows && from < first + (band + 1) * kBandRows;
    };
    Operands<C> factor_ahead[kFactorLoads];
    C window_ahead[kWindowLoads];
    const auto fetch = [&](int64_t from) {
      const bool is_entry = has_entries(factor_pack * kPack / kBandRows, from);
#pragma unroll
      for (int q = 0; q < kFactorLoads; ++q) {
        const int64_t k = from + factor_k + q * kFactorStep;
        factor_ahead[q] = Operands<C>{};
        if (is_entry && k < end) load(factor + (from + q * kFactorStep) * kPanelRows, factor_ahead[q].x);
      }
#pragma unroll
      for (int q = 0; q < kWindowLoads; ++q) {
        const int64_t k = from + loader + q * kLoaders;
        window_ahead[q] = is_column && k < end ? C(window[(from + q * kLoaders) * stride]) : C(0);
      }
    };
    const auto keep = [&](int buffer) {
#pragma unroll
      for (int q = 0; q < kFactorLoads; ++q)
        factor_tile[buffer][factor_k + q * kFactorStep][factor_pack] = factor_ahead[q];
      if (!is_loader) return;
#pragma unroll
      for (int q = 0; q < kWindowLoads; ++q) {
        window_tile[buffer][loader + q * kLoaders][lane / kPack].x[lane % kPack] = window_ahead[q];
        if (end == m) squares += window_ahead[q] * window_ahead[q];  // the last panel meets all of the window
      }
    };
    C total[2][kOwnRows][kPack] = {}, sum[2][kOwnRows][kPack] = {};
    fetch(0);
    keep(0);
    __syncthreads();
    int buffer = 0;
    for (int64_t from = 0; from < end; from += kDepth) {
      const bool is_last = from + kDepth >= end;
      if (!is_last) fetch(from + kDepth);
#pragma unroll
      for (int band = 0; band < 2; ++band) {
        if (!has_entries(bands[band], from)) continue;
        const int pack = (bands[band] * kBandRows + y * kOwnRows) / kPack;
#pragma unroll
        for (int k = 0; k < kDepth; ++k) {
          Operands<C> a[kRowPacks];
          const Operands<C> b = window_tile[buffer][k][x];
#pragma unroll
          for (int p = 0; p < kRowPacks; ++p) a[p] = factor_tile[buffer][k][pack + p];
#pragma unroll
          for (int r = 0; r < kOwnRows; ++r)
#pragma unroll
            for (int c = 0; c < kPack; ++c) sum[band][r][c] += a[r / kPack].x[r % kPack] * b.x[c];
        }
      }
      buffer ^= 1;
      if (!is_last) keep(buffer);
      __syncthreads();
      if ((from + kDepth) % kSingleDepth != 0 && !is_last) continue;
#pragma unroll
      for (int band = 0; band < 2; ++band)
#pragma unroll
        for (int r = 0; r < kOwnRows; ++r)
#pragma unroll
          for (int c = 0; c < kPack; ++c) {
            total[band][r][c] += sum[band][r][c];
            sum[band][r][c] = 0;
          }
    }
    C weight[2][kOwnRows];
#pragma unroll
    for (int band = 0; band < 2; ++band)
#pragma unroll
      for (int r = 0; r < kOwnRows; ++r) {
        const int64_t i = first + bands[band] * kBandRows + y * kOwnRows + r;
        weight[band][r] = i < m ? relative[i] : C(0);
      }
    // The rows of threads of a warp join by shuffles, and the sums of earlier panels in shared
    // memory: registers are short.
#pragma unroll
    for (int c = 0; c < kPack; ++c) {
      C norm = 0, weighted = 0;
#pragma unroll
      for (int band = 0; band < 2; ++band)
#pragma unroll
        for (int r = 0; r < kOwnRows; ++r) {
          const C u = total[band][r][c];
          norm += u * u;
          weighted += weight[band][r] * (u < 0 ? -u : u);
        }
#pragma unroll
      for (int by = kThreadsAside; by < kWarp; by *= 2) {
        norm += __shfl_xor_sync(kAllLanes, norm, by);
        weighted += __shfl_xor_sync(kAllLanes, weighted, by);
      }
      const int at = x * kPack + c;
      if (y == 0) {
        sums[0][warp_y][at] = first == 0 ? norm : sums[0][warp_y][at] + norm;
        sums[1][warp_y][at] = first == 0 ? weighted : sums[1][warp_y][at] + weighted;
      }
    }
  }
  if (is_loader) sums[2][loader][lane] = squares;
  __syncthreads();
  if (thread >= kWidth || column >= d) return;
  C s = 0, magnitude = 0;
  squares = 0;
#pragma unroll
  for (int part = 0; part < kWarpsDown; ++part) {
    s += sums[0][part][lane];
    magnitude += sums[1][part][lane];
    squares += sums[2][part][lane];
  }
  norms[column] = s;
  errors[column] = error_bound<C>(m, squares, s, magnitude, scale[0], scale[1]);
}

}  // namespace mfac::cuda
