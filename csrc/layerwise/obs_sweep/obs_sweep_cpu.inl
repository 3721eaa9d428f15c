#include "layerwise/obs_sweep/grid.inl"

// A panel of rows, one a lane, transposed: [width][kPanelWidth]. What earlier columns add to the
// sums of a tile of columns is a product with a tile of R as it lies in memory; within a tile, one
// column follows the other.
struct SweepPanel {
  double *weight, *sums, *moves, *kept;  // moves: w - q; kept: 1 or 0
  f64v scales[kPanelVectors], zeros[kPanelVectors];
};

using LaneCounts = decltype(f64v() < f64v());  // integers

constexpr int64_t kSweepRows = kPanelWidth<double>;

// Calls f(column, number of columns as a constant) for tiles of [begin, end).
template <typename F>
MFAC_INLINE void for_column_tiles(int64_t begin, int64_t end, const F& f) {
  for (; begin + kTileRows <= end; begin += kTileRows) f(begin, std::integral_constant<int, kTileRows>());
  if (kTileRows > 4 && begin + 4 <= end) {
    f(begin, std::integral_constant<int, 4>());
    begin += 4;
  }
  if (begin + 2 <= end) {
    f(begin, std::integral_constant<int, 2>());
    begin += 2;
  }
  if (begin < end) f(begin, std::integral_constant<int, 1>());
}

// The sums of a tile of columns += what columns [begin, end) add to them.
template <int columns>
MFAC_INLINE void sweep_collect(const Sweep& sweep, const SweepPanel& panel, int64_t begin, int64_t end,
                               int64_t column) {
  if (begin == end) return;
  f64v sum[columns][kPanelVectors] = {};
  add_products(sum, sweep.factor + begin * sweep.factor_stride + column, sweep.factor_stride,
               panel.moves + begin * kSweepRows, kSweepRows, end - begin);
  double* to = panel.sums + column * kSweepRows;
#pragma GCC unroll 8
  for (int c = 0; c < columns; ++c) {
#pragma GCC unroll 4
    for (int v = 0; v < kPanelVectors; ++v) {
      double* p = to + c * kSweepRows + v * kLanes;
      store(p, load(p) + sum[c][v]);
    }
  }
}

// Solves a tile of columns whose sums are complete but for what they add to each other.
template <int columns>
MFAC_INLINE void sweep_solve(const Sweep& sweep, const SweepPanel& panel, int64_t column) {
  const double* factor = sweep.factor + column * sweep.factor_stride + column;
  for (int v = 0; v < kPanelVectors; ++v) {
    const int64_t first = column * kSweepRows + v * kLanes;
    f64v sum[columns];
#pragma GCC unroll 8
    for (int c = 0; c < columns; ++c) sum[c] = load(panel.sums + first + c * kSweepRows);
#pragma GCC unroll 8
    for (int c = 0; c < columns; ++c) {
      const int64_t at = first + c * kSweepRows;
      const double* row = factor + c * sweep.factor_stride;
      const f64v none = {}, w = load(panel.weight + at), best = w + sum[c] / row[c];
      const auto is_kept = load(panel.kept + at) != none;
      f64v q = best;
      if (sweep.scales != nullptr) q = quantized(best, panel.scales[v], panel.zeros[v], sweep.levels);
      q = is_kept ? q : none;
      const f64v move = w - q;
      store(panel.weight + at, q);
      store(panel.moves + at, move);
      store(panel.sums + at, (best - q) * row[c]);  // exactly zero where best itself is kept
#pragma GCC unroll 8
      for (int next = c + 1; next < columns; ++next) sum[next] += row[next] * move;
    }
  }
}

// Which weights of a group of columns are kept: those with the highest (u_j R_jj)² where
// u = w + S R⁻¹ is what the group would be at best, on its diagonal block of R. Of equal ones the
// later is the higher, and NaN is above infinity, as in nm_mask.
MFAC_INLINE void sweep_choose(const Sweep& sweep, const SweepPanel& panel, int64_t begin, int64_t columns) {
  const double* factor = sweep.factor + begin * sweep.factor_stride + begin;
  for (int v = 0; v < kPanelVectors; ++v) {
    const int64_t first = begin * kSweepRows + v * kLanes;
    f64v shift[kMostInGroup], score[kMostInGroup];
    LaneCounts higher[kMostInGroup];
    for (int64_t j = 0; j < columns; ++j) {
      const double diagonal = factor[j * sweep.factor_stride + j];
      f64v sum = load(panel.sums + first + j * kSweepRows);
      for (int64_t i = 0; i < j; ++i) sum -= factor[i * sweep.factor_stride + j] * shift[i];
      shift[j] = sum / diagonal;
      const f64v root = (load(panel.weight + first + j * kSweepRows) + shift[j]) * diagonal;
      score[j] = root * root;
      higher[j] = LaneCounts{};
      for (int64_t i = 0; i < j; ++i) {
        const auto later_is_higher = (score[j] >= score[i]) | (score[j] != score[j]);  // -1: it is
        higher[j] -= later_is_higher;
        higher[i] += later_is_higher + 1;
      }
    }
    const f64v none = {}, one = none + 1.0;
    for (int64_t j = 0; j < columns; ++j)
      store(panel.kept + first + j * kSweepRows, higher[j] >= columns - sweep.keep ? one : none);
  }
}

