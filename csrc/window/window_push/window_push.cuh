// CUDA kernels of window_push_: a row is rounded into the window and its products with every row
// are taken, in one pass.
#pragma once

#include "cuda/packet.cuh"
#include "window/window_push/storable.cuh"
#include "window/window_push/window_push_cuda.h"

namespace mfac::cuda {

constexpr int kPushRows = 8;

// One packet of columns of a block's rows: the gradient's packet is rounded, stored where row `own`
// is among the rows (-1: it is not), and multiplied with the packet of every row; for row `own`
// with itself, as memory still holds the old row.
template <int width, typename T, typename V>
MFAC_DEVICE void push_packet(T* __restrict__ window, int64_t stride, int count, int own, const V* __restrict__ gradient,
                             bool packed, int64_t column, double (&sum)[kPushRows]) {
  T x[kPushRows][width], rounded[width];
  V v[width];
#pragma unroll
  for (int r = 0; r < kPushRows; ++r)
    if (r < count && r != own) load<width>(window + r * stride + column, x[r]);
  load_any<width>(gradient + column, packed, v);
#pragma unroll
  for (int e = 0; e < width; ++e) round_to(v[e], rounded[e]);
  if (own >= 0) store<width>(window + own * stride + column, rounded);
#pragma unroll
  for (int r = 0; r < kPushRows; ++r) {
    if (r >= count) break;
#pragma unroll
    for (int e = 0; e < width; ++e)
      sum[r] += double(widen(r == own ? rounded[e] : x[r][e])) * double(widen(rounded[e]));
  }
}

// partial[chunk, r] <- products of the rounded gradient with window[r] over the columns of the
// chunk; window[row] <- the rounded gradient.
// A block owns 8 rows and a chunk of columns, and writes the part of `row` that is in both; a
// thread every 256th packet of the chunk, of all these rows; shared memory: a sum for each warp and
// row.
template <typename T, typename V, int width>
MFAC_KERNEL(kPushThreads)
window_push_kernel(T* __restrict__ window, int64_t stride, int64_t m, int64_t d, int64_t row,
                   const V* __restrict__ gradient, int64_t chunk, const double* __restrict__ magnitudes, int parts,
                   double limit, double* __restrict__ partial, int* __restrict__ refused) {
  const bool refuses = is_refused<kPushThreads>(magnitudes, parts, limit);
  if (blockIdx.x == 0 && threadIdx.x == 0) *refused = refuses;
  if (refuses) return;
  const int64_t row_groups = ceil_div(m, kPushRows);
  const int64_t first = blockIdx.x % row_groups * kPushRows, part = blockIdx.x / row_groups;
  const int count = int(m - first < kPushRows ? m - first : kPushRows);
  const int own = row >= first && row < first + count ? int(row - first) : -1;
  const int64_t begin = part * chunk, end = begin + chunk < d ? begin + chunk : d;
  const int64_t packed_end = begin + (end - begin) / width * width;
  const bool packed = is_aligned(gradient, 0);
  window += first * stride;

  double sum[kPushRows] = {};
  for (int64_t j = begin + int64_t(threadIdx.x) * width; j < packed_end; j += kPushThreads * width)
    push_packet<width>(window, stride, count, own, gradient, packed, j, sum);
  if (packed_end + threadIdx.x < end)
    push_packet<1>(window, stride, count, own, gradient, packed, packed_end + threadIdx.x, sum);

  const double total = block_sums<kPushThreads>(sum);
  if (threadIdx.x < count) partial[part * m + first + threadIdx.x] = total;
}

// row[j] <- gradient[j]/scale rounded, scale[tile] <- the least scale of 16 significant bits with
// which a tile fits into ±127: scale·row[j] is then a float32 number (window_push_cpu.inl).
// A block owns a tile of kScaleColumns columns; a thread every 256th of them; shared memory: two
// values a warp.
MFAC_KERNEL(kPushThreads)
quantize_kernel(const float* __restrict__ gradient, int64_t d, const double* __restrict__ magnitudes, int parts,
                double limit, int8_t* __restrict__ row, float* __restrict__ scale, int* __restrict__ refused) {
  const bool refuses = is_refused<kPushThreads>(magnitudes, parts, limit);
  if (blockIdx.x == 0 && threadIdx.x == 0) *refused = refuses;
  if (refuses) return;
  constexpr int kColumns = int(kScaleColumns) / kPushThreads;
  const int64_t begin = blockIdx.x * kScaleColumns;
  float x[kColumns], largest = 0;
#pragma unroll
  for (int i = 0; i < kColumns; ++i) {
    const int64_t j = begin + i * kPushThreads + threadIdx.x;
    x[i] = j < d ? gradient[j] : 0;
    const float size = x[i] < 0 ? -x[i] : x[i];
    largest = size > largest ? size : largest;
  }
  __syncthreads();  // is_refused has used block_max's memory
  const float most = float(block_max<kPushThreads>(largest));
  const float least = __uint_as_float((__float_as_uint(most / 127.0f) + 0xff) & ~0xffu);
  const bool vanishes = !(least > 0x1p-100f);  // below, the quotients would not be normal numbers
  const float inverse = vanishes ? 0 : 1 / least;
#pragma unroll
  for (int i = 0; i < kColumns; ++i) {
    const int64_t j = begin + i * kPushThreads + threadIdx.x;
    const float shifted = __fmaf_rn(x[i], inverse, 0x1.8p23f);  // rounded to an integer, ties to even
    if (j < d) row[j] = int8_t(shifted - 0x1.8p23f);
  }
  if (threadIdx.x == 0) scale[blockIdx.x] = vanishes ? 0 : least;
}

// sum[r] += scale_r·scale_newest·Σ_e row_r[e]·newest[e], the inner sum in integers; `width` columns
// share a scale.
template <int width>
MFAC_DEVICE void add_int8_products(const int8_t* __restrict__ window, const float* __restrict__ scales, int64_t stride,
                                   int64_t tiles, int count, const int8_t* __restrict__ newest,
                                   const float* __restrict__ scale, int64_t column, double (&sum)[kPushRows]) {
  int8_t x[kPushRows][width], y[width];
  load<width>(newest + column, y);
#pragma unroll
  for (int r = 0; r < kPushRows; ++r)
    if (r < count) load<width>(window + r * stride + column, x[r]);
  const int64_t tile = column / kScaleColumns;
#pragma unroll
  for (int r = 0; r < kPushRows; ++r) {
    if (r >= count) break;
    int product = 0;
    if constexpr (width == 1) {
      product = int(x[r][0]) * int(y[0]);
    } else {
      int a[width / 4], b[width / 4];
      __builtin_memcpy(a, x[r], width);
      __builtin_memcpy(b, y, width);
#pragma unroll
      for (int i = 0; i < width / 4; ++i) product = __dp4a(a[i], b[i], product);
    }
    sum[r] += double(scales[r * tiles + tile]) * double(scale[tile]) * product;
  }
}

// partial[chunk, r] <- products of int8 row `row` with window[r] over the columns of the chunk.
// A block owns 8 rows and a chunk of columns; a thread every 256th packet of it; shared memory: a
// sum for each warp and row.
template <int width>
MFAC_KERNEL(kPushThreads)
int8_products_kernel(const int8_t* __restrict__ window, const float* __restrict__ scales, int64_t stride, int64_t m,
                     int64_t d, int64_t row, int64_t chunk, const int* __restrict__ refused,
                     double* __restrict__ partial) {
  if (*refused) return;
  const int64_t row_groups = ceil_div(m, kPushRows), tiles = ceil_div(d, kScaleColumns);
  const int64_t first = blockIdx.x % row_groups * kPushRows, part = blockIdx.x / row_groups;
  const int count = int(m - first < kPushRows ? m - first : kPushRows);
  const int64_t begin = part * chunk, end = begin + chunk < d ? begin + chunk : d;
  const int64_t packed_end = begin + (end - begin) / width * width;
  const int8_t* newest = window + row * stride;
  const float* scale = scales + row * tiles;
  window += first * stride;
  scales += first * tiles;

  double sum[kPushRows] = {};
  for (int64_t j = begin + int64_t(threadIdx.x) * width; j < packed_end; j += kPushThreads * width)
    add_int8_products<width>(window, scales, stride, tiles, count, newest, scale, j, sum);
  if (packed_end + threadIdx.x < end)
    add_int8_products<1>(window, scales, stride, tiles, count, newest, scale, packed_end + threadIdx.x, sum);

  const double total = block_sums<kPushThreads>(sum);
  if (threadIdx.x < count) partial[part * m + first + threadIdx.x] = total;
}

}  // namespace mfac::cuda
