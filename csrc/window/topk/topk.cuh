// CUDA kernels of topk_dot and topk_combine_: products with windows of sparse rows, summed in
// float64.
#pragma once

#include "cuda/output.cuh"
#include "cuda/packet.cuh"
#include "cuda/reduce.cuh"
#include "window/topk/topk_cuda.h"

namespace mfac::cuda {

constexpr int kEntriesAhead = 4;  // of a lane, that are on their way at a time

// One entry of a row in a block of columns, or none.
template <typename T>
struct TopKEntry {
  T value;
  int column;

  MFAC_DEVICE void load(const T* values, const uint16_t* offsets, int64_t p, bool exists) {
    value = exists ? values[p] : T{};
    column = exists ? int(offsets[p]) : -1;
  }
  MFAC_DEVICE bool is_within(int first, int cols) const { return unsigned(column - first) < unsigned(cols); }
};

constexpr int kTopKDotWarps = 8;
constexpr int kMostTopKVectors = 4;  // that share one pass over the entries

// partial[b, i, r] <- Σ_p values[r, b, p]·vectors[i, offset p of block b]
// A block owns a block of columns, `vectors` vectors and `rows` rows; a warp every eighth of the
// rows, a thread every 32nd entry of a row; no shared memory: the part of a vector that a block
// gathers from is in L1.
template <typename T, typename V, int vectors>
MFAC_KERNEL(kTopKDotWarps* kWarp)
topk_dot_kernel(const T* __restrict__ values, const uint16_t* __restrict__ offsets, TopKLayout layout,
                const V* __restrict__ v, int64_t vector_stride, int64_t k, int64_t rows, double* __restrict__ partial) {
  const int64_t row_groups = ceil_div(layout.rank, rows), vector_groups = ceil_div(k, vectors);
  const int64_t first = blockIdx.x % row_groups * rows, rest = blockIdx.x / row_groups;
  const int64_t vector = rest % vector_groups * vectors, b = rest / vector_groups;
  const int vector_count = int(k - vector < vectors ? k - vector : vectors);
  const int64_t end = first + rows < layout.rank ? first + rows : layout.rank;
  const int lane = threadIdx.x % kWarp, kept = int(layout.kept), cols = int(layout.cols(b));
  v += vector * vector_stride + layout.begin(b);

  for (int64_t row = first + threadIdx.x / kWarp; row < end; row += kTopKDotWarps) {
    const T* x = values + layout.entry(row, b);
    const uint16_t* column = offsets + layout.entry(row, b);
    double sum[vectors] = {};
    for (int base = lane; base < kept; base += kEntriesAhead * kWarp) {
      TopKEntry<T> entry[kEntriesAhead];
#pragma unroll
      for (int e = 0; e < kEntriesAhead; ++e) entry[e].load(x, column, base + e * kWarp, base + e * kWarp < kept);
#pragma unroll
      for (int e = 0; e < kEntriesAhead; ++e) {
        if (!entry[e].is_within(0, cols)) continue;
#pragma unroll
        for (int i = 0; i < vectors; ++i)
          if (i < vector_count)
            sum[i] += double(widen(entry[e].value)) * double(v[i * vector_stride + entry[e].column]);
      }
    }
#pragma unroll
    for (int i = 0; i < vectors; ++i) {
      const double total = warp_sum(sum[i]);
      if (lane == 0 && i < vector_count) partial[(b * k + vector + i) * layout.rank + row] = total;
    }
  }
}

// boundaries[b, t - 1, r] <- the first entry of row r and block b that lies in tile t of its
// columns or after it, for windows that do not keep them
// A block owns a block of columns and eight rows; a warp one row, a thread every 32nd entry; no
// shared memory. All offsets are read, once and in order: a search for every boundary would wait
// for as many sectors one by one. Whatever the offsets are, every boundary is crossed on
// the way from the first tile to the last, and so written.
template <int threads>
MFAC_KERNEL(threads)
topk_boundaries_kernel(const uint16_t* __restrict__ offsets, TopKLayout layout, uint16_t* __restrict__ boundaries) {
  constexpr int kWarps = threads / kWarp;
  const int64_t row_groups = ceil_div(layout.rank, kWarps);
  const int64_t row = blockIdx.x % row_groups * kWarps + threadIdx.x / kWarp, b = blockIdx.x / row_groups;
  if (row >= layout.rank) return;
  const uint16_t* column = offsets + layout.entry(row, b);
  uint16_t* of_row = boundaries + layout.boundary(row, b, 1);
  const int count = int(layout.count(b)), tiles = layout.tiles();
#pragma unroll 4
  for (int p = threadIdx.x % kWarp; p <= count; p += kWarp) {
    const int before = p == 0 ? 0 : column[p - 1] / kTopKTileColumns;
    const int tile = p == count ? tiles - 1 : column[p] / kTopKTileColumns;
    // 65536 does not fit; it occurs for zeros at offset 0 alone, of which none is missed.
    for (int t = before; t < tile && t < tiles - 1; ++t) of_row[t * layout.rank] = uint16_t(p < 65535 ? p : 65535);
  }
}

constexpr int kTopKCombineWarps = 4;
constexpr int kRowsAhead = 8;  // of a warp, whose entries are on their way at a time

// sums[column - first] += coefficient·value, for a column of the tile. Rows never written hold
// zeros that all stand at offset 0: no two lanes may add them.
template <typename T>
MFAC_DEVICE void add_entry(const TopKEntry<T>& entry, double coefficient, int first, int width, double* sums) {
  const double x = widen(entry.value);
  if (entry.is_within(first, width) && x != 0) sums[entry.column - first] += coefficient * x;
}

// Where a row's entries in a tile begin and end, and its coefficient. Every lane of a warp knows of
// one row.
struct TopKRow {
  int begin, end;
  double coefficient;
  MFAC_DEVICE TopKRow of_lane(int lane) const {
    return {__shfl_sync(kAllLanes, begin, lane), __shfl_sync(kAllLanes, end, lane),
            __shfl_sync(kAllLanes, coefficient, lane)};
  }
};

// output(i, j, Σ_r coefficients[i, r]·G[r, j], whether row `newest` carries j) over the columns j
// of one tile of the blocks from `first_block` on
// A block owns a tile of columns and one output; a warp every fourth row, one after the other, with
// sums of its own; a lane every 32nd of a row's entries in the tile; shared memory: four sums a
// column, and what is carried.
template <typename T, typename Output>
MFAC_KERNEL(kTopKCombineWarps* kWarp, 1)
topk_combine_kernel(const T* __restrict__ values, const uint16_t* __restrict__ offsets, TopKLayout layout,
                    int64_t first_block, const uint16_t* __restrict__ boundaries,
                    const double* __restrict__ coefficients, int64_t k, int64_t newest,
                    const MFAC_GRID_CONSTANT Output output) {
  MFAC_SHARED(double, sums, [kTopKCombineWarps][kTopKTileColumns]);
  MFAC_SHARED(bool, carried, [Output::kMoves ? kTopKTileColumns : 1]);
  const int64_t i = blockIdx.x % k, place = blockIdx.x / k;  // the outputs' blocks find a tile's entries in L2
  const int tiles = layout.tiles();
  const int64_t b = first_block + place / tiles, m = layout.rank;
  const int tile = int(place % tiles), first = tile * kTopKTileColumns, columns_left = int(layout.cols(b)) - first;
  if (columns_left <= 0) return;  // of a last block with fewer columns
  const int width = columns_left < kTopKTileColumns ? columns_left : kTopKTileColumns;
  const int64_t begin = layout.begin(b) + first;
  if (!output.covers(begin, begin + width)) return;
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  double* sum = sums[warp];
  for (int j = lane; j < width; j += kWarp) sum[j] = 0;
  __syncwarp();

  const int count = int(layout.count(b));
  const auto row_in_tile = [&](int64_t row) {
    const int begin = tile > 0 ? int(boundaries[layout.boundary(row, b, tile)]) : 0;
    const int end = tile + 1 < tiles ? int(boundaries[layout.boundary(row, b, tile + 1)]) : count;
    return TopKRow{begin, end < count ? end : count, coefficients[i * m + row]};
  };
  if constexpr (Output::kMoves) {
    if (warp == 0) {
      for (int j = lane; j < width; j += kWarp) carried[j] = false;
      __syncwarp();
      const bool carries = output.average != nullptr;
      const TopKRow row = carries ? row_in_tile(newest) : TopKRow{0, 0, 0};
      for (int p = row.begin + lane; p < row.end; p += kWarp) {
        TopKEntry<T> entry;
        entry.load(values, offsets, layout.entry(newest, b) + p, true);
        if (entry.is_within(first, width) && widen(entry.value) != 0) carried[entry.column - first] = true;
      }
    }
  }
  const auto rows_from = [&](int64_t base) {  // one a lane
    const int64_t row = base + kTopKCombineWarps * lane;
    return row < m ? row_in_tile(row) : TopKRow{0, 0, 0};
  };
  TopKRow later = rows_from(warp);
  for (int64_t base = warp; base < m; base += kTopKCombineWarps * kWarp) {
    const TopKRow rows = later;
    later = rows_from(base + kTopKCombineWarps * kWarp);
    const auto first_entry = [&](int l) { return layout.entry(base + kTopKCombineWarps * l, b); };
    TopKEntry<T> ahead[kRowsAhead];
    const auto load_ahead = [&](TopKEntry<T>& entry, int l) {
      const TopKRow row = rows.of_lane(l % kWarp);
      const bool exists = l < kWarp && row.begin + lane < row.end;
      entry.load(values, offsets, first_entry(l) + row.begin + lane, exists);
    };
#pragma unroll
    for (int u = 0; u < kRowsAhead; ++u) load_ahead(ahead[u], u);
    for (int l = 0; l < kWarp && base + kTopKCombineWarps * l < m; l += kRowsAhead) {
#pragma unroll
      for (int u = 0; u < kRowsAhead; ++u) {
        const TopKEntry<T> entry = ahead[u];
        load_ahead(ahead[u], l + u + kRowsAhead);
        const TopKRow row = rows.of_lane(l + u);
        add_entry(entry, row.coefficient, first, width, sum);
        for (int p = row.begin + lane + kWarp; p < row.end; p += kEntriesAhead * kWarp) {
          TopKEntry<T> more[kEntriesAhead];
#pragma unroll
          for (int e = 0; e < kEntriesAhead; ++e)
            more[e].load(values, offsets, first_entry(l + u) + p + e * kWarp, p + e * kWarp < row.end);
#pragma unroll
          for (int e = 0; e < kEntriesAhead; ++e) add_entry(more[e], row.coefficient, first, width, sum);
        }
        __syncwarp();
      }
    }
  }

  __syncthreads();
  for (int j = threadIdx.x; j < width; j += kTopKCombineWarps * kWarp) {
    double total = 0;
#pragma unroll
    for (int w = 0; w < kTopKCombineWarps; ++w) total += sums[w][j];
    bool is_carried = false;
    if constexpr (Output::kMoves) is_carried = carried[j];
    output(i, begin + j, total, is_carried);
  }
}

}  // namespace mfac::cuda
