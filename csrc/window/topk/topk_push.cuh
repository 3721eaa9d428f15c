// CUDA kernels of topk_push_: whether what is carried can be stored, the entries of it that are
// kept, and their products with every row.
#pragma once

#include <type_traits>

#include "cuda/packet.cuh"
#include "cuda/reduce.cuh"
#include "window/topk/topk.cuh"
#include "window/topk/topk_select.cuh"

namespace mfac::cuda {

constexpr int kSizeThreads = 256;

// partial[chunk] <- Σ (error + gradient)² over a chunk of columns, infinite where a magnitude
// exceeds `largest`. A block owns a chunk of columns; a thread every 256th packet of it; shared
// memory: a sum for each warp.
template <typename V, int width>
MFAC_KERNEL(kSizeThreads)
topk_size_kernel(const V* __restrict__ error, const V* __restrict__ gradient, int64_t d, int64_t chunk, double largest,
                 double* __restrict__ partial) {
  const int64_t begin = blockIdx.x * chunk, end = begin + chunk < d ? begin + chunk : d;
  const int64_t packed_end = begin + (end - begin) / width * width;
  double squares = 0;
  const auto add = [&](int64_t column, auto packet) {
    constexpr int kWidth = decltype(packet)::value;
    V x[kWidth], y[kWidth];
    load<kWidth>(error + column, x);
    load<kWidth>(gradient + column, y);
#pragma unroll
    for (int e = 0; e < kWidth; ++e) {
      const double size = fabs(double(x[e] + y[e]));
      squares += size > largest ? double(INFINITY) : size * size;
    }
  };
#pragma unroll 4
  for (int64_t j = begin + int64_t(threadIdx.x) * width; j < packed_end; j += kSizeThreads * width)
    add(j, std::integral_constant<int, width>());
  if (packed_end + threadIdx.x < end) add(packed_end + threadIdx.x, std::integral_constant<int, 1>());

  const double total = block_sum<kSizeThreads>(squares);
  if (threadIdx.x == 0) partial[blockIdx.x] = total;
}

// Where Σ_p squares[p] is finite: row `row` of values and offsets <- the largest entries of
// error + gradient, rounded and in ascending order; boundaries, unless null, and words <- where the
// entries are; error <- the rest. Where the sum is not finite, `refused`: every block comes to the
// same decision, from the same numbers.
// A block owns a block of columns; a warp a 32nd of a stretch of columns, a thread every 32nd
// column; shared memory: a histogram of 8 KiB, two sums for each warp.
template <typename T, typename V>
MFAC_KERNEL(kSelectThreads, 1)
topk_select_kernel(T* __restrict__ values, uint16_t* __restrict__ offsets, TopKLayout layout, int64_t row,
                   const double* __restrict__ squares, int64_t parts, const V* gradient, V* error,
                   uint16_t* __restrict__ boundaries, TopKWord* __restrict__ words, int64_t words_of_block,
                   int* __restrict__ refused) {
  const int64_t b = blockIdx.x;
  const int cols = int(layout.cols(b)), count = int(layout.count(b)), kept = int(layout.kept);
  error += layout.begin(b);
  values += layout.entry(row, b);
  offsets += layout.entry(row, b);
  words += b * words_of_block;
  CarriedColumns<V> columns(error, gradient + layout.begin(b), cols);

  double sum[1] = {0};
  for (int64_t p = threadIdx.x; p < parts; p += kSelectThreads) sum[0] += squares[p];
  block_sums_everywhere<kSelectThreads>(sum);
  const bool refuses = !(sum[0] < INFINITY);
  if (b == 0 && threadIdx.x == 0) *refused = refuses;
  if (refuses) return;
  const auto selection = select_largest(columns, cols, count);

  const int lane = threadIdx.x % kWarp;
  int earlier[2] = {0, 0};  // entries above the bin and in it, of earlier stretches
  columns.for_stretches([&](int first) {
    int before[2] = {0, 0}, all[2];
    columns.for_columns(first, [&](int, V x, bool exists) {
      before[0] += exists && selection.is_above(magnitude_key(x));
      before[1] += exists && selection.is_in_bin(magnitude_key(x));
    });
    if (first > 0) __syncthreads();  // block_prefix has used its memory
    block_prefix<kSelectThreads>(before, all);
    int in_bin = earlier[1] + __shfl_sync(kAllLanes, before[1], 0);
    int kept_before = earlier[0] + __shfl_sync(kAllLanes, before[0], 0);
    kept_before += in_bin < selection.wanted ? in_bin : selection.wanted;
    columns.for_columns(first, [&](int j, V x, bool exists) {
      const unsigned lower_lanes = (1u << lane) - 1;
      const bool is_in_bin = exists && selection.is_in_bin(magnitude_key(x));
      const unsigned lanes_in_bin = __ballot_sync(kAllLanes, is_in_bin);
      const bool is_kept = (exists && selection.is_above(magnitude_key(x))) ||
                           (is_in_bin && in_bin + __popc(lanes_in_bin & lower_lanes) < selection.wanted);
      const unsigned lanes_kept = __ballot_sync(kAllLanes, is_kept);
      V rounded = 0;
      if (is_kept) {
        const int p = kept_before + __popc(lanes_kept & lower_lanes);
        T value;
        round_to(x, value);
        values[p] = value;
        offsets[p] = uint16_t(j);
        rounded = V(widen(value));
      }
      if (exists) error[j] = x - rounded;
      if (exists && lane == 0) {
        words[j / kTopKWordColumns] = {lanes_kept, uint32_t(kept_before)};
        if (boundaries != nullptr && j > 0 && j % kTopKTileColumns == 0)
          boundaries[layout.boundary(row, b, j / kTopKTileColumns)] = uint16_t(kept_before);
      }
      kept_before += __popc(lanes_kept);
      in_bin += __popc(lanes_in_bin);
    });
    earlier[0] += all[0];
    earlier[1] += all[1];
  });

  // A last block may have fewer columns than entries, or fewer tiles than others.
  for (int p = count + int(threadIdx.x); p < kept; p += kSelectThreads) {
    values[p] = T{};
    offsets[p] = 0;
  }
  if (boundaries == nullptr) return;
  for (int tile = int(ceil_div(cols, kTopKTileColumns)) + int(threadIdx.x); tile < layout.tiles();
       tile += kSelectThreads)
    boundaries[layout.boundary(row, b, tile)] = uint16_t(count);
}

constexpr int kOffsetsAhead = 8;  // of a lane, that are on their way at a time

// partial[b, r] <- Σ_p values[r, b, p] times what row `row` has in the column of that entry
// A block owns a block of columns and `rows` rows; a warp every eighth of the rows, a thread every
// 32nd entry of a row; no shared memory: the words of a block of columns, a quarter of a byte each,
// are in L1. Few columns of two rows are the same, and values of other columns are not read.
template <typename T>
MFAC_KERNEL(kTopKDotWarps* kWarp)
topk_products_kernel(const T* __restrict__ values, const uint16_t* __restrict__ offsets, TopKLayout layout, int64_t row,
                     const TopKWord* __restrict__ words, int64_t words_of_block, int64_t rows,
                     const int* __restrict__ refused, double* __restrict__ partial) {
  if (*refused) return;  // there are no words
  const int64_t row_groups = ceil_div(layout.rank, rows);
  const int64_t first = blockIdx.x % row_groups * rows, b = blockIdx.x / row_groups;
  const int64_t end = first + rows < layout.rank ? first + rows : layout.rank;
  const int lane = threadIdx.x % kWarp, kept = int(layout.kept), cols = int(layout.cols(b));
  const T* newest = values + layout.entry(row, b);
  words += b * words_of_block;

  for (int64_t r = first + threadIdx.x / kWarp; r < end; r += kTopKDotWarps) {
    const T* value = values + layout.entry(r, b);
    const uint16_t* offset = offsets + layout.entry(r, b);
    double sum = 0;
    for (int base = lane; base < kept; base += kOffsetsAhead * kWarp) {
      int place[kOffsetsAhead];  // columns, then their places in the new row, or -1
      T x[kOffsetsAhead], y[kOffsetsAhead];
#pragma unroll
      for (int e = 0; e < kOffsetsAhead; ++e) place[e] = base + e * kWarp < kept ? int(offset[base + e * kWarp]) : -1;
#pragma unroll
      for (int e = 0; e < kOffsetsAhead; ++e) {
        const bool is_within = unsigned(place[e]) < unsigned(cols);
        const TopKWord word = is_within ? words[place[e] / kTopKWordColumns] : TopKWord{0, 0};
        const unsigned bit = 1u << (unsigned(place[e]) % kTopKWordColumns);
        place[e] = (word.kept & bit) != 0 ? int(word.before) + __popc(word.kept & (bit - 1)) : -1;
      }
#pragma unroll
      for (int e = 0; e < kOffsetsAhead; ++e) {
        x[e] = place[e] >= 0 ? value[base + e * kWarp] : T{};
        y[e] = place[e] >= 0 ? newest[place[e]] : T{};
      }
#pragma unroll
      for (int e = 0; e < kOffsetsAhead; ++e) sum += double(widen(x[e])) * double(widen(y[e]));
    }
    const double total = warp_sum(sum);
    if (lane == 0) partial[b * layout.rank + r] = total;
  }
}

}  // namespace mfac::cuda