// rows [count, width] <- a panel
MFAC_INLINE void sweep_unpack(const double* panel, int64_t count, int64_t width, double* rows, int64_t stride) {
  const int64_t full_rows = count / kLanes * kLanes, full_columns = width / kLanes * kLanes;
  for (int64_t r = 0; r < full_rows; r += kLanes)
    for (int64_t j = 0; j < full_columns; j += kLanes) {
      f64v square[kLanes];
#pragma GCC unroll 8
      for (int i = 0; i < kLanes; ++i) square[i] = load(panel + (j + i) * kSweepRows + r);
      transpose<kLanes / 2>(square);
#pragma GCC unroll 8
      for (int i = 0; i < kLanes; ++i) store(rows + (r + i) * stride + j, square[i]);
    }
  for (int64_t r = 0; r < count; ++r)
    for (int64_t j = r < full_rows ? full_columns : 0; j < width; ++j) rows[r * stride + j] = panel[j * kSweepRows + r];
}

MFAC_INLINE void sweep_panel(const Sweep& sweep, int64_t row, int64_t count, double* scratch) {
  const int64_t width = sweep.width, entries = width * kSweepRows;
  SweepPanel panel = {scratch, scratch + entries, scratch + 2 * entries, scratch + 3 * entries, {}, {}};
  double *weight = sweep.weight + row * sweep.weight_stride, *carried = sweep.carried + row * sweep.carried_stride;
  bool* kept = sweep.kept + row * sweep.kept_stride;
  gram_pack<double>(weight, sweep.weight_stride, count, width, panel.weight);
  gram_pack<double>(carried, sweep.carried_stride, count, width, panel.sums);
  if (sweep.scales != nullptr) {
    double scales[kSweepRows], zeros[kSweepRows];
    for (int64_t r = 0; r < kSweepRows; ++r) {
      scales[r] = r < count ? sweep.scales[row + r] : 1.0;
      zeros[r] = r < count ? sweep.zeros[row + r] : 0.0;
    }
    for (int v = 0; v < kPanelVectors; ++v) {
      panel.scales[v] = load(scales + v * kLanes);
      panel.zeros[v] = load(zeros + v * kLanes);
    }
  }
  if (sweep.keep == 0)
    for (int64_t r = 0; r < kSweepRows; ++r)
      for (int64_t j = 0; j < width; ++j)
        panel.kept[j * kSweepRows + r] = r < count && kept[r * sweep.kept_stride + j] ? 1.0 : 0.0;

  const int64_t step = sweep.keep == 0 ? width : sweep.group;
  for (int64_t begin = 0; begin < width; begin += step) {
    const int64_t end = width - begin < step ? width : begin + step;
    if (begin > 0)
      for_column_tiles(begin, end, [&](int64_t column, auto columns) __attribute__((always_inline)) {
        sweep_collect<columns.value>(sweep, panel, 0, begin, column);
      });
    if (sweep.keep > 0) sweep_choose(sweep, panel, begin, end - begin);
    for_column_tiles(begin, end, [&](int64_t column, auto columns) __attribute__((always_inline)) {
      sweep_collect<columns.value>(sweep, panel, begin, column, column);
      sweep_solve<columns.value>(sweep, panel, column);
    });
  }

  sweep_unpack(panel.weight, count, width, weight, sweep.weight_stride);
  sweep_unpack(panel.sums, count, width, carried, sweep.carried_stride);
  if (sweep.keep > 0)
    for (int64_t r = 0; r < count; ++r)
      for (int64_t j = 0; j < width; ++j) kept[r * sweep.kept_stride + j] = panel.kept[j * kSweepRows + r] != 0;
}

void sweep_rows(const Sweep& sweep, int64_t begin, int64_t end, double* scratch) {
  for (; begin < end; begin += kSweepRows)
    sweep_panel(sweep, begin, end - begin < kSweepRows ? end - begin : kSweepRows, scratch);
}

constexpr void fill(ObsSweepKernels& kernels) { kernels = {kSweepRows, sweep_rows}; }
